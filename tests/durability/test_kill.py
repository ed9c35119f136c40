"""kill -9 of the whole daemon, at random moments and at chosen system calls: what got a 250 is delivered."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.durability.ledger import Ledger
from tests.durability.load import LOCAL, Clients, sink
from tests.durability.node import Node, find_strace, run_dry

#: Every so many kills the queue is delivered to its end and the books are compared.
_ROUNDS_TOGETHER = 10
#: Part of the kills that come while the daemon starts and recovers.
_WHILE_STARTING = 0.25

Kill = tuple[str, int]


def _kill_at_random(directory: Path, rounds: int, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("ELEMTA_SEED", "0")) or random.randrange(1 << 32)
    moments = random.Random(seed)
    ledger = Ledger()
    begun = time.monotonic()
    starting = 0
    with sink(ledger) as hop, Clients(ledger) as clients:
        node = Node(directory / "node", ledger, hop.port)
        try:
            for number in range(1, rounds + 1):
                if moments.random() < _WHILE_STARTING:
                    starting += 1
                    node.launch()
                    time.sleep(moments.uniform(0.0, node.start_seconds * 1.1))
                else:
                    node.start()
                    clients.aim(node.daemon.port)
                    # Some of them while the first messages of this life are on their way.
                    time.sleep(moments.choice((0.05, 0.3, 1.0)) * moments.random())
                node.kill()
                clients.rest()  # another process may take the port now
                ledger.take_mail(node.mail, LOCAL, chance=0.5)
                if number % _ROUNDS_TOGETHER == 0 or number == rounds:
                    node.start()
                    run_dry(node, clients)
                    ledger.judge()
                    node.stop()
        finally:
            node.daemon.kill()
            with capsys.disabled():
                print(f"\nkill -9 at random moments (seed {seed})")
                print(
                    ledger.report(
                        rounds=f"{rounds}, {starting} of them during start and recovery",
                        starts=node.starts,
                        seconds=round(time.monotonic() - begun, 1),
                    )
                )
    assert node.faults == []
    assert clients.trouble == []


@pytest.mark.timeout(300)
def test_kill_9_at_random_moments_loses_no_message_that_got_a_250(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _kill_at_random(tmp_path, int(os.environ.get("ELEMTA_KILLS", "10")), capsys)


@pytest.mark.campaign
def test_kill_9_at_two_hundred_random_moments_loses_no_message_that_got_a_250(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _kill_at_random(tmp_path, int(os.environ.get("ELEMTA_KILLS", "200")), capsys)


def _kill_at_calls(directory: Path, kills: list[Kill], capsys: pytest.CaptureFixture[str]) -> None:
    strace = find_strace()
    ledger = Ledger()
    begun = time.monotonic()
    reached: list[Kill] = []
    with sink(ledger) as hop, Clients(ledger) as clients:
        node = Node(directory / "node", ledger, hop.port)
        try:
            for number, (calls, nth) in enumerate(kills, 1):
                # The daemon is the child and strace its tracer, so that the kill is the daemon's own end.
                # The counts are those of each thread; the kill comes in place of the call.
                before = (strace, "-D", "-f", "-qq", "-o", os.devnull)
                inject = ("-e", f"trace={calls}", "-e", f"inject={calls}:signal=SIGKILL:when={nth}")
                process = node.launch((*before, *inject))
                if node.is_serving(process):
                    clients.aim(node.daemon.port)
                if node.is_dead(process, 6.0):
                    reached.append((calls, nth))
                node.kill()
                clients.rest()  # another process may take the port now
                ledger.take_mail(node.mail, LOCAL, chance=0.5)
                if number % _ROUNDS_TOGETHER == 0 or number == len(kills):
                    node.start()
                    run_dry(node, clients)
                    ledger.judge()
                    node.stop()
        finally:
            node.daemon.kill()
            missed = [f"{calls}#{nth}" for calls, nth in kills if (calls, nth) not in reached]
            with capsys.disabled():
                print("\nkill -9 in place of a system call")
                print(
                    ledger.report(
                        kills=f"{len(reached)} of {len(kills)}",
                        unreached=", ".join(missed) or "none",
                        seconds=round(time.monotonic() - begun, 1),
                    )
                )
    assert node.faults == []
    assert clients.trouble == []
    assert len(reached) > len(kills) // 2


@pytest.mark.timeout(300)
def test_a_kill_in_place_of_a_sync_a_rename_or_a_reply_loses_no_message_that_got_a_250(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _kill_at_calls(
        tmp_path,
        [
            ("fdatasync", 2),
            ("fdatasync", 9),
            ("fsync", 3),
            ("rename", 4),
            ("pwrite64", 40),
            ("writev", 3),
            ("unlink", 2),
            ("sendto", 25),
        ],
        capsys,
    )


@pytest.mark.campaign
def test_a_kill_in_place_of_any_of_many_system_calls_loses_no_message_that_got_a_250(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills = [
        (calls, nth)
        for calls in ("fdatasync", "fsync", "rename", "pwrite64", "writev", "unlink", "sendto", "ftruncate")
        for nth in (1, 2, 3, 4, 5, 7, 10, 15, 25, 40, 80)
    ]
    random.shuffle(kills)
    _kill_at_calls(tmp_path, kills, capsys)
