"""A fleet in namespaces: clients with addresses of their own, a balancer, three nodes, Valkey, a next hop.

The balancers run the files of deployments/ as they are: the addresses in there are the addresses here.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.fleet import CLUSTER, Node, until
from tests.interop.programs import missing, program
from tests.interop.sink import Sink
from tests.mailout.network import Host, Network
from tests.support.valkey import ValkeyServer
from tests.support.wire import Wire

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
NODES = {"n1": 11, "n2": 12, "n3": 13}
BALANCER, NGINX, VALKEY, HOP = 10, 9, 20, 30
#: Whose last numbers are below this one are servers, and may not relay.
FIRST_CLIENT = 128
VALKEY_PORT = 6379
MAIL_DOMAIN = "sink.test"

VISITS = 60
"""Connections that an address may make."""
MAILS = 40
"""Messages that a sender may send."""

RESOURCES: Mapping[str, int | str] = {
    "max_connections": 1000,
    "max_connections_per_ip": 500,
    "max_requests_per_window": 0,
}
TABLES = """
[[listener]]
name = "smtp"
endpoint = "tcp:25:interface={address}"
proxy_protocol_from = ["198.51.100.{balancer}", "198.51.100.{nginx}"]
[[listener]]
name = "extra"
endpoint = "tcp:{extra}:interface={address}"
[[limit]]
name = "visits"
per = ["ip"]
counts = "connections"
rates = ["{visits}/10m"]
except = ["198.51.100.192/26"]
[[limit]]
name = "mails"
per = ["sender"]
counts = "messages"
rates = ["{mails}/10m"]
[[route]]
domains = ["{domain}"]
to = "smtp://198.51.100.{hop}:25"
"""


def address_of(number: int) -> str:
    return f"198.51.100.{number}"


class Entry:
    """A way into the fleet for a client at an address of its own."""

    def __init__(self, client: Host, address: str, port: int = 25) -> None:
        self.client = client
        self.address = address
        self.port = port

    def enter(self, source: str, timeout: float = 30.0) -> Wire:
        """A connection from this address of the client's host."""
        return Wire(
            self.client.call(
                lambda: socket.create_connection(
                    (self.address, self.port), timeout=timeout, source_address=(source, 0)
                )
            )
        )


class Process:
    """A server that ends with the test that started it."""

    def __init__(self, name: str, output: Path, *command: str) -> None:
        self.output = output
        with output.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=output.parent
            )
        self.name = name

    @property
    def pid(self) -> int:
        assert self._process.poll() is None, f"{self.name} has ended:\n{self.words()}"
        return self._process.pid

    def words(self) -> str:
        return self.output.read_text("utf-8", "replace")[-4000:]

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


def guarded() -> tuple[str, ...]:
    """What to put before a command so that it doesn't outlive a test run that is killed."""
    return ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()


class HAProxy:
    """HAProxy with deployments/haproxy/haproxy.cfg.

    ``ip netns exec`` gives it mounts of its own, so that its ``/run`` is none of the machine's. Its
    master, which is not chrooted, is a way in.
    """

    def __init__(self, host: Host, directory: Path) -> None:
        directory.mkdir()
        self._process = Process(
            "haproxy",
            directory / "log",
            *host.prefix,
            *guarded(),
            "sh",
            "-c",
            "mount -t tmpfs tmpfs /run && mkdir /run/haproxy && exec "
            f"{program('haproxy')} -W -db -f {DEPLOYMENTS / 'haproxy' / 'haproxy.cfg'}",
        )

    def tell(self, command: str) -> str:
        """What it says to a command on its admin socket."""
        path = str(Path("/proc", str(self._process.pid), "root", "run", "haproxy", "admin.sock"))
        with closing(socket.socket(socket.AF_UNIX)) as admin:
            admin.settimeout(30)
            admin.connect(path)
            admin.sendall(command.encode() + b"\n")
            with admin.makefile("rb") as answer:
                return answer.read().decode()

    def servers(self) -> dict[str, dict[str, str]]:
        """What its statistics say of each node."""
        lines = self.tell("show stat").splitlines()
        names = lines[0].removeprefix("# ").split(",")
        rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:] if line]
        return {row["svname"]: row for row in rows if row["pxname"] == "nodes" and row["svname"] in NODES}

    def states(self) -> dict[str, str]:
        try:
            return {name: row["status"].split()[0] for name, row in self.servers().items()}
        except OSError:  # it starts
            return {}

    def wait_for(self, state: str, *names: str, seconds: float = 90.0) -> float:
        """Until these nodes, or all, are in this state for it; the seconds that it took."""
        began = time.monotonic()
        wanted = names or tuple(NODES)
        until(
            lambda: all(self.states().get(name) == state for name in wanted),
            f"{wanted} {state} for HAProxy",
            seconds,
            self._process.words,
        )
        return time.monotonic() - began

    def stop(self) -> None:
        self._process.stop()


class Nginx:
    """nginx with deployments/nginx/elemta.conf."""

    def __init__(self, host: Host, directory: Path) -> None:
        module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
        binary = program("nginx")
        if not module.exists():
            missing("nginx's module stream (libnginx-mod-stream) is not installed")
        directory.mkdir()
        config = directory / "nginx.conf"
        config.write_text(
            f"load_module {module};\ndaemon off;\nmaster_process off;\npid {directory}/pid;\n"
            f"error_log stderr notice;\nevents {{}}\ninclude {DEPLOYMENTS / 'nginx' / 'elemta.conf'};\n"
        )
        self._process = Process(
            "nginx",
            directory / "log",
            *host.prefix,
            *guarded(),
            "sh",
            "-c",
            "mount -t tmpfs tmpfs /var/log && mkdir /var/log/nginx && exec "
            f"{binary} -p {directory} -e stderr -c {config}",
        )

    def words(self) -> str:
        return self._process.words()

    def stop(self) -> None:
        self._process.stop()


class Topology:
    """Everything, started when it is entered and gone when it is left.

    ``valkey_deadline`` is the nodes' setting.
    """

    def __init__(self, directory: Path, valkey_deadline: str) -> None:
        self._directory = directory
        self._resources = {**RESOURCES, "valkey_deadline": valkey_deadline}
        self._stack = ExitStack()

    def __enter__(self) -> Topology:
        with ExitStack() as stack:
            self.network = stack.enter_context(Network())
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        network = self.network
        self.valkey_host = network.host("vk", VALKEY, six=False)
        self.hop_host = network.host("hop", HOP, six=False)
        self.balancer_host = network.host("lb", BALANCER, six=False)
        self.nginx_host = network.host("nginx", NGINX, six=False)
        self.clients = (self._client("c1", range(150, 170)), self._client("c2", range(192, 232)))
        self.valkey = stack.enter_context(
            ValkeyServer(
                place=self.valkey_host,
                port=VALKEY_PORT,
                bind=address_of(VALKEY),
                protected_mode="no",
            )
        )
        self.sink = stack.enter_context(
            Sink("PIPELINING", "SIZE 0", place=self.hop_host, address=("0.0.0.0", 25))
        )
        self.hosts = {name: network.host(name, number, six=False) for name, number in NODES.items()}
        self.nodes = {name: self._node(number, name) for number, name in enumerate(NODES)}
        for node in self.nodes.values():
            stack.callback(node.kill)
        self._start_nodes()
        self.haproxy = HAProxy(self.balancer_host, self._directory / "haproxy")
        stack.callback(self.haproxy.stop)
        self.haproxy.wait_for("UP")

    def _client(self, name: str, numbers: range) -> Host:
        host = self.network.host(name, numbers[0], six=False)
        self.network.run(
            *(f"-n {host.namespace} address add {address_of(number)}/24 dev eth0" for number in numbers[1:])
        )
        return host

    def _node(self, number: int, name: str) -> Node:
        return Node(
            self._directory / name,
            f"valkey://{address_of(VALKEY)}:{VALKEY_PORT}",
            name=name,
            resources=self._resources,
            tables=TABLES.format(
                address=address_of(NODES[name]),
                balancer=BALANCER,
                nginx=NGINX,
                extra=2525 + number,
                visits=VISITS,
                mails=MAILS,
                domain=MAIL_DOMAIN,
                hop=HOP,
            ),
            domains=f'relay_from = ["{address_of(FIRST_CLIENT)}/25"]',
            spool='retry = ["1s"]',
            place=self.hosts[name],
        )

    def _start_nodes(self) -> None:
        for node in self.nodes.values():
            node.launch(guarded())
        for node in self.nodes.values():
            node.wait_until_ready()
        self.wait_for_mode(CLUSTER)
        self.introduce()

    # What tests do and ask

    def start_nginx(self) -> Nginx:
        """nginx in place of HAProxy; the caller stops it."""
        server = Nginx(self.nginx_host, self._directory / "nginx")
        try:
            until(self._nginx_listens, "an open port 25 of nginx", words=server.words)
        except BaseException:
            server.stop()
            raise
        return server

    def _nginx_listens(self) -> bool:
        with contextlib.suppress(OSError), self.through_nginx().enter(address_of(169)) as wire:
            return wire.reply().startswith("220")
        return False

    def start(self, name: str) -> None:
        """Start one node again, and wait until it is ready."""
        self.nodes[name].launch(guarded())
        self.nodes[name].wait_until_ready()

    def through_haproxy(self, client: int = 0) -> Entry:
        return Entry(self.clients[client], address_of(BALANCER))

    def through_nginx(self, client: int = 0) -> Entry:
        return Entry(self.clients[client], address_of(NGINX))

    def listeners(self, client: int = 0) -> list[Entry]:
        """Each node's own: ports 2525, 2526, 2527."""
        return [
            Entry(self.clients[client], address_of(number), 2525 + place)
            for place, number in enumerate(NODES.values())
        ]

    def wait_for_mode(self, mode: str, seconds: float = 90.0) -> float:
        """Until all nodes count there; the seconds that it took."""
        began = time.monotonic()
        for node in self.nodes.values():
            until(lambda node=node: node.mode == mode, f"{node.name} in mode {mode}", seconds, node.troubles)
        return time.monotonic() - began

    def introduce(self) -> None:
        """Until each node knows of the others."""
        for node in self.nodes.values():
            until(
                lambda node=node: node.metric("elemta_live_nodes{") == len(NODES),
                f"all nodes known to {node.name}",
                words=node.troubles,
            )

    def wait_until_delivered(self, seconds: float = 90.0) -> float:
        """Until no node has anything queued; the seconds that it took."""
        began = time.monotonic()
        for node in self.nodes.values():
            until(
                lambda node=node: node.metric("elemta_spool_messages") == 0,
                f"the queue of {node.name} empty",
                seconds,
                lambda node=node: node.output()[-4000:],
            )
        return time.monotonic() - began

    def accepted(self, name: str) -> list[dict[str, Any]]:
        """What this node has accepted since its start, by its log."""
        return self.nodes[name].records("message.accepted")

    def faults(self) -> list[str]:
        """What any node logged as an error, and what the next hop took amiss.

        A node that was killed cuts its sentences short.
        """
        cut = ("the connection broke", "cut short")
        found = [f"next hop: {fault}" for fault in self.sink.faults if not fault.startswith(cut)]
        for node in self.nodes.values():
            for line in node.log.read_text("utf-8", "replace").splitlines():
                if not line.startswith("{") or json.loads(line)["level"] in ("error", "critical"):
                    found.append(f"{node.name}: {line}")
        return found

    @contextmanager
    def valkey_cut_off(self) -> Iterator[None]:
        """Every packet to Valkey and from it is dropped: no reset, no refusal, nothing."""
        nft = [*self.valkey_host.prefix, program("nft")]
        rules = f"""
        table inet cut {{
            chain in {{ type filter hook input priority 0; tcp dport {VALKEY_PORT} drop; }}
            chain out {{ type filter hook output priority 0; tcp sport {VALKEY_PORT} drop; }}
        }}
        """
        done = subprocess.run([*nft, "-f", "-"], input=rules, text=True, capture_output=True, check=False)
        # A kernel without nftables still has a switch.
        if done.returncode:
            self.valkey_host.link("down")
        try:
            yield
        finally:
            if done.returncode:
                self.valkey_host.link("up")
            else:
                subprocess.run([*nft, "delete", "table", "inet", "cut"], check=True)
