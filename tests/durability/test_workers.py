"""kill -9 of workers, one after the other, under load: what got a 250 is delivered."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.durability.ledger import Ledger
from tests.durability.load import Clients, sink
from tests.durability.node import Node, run_dry

#: Every so many kills the queue is delivered to its end and the books are compared.
_ROUNDS_TOGETHER = 10


def _starts(node: Node, worker: int) -> list[int]:
    return [
        int(record["pid"]) for record in node.daemon.records("worker.ready") if record["worker"] == worker
    ]


def _kill_workers(directory: Path, rounds: int, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("ELEMTA_SEED", "0")) or random.randrange(1 << 32)
    moments = random.Random(seed)
    ledger = Ledger()
    begun = time.monotonic()
    with sink(ledger) as hop, Clients(ledger) as clients:
        node = Node(directory / "node", ledger, hop.port, workers=2)
        try:
            node.start()
            clients.aim(node.daemon.port)
            for number in range(1, rounds + 1):
                worker = moments.randrange(2)
                before = len(_starts(node, worker))
                time.sleep(moments.choice((0.05, 0.3, 1.0)) * moments.random())
                os.kill(_starts(node, worker)[-1], 9)
                deadline = time.monotonic() + 90
                while len(_starts(node, worker)) == before:
                    assert time.monotonic() < deadline, node.daemon.output()[-4000:]
                    time.sleep(0.02)
                if number % _ROUNDS_TOGETHER == 0 or number == rounds:
                    run_dry(node, clients)
                    ledger.judge()
                    clients.aim(node.daemon.port)
            clients.rest()
            node.stop()
        finally:
            node.daemon.kill()
            with capsys.disabled():
                print(f"\nkill -9 of workers at random moments (seed {seed})")
                print(ledger.report(rounds=rounds, seconds=round(time.monotonic() - begun, 1)))
    assert node.faults == []
    assert clients.trouble == []


@pytest.mark.campaign
def test_kill_9_of_a_hundred_workers_loses_no_message_that_got_a_250(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _kill_workers(tmp_path, int(os.environ.get("ELEMTA_KILLS", "100")), capsys)
