"""How one server is measured once: mail that it accepts, and mail that goes out again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from busy import Others
from measuring import WARM_UP, Run, Scenario, running, send
from servers import Server, Sink, cpu_seconds, memory


def accepted(kind: type[Server], scenario: Scenario, parent: Path) -> Run:
    """The rate until the last 250."""
    with running(kind, parent) as server:
        port = server.port_for(login=scenario.login)
        warm_up = min(WARM_UP, scenario.messages)
        send(port, scenario, warm_up)
        server.wait_until_held(warm_up)
        os.sync()
        others, before = Others(server), _cpu(server)
        seconds = send(port, scenario, scenario.messages)
        sent = time.perf_counter()
        server.wait_until_held(warm_up + scenario.messages)
        behind = time.perf_counter() - sent
        cpu, share = _cpu(server) - before, others.share()
        octets = sum(map(memory, server.pids()))
    rate = scenario.messages / seconds
    return Run(kind.name, scenario.name, rate, cpu * 1000 / scenario.messages, behind, octets, share)


def relayed(kind: type[Server], scenario: Scenario, parent: Path) -> Run:
    """The rate until the last message is out again."""
    with (
        running(Sink, parent) as sink,
        running(lambda directory: kind(directory, sink.port), parent) as server,
    ):
        warm_up = min(WARM_UP, scenario.messages)
        send(server.port, scenario, warm_up)
        sink.wait_until_counted(warm_up)
        server.wait_until_empty()
        os.sync()
        others, before = Others(server), _cpu(server)
        begun = time.perf_counter()
        took = send(server.port, scenario, scenario.messages)
        seconds = sink.wait_until_counted(warm_up + scenario.messages) - begun
        server.wait_until_empty()
        cpu, share = _cpu(server) - before, others.share()
        sink.wait_until_counted(warm_up + scenario.messages)
        octets = sum(map(memory, server.pids()))
    rate = scenario.messages / seconds
    return Run(kind.name, scenario.name, rate, cpu * 1000 / scenario.messages, seconds - took, octets, share)


def _cpu(server: Server) -> float:
    """CPU seconds of all that it consists of."""
    return sum(map(cpu_seconds, server.pids()))
