"""A full disk, and one whose syncs fail: clients get a 4xx, and what got a 250 is delivered."""

from __future__ import annotations

import errno
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.durability.ledger import Ledger
from tests.durability.load import Clients, sink
from tests.durability.node import Node, failing_syncs, run_dry
from tests.support.wire import Wire

_FULL = "452 4.3.1"
_TROUBLE = "451 4.3.0"
#: The spool looks at the space on its disk this often, in seconds, and needs a moment more.
_LOOK = 5.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB. The spool keeps a third of it aside."""
    place = tmp_path / "node" / "spool"
    place.mkdir(parents=True)
    mounting = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=0700", "elemta-test", str(place)]
    done = subprocess.run(mounting, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a tmpfs can't be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _wait(what: str, true: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def _answer_to_mail(node: Node) -> str:
    with Wire(node.daemon.socket()) as wire:
        wire.reply()
        wire.command("EHLO client.test")
        return wire.command("MAIL FROM:<sender@client.test>")


def _not_ready_for(node: Node, reason: str) -> bool:
    status, reasons = node.readiness()
    return status == 503 and reason in "; ".join(reasons)


def _fill(disk: Path) -> Path:
    """Take all the space that is left, as another program's log might."""
    ballast = disk / "ballast"
    octets = bytes(4096)
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(octets)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return ballast


def _print(capsys: pytest.CaptureFixture[str], title: str, report: str) -> None:
    with capsys.disabled():
        print(f"\n{title}\n{report}")


@pytest.mark.timeout(180)
def test_a_queue_that_fills_its_disk_defers_new_mail_and_takes_it_again_once_it_empties(
    tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger()
    full_with, room_after = 0, 0.0
    with socket.socket() as down:
        down.bind(("127.0.0.1", 0))  # the next hop's port; it does not listen yet
        port = down.getsockname()[1]
        node = Node(tmp_path / "node", ledger, port)
        try:
            with Clients(ledger, remote=1.0, pause=0.0, weights=(5, 5, 10, 20, 40, 20)) as clients:
                node.start()
                clients.aim(node.daemon.port)
                _wait("a refusal", lambda: ledger.refused, 60)
                full_with = len(ledger.acknowledged)
                _wait("a refusal at MAIL", lambda: _answer_to_mail(node).startswith(_FULL), 2 * _LOOK)
                _wait("not ready", lambda: _not_ready_for(node, "minimum_free"), _LOOK)
                time.sleep(1.0)
                down.close()
                with sink(ledger, port=port, delay=0.0):
                    room_after = node.wait_until_ready_again(60)
                    taken = len(ledger.acknowledged)
                    _wait("mail taken again", lambda: len(ledger.acknowledged) > taken + 20, 10)
                    run_dry(node, clients, 90)
            assert clients.trouble == []
            ledger.judge()
            assert set(ledger.refused) == {_FULL}
            node.stop()
            assert node.faults == []
        finally:
            node.daemon.kill()
            report = ledger.report(
                **{"full with": f"{full_with} messages", "room after": f"{room_after:.1f} s"}
            )
            _print(capsys, "a queue that filled its disk", report)


@pytest.mark.timeout(180)
def test_a_disk_that_others_fill_defers_new_mail_and_takes_it_again_once_there_is_room(
    tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger()
    room_after = 0.0
    with sink(ledger) as hop, Clients(ledger) as clients:
        node = Node(tmp_path / "node", ledger, hop.port)
        try:
            node.start()
            clients.aim(node.daemon.port)
            _wait("some mail", lambda: len(ledger.acknowledged) > 50, 30)
            for _ in range(2):
                before = ledger.refused[_FULL]
                ballast = _fill(small_disk)
                _wait("a refusal", lambda before=before: ledger.refused[_FULL] > before, 30)
                _wait("a refusal at MAIL", lambda: _answer_to_mail(node).startswith(_FULL), 2 * _LOOK)
                _wait("not ready", lambda: _not_ready_for(node, "minimum_free"), _LOOK)
                time.sleep(0.5)
                ballast.unlink()
                room_after = node.wait_until_ready_again(4 * _LOOK)
                taken = len(ledger.acknowledged)
                _wait("mail taken again", lambda taken=taken: len(ledger.acknowledged) > taken + 20, 10)
            run_dry(node, clients)
            ledger.judge()
            assert set(ledger.refused) == {_FULL}
            node.stop()
            assert node.faults == []
            assert clients.trouble == []
        finally:
            node.daemon.kill()
            _print(
                capsys, "a disk that others filled", ledger.report(**{"room after": f"{room_after:.1f} s"})
            )


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "killed", [False, True], ids=["comes back by itself", "is killed before it comes back"]
)
def test_syncs_that_fail_are_answered_with_451_and_lose_nothing(
    tmp_path: Path, killed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger()
    trusted_after = 0.0
    with sink(ledger) as hop, Clients(ledger, weights=(30, 20, 10, 10, 20, 10)) as clients:
        node = Node(tmp_path / "node", ledger, hop.port)
        try:
            node.start()
            clients.aim(node.daemon.port)
            _wait("some mail", lambda: len(ledger.acknowledged) > 50, 30)
            with failing_syncs(node.daemon.pid):
                _wait("a refusal", lambda: ledger.refused[_TROUBLE] > 5, 30)
                _wait("not ready", lambda: _not_ready_for(node, "failed"), 5)
                assert _answer_to_mail(node).startswith(_TROUBLE)
                time.sleep(0.5)  # until the clients have read what was said before
                none_since = len(ledger.acknowledged)
                time.sleep(1.0)
                assert len(ledger.acknowledged) == none_since
                assert _not_ready_for(node, "failed")
                if killed:
                    node.kill()
                    clients.rest()
            if killed:
                node.start()
                clients.aim(node.daemon.port)
            trusted_after = node.wait_until_ready_again(60)
            _wait("mail taken again", lambda: len(ledger.acknowledged) > none_since + 50, 20)
            run_dry(node, clients)
            ledger.judge(refused_may_arrive=killed)
            assert set(ledger.refused) == {_TROUBLE}
            node.stop()
            assert node.faults == []
            assert clients.trouble == []
        finally:
            node.daemon.kill()
            _print(capsys, "syncs that failed", ledger.report(**{"trusted after": f"{trusted_after:.1f} s"}))
