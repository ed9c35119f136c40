"""kill -9 while mail goes out: nothing is lost, and twice comes only what was out and not recorded."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.durability.load import serving
from tests.durability.node import Node
from tests.mailout.accounts import GOOD, MOODY, SENDERS, STRICT, Accounts, Office, Senders

#: Every so many kills the queue is delivered to its end and the books are compared.
_ROUNDS_TOGETHER = 10
#: A reply and a sync, in seconds; here on a machine that is busy.
_LONGEST_OUT = 10.0


def _tables(offices: dict[str, Office]) -> str:
    return "".join(
        f'[[route]]\ndomains = ["{domain}"]\nto = "smtp://127.0.0.1:{office.port}"\n'
        for domain, office in offices.items()
    )


def _empty(node: Node, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while queued := node.daemon.metric("elemta_spool_messages"):
        assert time.monotonic() < deadline, (
            f"{queued:.0f} messages are still queued\n{node.daemon.output()[-4000:]}"
        )
        time.sleep(0.05)


def _kill_while_delivering(directory: Path, rounds: int, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("ELEMTA_SEED", "0")) or random.randrange(1 << 32)
    moments = random.Random(seed)
    accounts = Accounts()
    begun = time.monotonic()
    with (
        serving(Office(accounts)) as good,
        serving(Office(accounts)) as moody,
        serving(Office(accounts)) as strict,
        serving(Office(accounts)) as home,
        Senders(accounts, weights=(50, 30, 12, 6, 2, 0)) as clients,
    ):
        offices = {GOOD: good, MOODY: moody, STRICT: strict, SENDERS: home}
        node = Node(directory / "node", accounts, good.port)
        node.daemon.configure(
            _tables(offices),
            spool='retry = ["1s"]\n',
            domains='relay_from = ["127.0.0.0/8"]\n[submission]\nadd_missing = false\n',
        )
        try:
            for number in range(1, rounds + 1):
                since = time.time()
                node.start()
                clients.aim(node.daemon.port)
                time.sleep(moments.choice((0.05, 0.3, 1.0)) * moments.random())
                killed_at = time.time()
                node.kill()
                clients.rest()  # another process may take the port now
                for office in offices.values():
                    office.wait_until_alone()
                accounts.look_into(node.daemon.spool / "p0" / "queue.db", killed_at, since)
                if number % _ROUNDS_TOGETHER == 0 or number == rounds:
                    node.start()
                    clients.wait_until_idle()
                    _empty(node)
                    accounts.judge()
                    node.stop()
            accounts.close()
        finally:
            node.daemon.kill()
            with capsys.disabled():
                print(f"\nkill -9 while mail goes out (seed {seed})")
                print(accounts.report(kills=rounds, seconds=round(time.monotonic() - begun, 1)))
    assert node.faults == []
    assert clients.trouble == []
    assert accounts.told
    assert max(window.longest for window in accounts.windows) < _LONGEST_OUT


@pytest.mark.timeout(300)
def test_kill_9_while_mail_goes_out_loses_nothing_and_repeats_only_what_was_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _kill_while_delivering(tmp_path, int(os.environ.get("ELEMTA_KILLS", "8")), capsys)


@pytest.mark.campaign
def test_kill_9_at_two_hundred_moments_while_mail_goes_out_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _kill_while_delivering(tmp_path, int(os.environ.get("ELEMTA_KILLS", "200")), capsys)
