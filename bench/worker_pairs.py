"""What several workers take beside one process, with the CPU of the server and of the load told apart.

The load runs on the same cores as the server. So beside the rates there is an account of the CPU: what a
message takes of the server, of its supervisor, and of the load, and how many cores each of them had. From it
follows what workers would take with a core for each of them: what one process takes, times the number of
workers, times the CPU of a message in one process, divided by its CPU with workers.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from busy import Others
from contenders import with_workers
from measuring import WARM_UP, Scenario, running, send
from servers import cpu_seconds, own_cpu_seconds

SCENARIOS = (
    Scenario("new", "new connections, 20 sessions", 4000, 1024, 20, reuse=False),
    Scenario("reused", "reused, 20 sessions", 10000, 1024, 20, reuse=True),
    Scenario("pipelined", "pipelined, 100 sessions", 12000, 1024, 100, reuse=True, pipelined=True),
    Scenario("50K", "50 KB, reused, 20 sessions", 2000, 50 * 1024, 20, reuse=True),
    Scenario("100", "new connections, 100 sessions", 4000, 1024, 100, reuse=False),
)
COUNTS = (1, 2, 4)


@dataclass(frozen=True)
class Account:
    """One measured run. CPU is in seconds for 1,000 messages; ``seconds`` is how long they were sent.

    ``cpu`` is that of all processes of the server until all is on hold, and ``supervisor`` the part of the
    process that was started, which is all of it for one worker. ``load`` is that of the load, and ``others``
    the part of all cores that other programs used.
    """

    workers: int
    scenario: str
    rate: float
    seconds: float
    cpu: float
    supervisor: float
    load: float
    others: float


def measured(number: int, scenario: Scenario, parent: Path) -> Account:
    """One run with so many workers."""
    with running(with_workers(number), parent) as server:
        # Each worker gets some.
        warm_up = min(WARM_UP * number, scenario.messages)
        send(server.port, scenario, warm_up)
        server.wait_until_held(warm_up)
        os.sync()
        others, before, first = Others(server), cpu_seconds(server.pid()), own_cpu_seconds(server.pid())
        made = _load_seconds()
        begun = time.perf_counter()
        took = send(server.port, scenario, scenario.messages)
        seconds = time.perf_counter() - begun
        load = _load_seconds() - made
        server.wait_until_held(warm_up + scenario.messages)
        cpu, own = cpu_seconds(server.pid()) - before, own_cpu_seconds(server.pid()) - first
        share = others.share()
    thousands = scenario.messages / 1000
    return Account(
        number, scenario.name, scenario.messages / took, seconds, cpu / thousands, own / thousands,
        load / thousands, share,
    )  # fmt: skip


def _load_seconds() -> float:
    """CPU of the programs that this process has started and waited for: the load, and no server."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def pairs(
    scenarios: Sequence[Scenario], counts: Sequence[int], rounds: int, parent: Path
) -> Iterator[dict[str, Any]]:
    """Runs of all numbers of workers behind each other; the number that begins changes."""
    for number in range(rounds):
        for scenario in scenarios:
            for workers in counts if number % 2 == 0 else counts[::-1]:
                account = measured(workers, scenario, parent)
                about = {"part": "workers", "server": f"{workers} workers", "round": number}
                yield {**about, "words": scenario.words, **asdict(account)}


# The tables

ACCOUNT_HEADS = (
    "", "workers", "messages/s", "CPU s per 1,000", "supervisor's", "load's", "cores", "load's",
    "messages/CPU s",
)  # fmt: skip
RATIO_HEADS = ("", "workers", "messages/s ratio", "of each round", "by CPU", "of each round")

ACCOUNTED = """\
*CPU* is that of all processes of the server, *cores* how many they used while the load was made. What
the supervisor takes is a part of it, and what the load takes is not."""

BY_CPU = """\
*By CPU*: with a core for each worker, and others for the load. It is the number of workers, times the CPU of
a message in one process, divided by its CPU with workers and their supervisor."""


def account_rows(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The account of each scenario and number of workers: medians of the rounds."""
    rows = []
    for (words, workers), some in _grouped(runs).items():
        rate, cpu, load = (statistics.median(run[name] for run in some) for name in ("rate", "cpu", "load"))
        supervisor = statistics.median(run["supervisor"] for run in some)
        rows.append([
            words, str(workers), f"{rate:,.0f}", f"{cpu:.2f}", "-" if workers == 1 else f"{supervisor:.2f}",
            f"{load:.2f}", f"{rate * cpu / 1000:.2f}", f"{rate * load / 1000:.2f}", f"{1000 / cpu:,.0f}",
        ])  # fmt: skip
    return rows


def ratio_rows(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Each number of workers beside one process, of the runs of one round.

    By CPU is what they would take with a core for each of them, as a multiple of one process.
    """
    grouped, rows = _grouped(runs), []
    for (words, workers), some in grouped.items():
        alone = {run["round"]: run for run in grouped.get((words, 1), ())}
        both = [(run, alone[run["round"]]) for run in some if run["round"] in alone]
        if workers == 1 or not both:
            continue
        rates = [run["rate"] / one["rate"] for run, one in both]
        by_cpu = [workers * one["cpu"] / run["cpu"] for run, one in both]
        rows.append([
            words, str(workers), f"{statistics.median(rates):.2f}", _words(rates),
            f"{statistics.median(by_cpu):.2f}", _words(by_cpu),
        ])  # fmt: skip
    return rows


def _grouped(runs: Sequence[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: run["workers"]):
        found.setdefault((run["words"], run["workers"]), []).append(run)
    order = [run["words"] for run in runs]
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def _words(ratios: Sequence[float]) -> str:
    return " ".join(f"{ratio:.2f}" for ratio in ratios)
