"""Nodes of a fleet on one Valkey, under load: how many messages a second, and what they and Valkey spend."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from measuring import Scenario, send
from servers import BenchError, ElemtaServer, cpu_seconds, free_port
from valkeys import ValkeyServer, valkey

WARM_UP = 100
JOIN_SECONDS = 30.0
IDLE_SECONDS = 6.0
SCENARIOS = (
    Scenario("new", "new connection per message", 4000, 1024, 20, reuse=False),
    Scenario("reused", "connections reused", 8000, 1024, 20, reuse=True),
)


class Node(ElemtaServer):
    """One node; with a Valkey it counts there, else in its memory. Its limits refuse no client."""

    valkey_url = ""
    number = 0

    def configuration(self) -> str:
        self.metrics_port = free_port()
        text = super().configuration()
        text = text.replace("[[listener]]", f'node_id = "n{self.number}"\n[[listener]]', 1)
        text = text.replace("[resources]\n", f'[resources]\nvalkey_url = "{self.valkey_url}"\n')
        text = text.replace(
            '[metrics]\nendpoint = ""', f'[metrics]\nendpoint = "tcp:{self.metrics_port}:interface=127.0.0.1"'
        )
        return text + (
            '[[limit]]\nname = "mail-per-sender"\nper = ["sender"]\ncounts = "messages"\n'
            'rates = ["10000000/1m"]\n'
        )

    def metric(self, pattern: str) -> float:
        """The sum of the samples whose line matches."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{pattern}.* (\S+)$", text, re.MULTILINE))


@dataclass(frozen=True)
class Run:
    """One run. ``rate`` is messages a second; CPU is seconds per 1,000 messages, of all nodes and of Valkey.

    ``calls`` are script calls and ``commands`` all commands of Valkey, those inside scripts included, for one
    message. ``failed`` are calls that Valkey did not answer in time. ``nodes`` is 0 for one without Valkey.
    """

    nodes: int
    scenario: str
    rate: float
    cpu: float
    valkey_cpu: float
    calls: float
    commands: float
    failed: float

    @property
    def share(self) -> float:
        """Valkey's of all CPU."""
        return self.valkey_cpu / (self.cpu + self.valkey_cpu)


@dataclass(frozen=True)
class Spent:
    """What Valkey had spent at a moment."""

    cpu: float
    calls: int
    commands: int

    @classmethod
    def by(cls, server: ValkeyServer) -> Spent:
        with server.client() as client:
            info = client.info()
        evalsha = re.match(r"calls=(\d+)", info.get("cmdstat_evalsha", "calls=0"))
        assert evalsha is not None
        return cls(
            float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
            int(evalsha[1]),
            int(info["total_commands_processed"]),
        )


@contextmanager
def started(count: int, valkey_url: str, parent: Path) -> Iterator[list[Node]]:
    """So many nodes that know of each other, each in a directory of its own."""
    nodes: list[Node] = []
    with ExitStack() as stack:
        for number in range(count):
            directory = Path(tempfile.mkdtemp(prefix="elemta-bench-", dir=parent))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            node = Node(directory)
            node.number, node.valkey_url = number, valkey_url
            stack.callback(_stop, node)
            node.start()
            nodes.append(node)
        late = time.monotonic() + JOIN_SECONDS
        while valkey_url and not all(_joined(node, count) for node in nodes):
            if time.monotonic() > late:
                raise BenchError("the nodes do not come together")
            time.sleep(0.1)
        yield nodes


def _stop(node: Node) -> None:
    with suppress(AttributeError):  # it was not started
        node.stop()


def _joined(node: Node, count: int) -> bool:
    return node.metric("elemta_live_nodes") == count and node.metric(r'elemta_limiter_mode\{.*"cluster"') == 1


def measure(count: int, scenario: Scenario, parent: Path) -> Run:
    """The messages of a scenario, spread over so many nodes; 0 is one node that counts in its own memory."""
    with ExitStack() as stack:
        server = stack.enter_context(valkey()) if count else None
        url = server.url if server is not None else ""
        nodes = stack.enter_context(started(max(1, count), url, parent))
        each = scenario.messages // len(nodes)
        _send(nodes, scenario, WARM_UP)
        before = Spent.by(server) if server is not None else Spent(0.0, 0, 0)
        cpu = sum(cpu_seconds(node.pid()) for node in nodes)
        seconds = _send(nodes, scenario, each)
        for node in nodes:
            node.wait_until_held(WARM_UP + each)
        cpu = sum(cpu_seconds(node.pid()) for node in nodes) - cpu
        after = Spent.by(server) if server is not None else before
        failed = sum(node.metric("elemta_valkey_failures_total") for node in nodes)
    messages = each * len(nodes)
    return Run(
        count,
        scenario.name,
        messages / seconds,
        cpu / messages * 1000,
        (after.cpu - before.cpu) / messages * 1000,
        (after.calls - before.calls) / messages,
        (after.commands - before.commands) / messages,
        failed,
    )


def _send(nodes: Sequence[Node], scenario: Scenario, each: int) -> float:
    """From one generator for each node; the seconds until the last has ended."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(lambda node: send(node.port, scenario, each), nodes))
    return time.perf_counter() - began


@dataclass(frozen=True)
class Idle:
    """What a node without traffic costs Valkey in a second: CPU seconds and commands."""

    cpu: float
    commands: float


def idle(count: int, parent: Path) -> Idle:
    """Heartbeats, INFO, PING, and renewals of nothing."""
    with valkey() as server:
        alone = _spent_in(server, IDLE_SECONDS)
        with started(count, server.url, parent):
            busy = _spent_in(server, IDLE_SECONDS)
    return Idle(
        max(0.0, busy.cpu - alone.cpu) / IDLE_SECONDS / count,
        (busy.commands - alone.commands) / IDLE_SECONDS / count,
    )


def _spent_in(server: ValkeyServer, seconds: float) -> Spent:
    before = Spent.by(server)
    time.sleep(seconds)
    after = Spent.by(server)
    return Spent(after.cpu - before.cpu, after.calls - before.calls, after.commands - before.commands)
