"""What waits to be written, while the thread that writes stands still or has a fault."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from elemta.history.events import HistoryEntry
from elemta.history.history import INTERVAL, TOGETHER, MessageHistory
from elemta.history.store import HistoryStore
from elemta.metric_registry import MetricRegistry
from elemta.metrics import HistoryMetrics
from elemta.spool.history_feed import feed
from elemta.spool.operations import Batch, OperatorAction, OperatorChange
from tests.history.test_store import KEEP, Queue, accepted
from tests.support.metrics import value
from tests.support.runtime import SimulatedReactor, SimulatedThreads, simulated_runtime


class Kept:
    """A history whose thread gets on only while ``disk`` does."""

    def __init__(self, directory: Path) -> None:
        self.reactor = SimulatedReactor()
        self.disk = Clock()
        self.registry = MetricRegistry()
        runtime = replace(simulated_runtime(self.reactor), threads=SimulatedThreads(self.disk))
        self.history = MessageHistory(
            directory / "history",
            "mx1",
            KEEP,
            runtime=runtime,
            queue=Queue(),
            metrics=HistoryMetrics(self.registry),
        )
        self.history.open()
        self.disk.pump([0, 0])

    def accept(self, keys: Sequence[int]) -> None:
        for key in keys:
            self.history.add(accepted(key, self.reactor.seconds()))
        self.reactor.advance(INTERVAL)

    def dropped(self, reason: str) -> float:
        self.reactor.advance(0)
        return value(self.registry, "elemta_history_dropped_total", reason=reason)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_a_disk_that_stands_still_has_no_more_wait_than_the_bound(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elemta.history.history.MOST_WAITING", 10)
    for second in range(20):
        kept.accept(range(10 * second, 10 * second + 10))
    # Those of the first second are with the thread, those of the next one wait.
    assert kept.dropped("backlog") == 180
    kept.disk.pump([0, 0, 0, 0])
    assert kept.history.messages == 20
    kept.accept([1000])
    kept.disk.advance(0)
    assert kept.history.messages == 21


def test_a_fault_costs_what_it_concerns_and_is_counted(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    write = HistoryStore.write

    def faulty(store: Any, entries: Sequence[HistoryEntry]) -> None:
        if entries[0][0] == 0:
            raise ValueError("a fault of ours")
        write(store, entries)

    monkeypatch.setattr(HistoryStore, "write", faulty)
    # What comes while others are written is written together, in pieces.
    kept.accept([5000])
    kept.accept(range(TOGETHER + 5))
    kept.disk.pump([0, 0, 0, 0])
    assert kept.dropped("fault") == TOGETHER
    assert kept.history.messages == 6


def test_a_fault_about_one_message_costs_the_others_of_its_commit_nothing(kept: Kept) -> None:
    changes = [OperatorChange(key, f"Q{key}", OperatorAction.DELETE, 0.0, None) for key in (1, 2, 3)]
    changes[1].action = None  # type: ignore[assignment]
    batch = Batch([*changes], gone=[1, 2, 3])
    feed(kept.history, batch, 5.0)
    kept.accept([])
    kept.disk.pump([0, 0])
    assert kept.dropped("fault") == 1
    (segment,) = kept.history._store.segments
    with sqlite3.connect(segment.path) as connection:
        rows = connection.execute("SELECT message, ended, data <> '' FROM record ORDER BY message").fetchall()
    assert rows == [(1, 1, 1), (2, 1, 0), (3, 1, 1)]
