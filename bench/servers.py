"""The servers that are measured, each on a directory of its own, and the sink that some of them relay to."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

DOMAIN = "bench.test"
START_SECONDS = 30.0
HOLD_SECONDS = 120.0
STOP_SECONDS = 10.0
CONNECTIONS = 20  # to the next hop; Postfix's default
TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """The figures would not be true, or can't be had."""


class Server(ABC):
    """One server on a directory of its own. It keeps what it accepts on hold.

    With a ``next_hop``, a port, it hands everything to that instead.
    """

    name: str

    def __init__(self, directory: Path, next_hop: int | None = None) -> None:
        self.directory = directory
        self.port = free_port()
        self.next_hop = next_hop

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    @abstractmethod
    def pid(self) -> int: ...

    def pids(self) -> tuple[int, ...]:
        """The processes that it consists of, with all of their children."""
        return (self.pid(),)

    def port_for(self, *, login: bool) -> int:
        """Where a client connects that logs in, or does not."""
        if login:
            raise BenchError(f"{self.name} has no users here")
        return self.port

    @abstractmethod
    def held(self) -> tuple[int, int]:
        """Messages in the hold queue, and in all others."""

    def wait_until_serving(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
                if client.recv(512).startswith(b"220"):
                    client.sendall(b"QUIT\r\n")
                    return
            time.sleep(0.05)
        raise BenchError(f"{self.name} does not serve on port {self.port}; its log is in {self.directory}")

    def wait_until_held(self, messages: int) -> None:
        """Raises BenchError unless exactly so many messages end up on hold."""
        deadline = time.monotonic() + HOLD_SECONDS
        held, others = self.held()
        while (held < messages or others) and time.monotonic() < deadline:
            time.sleep(0.02)
            held, others = self.held()
        if (held, others) != (messages, 0):
            raise BenchError(f"{self.name} took {messages}, has {held} on hold and {others} elsewhere")

    def wait_until_empty(self) -> None:
        """Raises BenchError unless nothing stays in its queues."""
        deadline = time.monotonic() + HOLD_SECONDS
        while any(left := self.held()):
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name} still has {left[0]} on hold and {left[1]} elsewhere")
            time.sleep(0.02)


class ElemtaServer(Server):
    name = "Elemta"
    python = Path(sys.executable)
    environment: Mapping[str, str] = {}
    prefix: tuple[str, ...] = ()

    def configuration(self) -> str:
        """Its elemta.toml."""
        to = f"smtp://127.0.0.1:{self.next_hop}" if self.next_hop else "hold:"
        return f"""
[server]
hostname = "{DOMAIN}"
[[listener]]
name = "mx"
endpoint = "tcp:{self.port}:interface=127.0.0.1"
[domains]
local = ["{DOMAIN}"]
[resources]
max_connections_per_ip = 1000
max_requests_per_window = 10000000
[[route]]
domains = ["*"]
to = "{to}"
max_connections = {CONNECTIONS}
[spool]
directory = "{self.directory}/spool"
[metrics]
endpoint = ""
[console]
endpoint = ""
"""

    def start(self) -> None:
        config = self.directory / "elemta.toml"
        config.write_text(self.configuration())
        twistd = self.python.with_name("twistd")
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *self.prefix,
                    str(self.python),
                    str(twistd),
                    "-n",
                    "--pidfile=",
                    "elemta",
                    "--config",
                    str(config),
                ],
                cwd=self.directory,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait_until_serving()

    def stop(self) -> None:
        end(self._process)

    def pid(self) -> int:
        return self._process.pid

    def held(self) -> tuple[int, int]:
        states: Counter[int] = Counter()
        # Each worker has its own.
        for database in (self.directory / "spool").rglob("queue.db"):
            connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
            try:
                # One that a worker is making has no table yet.
                if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'message'").fetchone():
                    query = "SELECT state, count(*) FROM message GROUP BY state"
                    states.update(dict(connection.execute(query).fetchall()))
            finally:
                connection.close()
        held = states.pop(2, 0)
        return held, states.total()


def checkout_server(checkout: Path) -> type[ElemtaServer]:
    """The Elemta of another checkout, run by the environment ``.venv`` in it."""
    interpreter = checkout.resolve() / ".venv" / "bin" / "python"
    if not interpreter.exists():
        raise BenchError(f"{interpreter} is missing: run `make .venv/.test` in {checkout}")

    class CheckoutServer(ElemtaServer):
        name = "other checkout"
        python = interpreter

    return CheckoutServer


def changed_server(settings: Sequence[str]) -> type[ElemtaServer]:
    """This Elemta with other settings, each as ``table.key=value``."""
    variables = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        table, dot, name = key.partition(".")
        if not (equals and dot and name.isidentifier()):
            raise BenchError(f"{setting!r} is not TABLE.KEY=VALUE")
        variables[f"ELEMTA_{table}_{name}".upper()] = value

    class ChangedServer(ElemtaServer):
        name = f"Elemta with {', '.join(settings)}"
        environment = variables

    return ChangedServer


class PostfixServer(Server):
    name = "Postfix"

    # Every service that is used; nothing in a chroot, and as many processes as there are sessions.
    SERVICES = """
127.0.0.1:{port} inet n - n - {processes} smtpd
cleanup   unix       n - n - 0 cleanup
rewrite   unix       - - n - - trivial-rewrite
pickup    unix       n - n 600 1 pickup
qmgr      unix       n - n 300 1 qmgr
bounce    unix       - - n - 0 bounce
defer     unix       - - n - 0 bounce
trace     unix       - - n - 0 bounce
showq     unix       n - n - - showq
error     unix       - - n - - error
retry     unix       - - n - - error
local     unix       - n n - - local
smtp      unix       - - n - - smtp
scache    unix       - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
"""
    # What any Postfix of a benchmark needs to run here.
    PLACES = """
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = {directory}/maillog
maillog_file_prefixes = {directory}
myhostname = {domain}
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_recipient_maps =
"""
    SETTINGS = (
        PLACES
        + """\
local_header_rewrite_clients =
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_client_message_rate_limit = 0
smtpd_client_recipient_rate_limit = 0
smtpd_tls_security_level = none
receive_override_options = no_address_mappings
default_process_limit = {processes}
max_use = 1000000
max_idle = 600s
in_flow_delay = 0
message_size_limit = 0
mailbox_size_limit = 0
{way}
"""
    )
    HOLD = f"mydestination = {DOMAIN}\nsmtpd_client_restrictions = check_client_access static:HOLD"
    RELAY = f"""mydestination =
relayhost = [127.0.0.1]:{{port}}
default_destination_concurrency_limit = {CONNECTIONS}
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtp_tls_security_level = none
"""

    def start(self) -> None:
        settings = {
            "directory": self.directory,
            "domain": DOMAIN,
            "port": self.port,
            "processes": 150,
            "way": self.RELAY.format(port=self.next_hop) if self.next_hop else self.HOLD,
        }
        self._config = self.directory / "config"
        for name in ("config", "queue", "data"):
            (self.directory / name).mkdir()
        shutil.chown(self.directory / "data", "postfix")
        (self._config / "main.cf").write_text(self.settings().format(**settings))
        (self._config / "master.cf").write_text(self.services().format(**settings))
        self._postfix("start")
        self.wait_until_serving()

    def settings(self) -> str:
        """Its main.cf, with places for the names."""
        return self.SETTINGS

    def services(self) -> str:
        """Its master.cf."""
        return self.SERVICES

    def stop(self) -> None:
        running: list[int] = []
        with suppress(OSError, ValueError):  # it did not start
            running = descendants(self.pid())
        with suppress(BenchError):
            self._postfix("stop")
        # What its processes still do would be the work of others in the next run.
        deadline = time.monotonic() + STOP_SECONDS
        while any(Path(f"/proc/{pid}").exists() for pid in running) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _postfix(self, command: str) -> None:
        done = subprocess.run(
            ["postfix", "-c", str(self._config), command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            log = self.directory / "maillog"
            said = log.read_text()[-2000:] if log.exists() else ""
            raise BenchError(f"postfix {command} failed: {done.stdout}{done.stderr}{said}")

    def pid(self) -> int:
        return int((self.directory / "queue/pid/master.pid").read_text())

    def held(self) -> tuple[int, int]:
        return self._files("hold"), self._files("incoming") + self._files("active") + self._files("deferred")

    def _files(self, queue: str) -> int:
        return sum(len(files) for _, _, files in os.walk(self.directory / "queue" / queue))


class Sink(Server):
    """smtp-sink, which takes everything and counts."""

    name = "smtp-sink"

    def start(self) -> None:
        self._counters = self.directory / "counters"
        user = ["-u", "daemon"] if os.geteuid() == 0 else []
        with self._counters.open("wb") as counters:
            self._process = subprocess.Popen(
                ["smtp-sink", *user, "-c", f"127.0.0.1:{self.port}", "1000"],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=counters,
                stderr=subprocess.STDOUT,
            )
        self.wait_until_serving()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def pid(self) -> int:
        return self._process.pid

    def held(self) -> tuple[int, int]:
        return self.counted(), 0

    def counted(self) -> int:
        """The messages so far; it writes "sess=1 quit=1 mesg=1" and a CR, again and again."""
        with self._counters.open("rb") as counters:
            counters.seek(max(0, counters.seek(0, os.SEEK_END) - 200))
            whole = counters.read().rpartition(b"\r")[0]
        return int(whole.rpartition(b"mesg=")[2] or 0)

    def wait_until_counted(self, messages: int) -> float:
        """When all were there, by time.perf_counter(); raises BenchError if there are more or less."""
        deadline = time.monotonic() + HOLD_SECONDS
        while (counted := self.counted()) < messages and time.monotonic() < deadline:
            time.sleep(0.005)
        if counted != messages:
            raise BenchError(f"smtp-sink has {counted} of {messages} messages")
        return time.perf_counter()


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a server, by force where it takes more than a minute."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(root: int) -> float:
    """User and system time of a process, its descendants, and the children that they waited for."""
    _, used = processes()
    return sum(used.get(pid, 0) for pid in descendants(root)) / TICKS


def own_cpu_seconds(pid: int) -> float:
    """User and system time of a process alone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / TICKS


def descendants(root: int) -> list[int]:
    """A process, and all below it."""
    children, _ = processes()
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def memory(root: int) -> float:
    """Octets of a process and of all below it; what processes share is counted once (PSS)."""
    total = 0
    for pid in descendants(root):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return float(total)


def processes() -> tuple[dict[int, list[int]], dict[int, int]]:
    """The children of each process, and the ticks that each has used."""
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(entry.name)
        children.setdefault(int(fields[1]), []).append(pid)
        used[pid] = sum(map(int, fields[11:15]))
    return children, used
