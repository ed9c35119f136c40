"""A disk whose syncs fail for many retry periods: each queued message is sent on once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.durability.ledger import Ledger, Message
from tests.durability.load import Sink, serving
from tests.durability.node import Node, failing_syncs
from tests.support.wire import Wire

MESSAGES = 50
RETRY = 5.0
PERIODS = 5
_DEFERRED = "450 4.2.0 later"
#: What is under way when a disk fails ends within so many seconds.
_UNDER_WAY = 4.0


class _Moody(Sink):
    """A next hop that defers everything until the test lets it take it."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger, delay=1.0)
        self.takes = False

    def reply_to(self, recipient: str) -> str:
        return "250 OK" if self.takes else _DEFERRED


def _until(what: str, true: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def _submit(node: Node, ledger: Ledger, count: int) -> None:
    with Wire(node.daemon.socket()) as wire:
        wire.reply()
        wire.command("EHLO client.test")
        for number in range(count):
            message = Message.make(f"m{number}", 1000, (f"u{number}@sink.test",))
            wire.command("MAIL FROM:<sender@client.test>")
            wire.command(f"RCPT TO:<{message.recipients[0]}>")
            wire.command("DATA")
            ledger.sending(message)
            body = message.content.replace(b"\r\n.", b"\r\n..")
            wire.send(body + b".\r\n")
            ledger.answered(message, wire.reply())


@pytest.mark.campaign
@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EROFS", "EDQUOT"])
def test_syncs_that_fail_for_many_retry_periods_send_no_message_twice(
    tmp_path: Path, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger()
    with serving(_Moody(ledger)) as hop:
        node = Node(tmp_path / "node", ledger, hop.port, retry="5s")
        try:
            node.start()
            _submit(node, ledger, MESSAGES)
            assert len(ledger.acknowledged) == MESSAGES
            _until(
                "all are deferred",
                lambda: node.daemon.metric('elemta_spool_messages{.*state="deferred"') == MESSAGES,
                60,
            )
            hop.takes = True
            _until("the first is taken", lambda: ledger.deliveries, 60)
            with failing_syncs(node.daemon.pid, error):
                node.daemon.wait_for("spool.disk_failed", seconds=60)
                time.sleep(_UNDER_WAY)
                in_flight = sum(ledger.deliveries.values())
                assert in_flight < MESSAGES, "the disk failed too late to show anything"
                time.sleep(RETRY * PERIODS)
                assert sum(ledger.deliveries.values()) == in_flight
                assert max(ledger.deliveries.values(), default=0) <= 1
            node.wait_until_ready_again(60)
            node.wait_until_empty(60)
            time.sleep(2 * RETRY)
            ledger.close()
            ledger.judge()
            assert set(ledger.deliveries.values()) == {1}
            assert len(ledger.deliveries) == MESSAGES
            node.stop()
            assert node.faults == []
        finally:
            node.daemon.kill()
    with capsys.disabled():
        print(f"\nsyncs fail with {error}: {in_flight} of {MESSAGES} were sent or under way, none came twice")
