"""A connection that is kept: odd orders of replies, an end in the middle of a message, and its rest."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from elemta.delivery.next_hop import NextHop
from elemta.delivery.pool import ConnectionPool, PooledConnection
from elemta.delivery.settings import DeliverySettings
from elemta.delivery.slots import ConnectionSlot
from elemta.metrics import DeliveryMetrics
from elemta.outcome import Status
from tests.support.hops import CONTENT
from tests.support.kept import GO, OK, Kept

NO = "550 5.1.1 no"
LATER = "451 4.3.0 later"
STUFFED = CONTENT.replace(b"\r\n.", b"\r\n..") + b".\r\n"
QUIT = b"QUIT\r\n"
DELIVERED, DEFERRED, FAILED = Status.DELIVERED, Status.DEFERRED, Status.FAILED


def kept_one() -> Kept:
    return Kept("PIPELINING").after_the_first(OK, OK, GO, OK)


@pytest.mark.parametrize(
    ("replies", "written", "answer", "statuses"),
    [
        # 354 where it takes no recipient: an empty message, whose answer says nothing (RFC 2920 §3.1).
        ((OK, NO, NO, GO), [b".\r\n"], (OK,), [FAILED, FAILED]),
        ((NO, "503 no", "503 no", "503 no"), [], (), [FAILED, FAILED]),
        # Refused MAIL, and the rest taken: nothing may be sent as if it were a message with recipients.
        ((NO, OK, OK, "503 no"), [], (), [FAILED, FAILED]),
        ((OK, NO, OK, GO), [STUFFED], (OK,), [FAILED, DELIVERED]),
        ((OK, OK, NO, LATER), [], (), [DEFERRED, FAILED]),
        # 250 to DATA.
        ((OK, OK, OK, OK), [], (), [DEFERRED, DEFERRED]),
        # 354 where it does not belong.
        ((OK, GO, OK, OK), [], (), [DEFERRED, DEFERRED]),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_replies_in_odd_orders_deliver_only_what_was_taken_after_the_content(
    replies: tuple[str, ...],
    written: list[bytes],
    answer: tuple[str, ...],
    statuses: list[Status],
    at_once: bool,
) -> None:
    kept = kept_one()
    kept.send("anna", "bob")
    del kept.wire.writes[:]
    for part in [replies] if at_once else [(reply,) for reply in replies]:
        kept.say(*part)
    assert [each for each in kept.wire.writes if each != QUIT] == written
    kept.say(*answer)
    assert kept.statuses == statuses
    # What is over is over once, and its wait with it.
    if kept.connection.idle:
        kept.send("carl")
        kept.say(*[OK] * (kept.wire.writes[-1].count(b"\r\n") - 1), GO)
        kept.say(OK)
        assert kept.statuses == [*statuses, DELIVERED]
    else:
        assert kept.wire.disconnecting


def test_a_reply_that_comes_with_354_is_not_the_answer_to_the_message() -> None:
    kept = kept_one()
    kept.send("bob")
    del kept.wire.writes[:]
    kept.say(OK, OK, GO, OK)
    assert (kept.wire.writes, kept.statuses) == ([], [DEFERRED])
    assert kept.wire.disconnecting


@pytest.mark.parametrize("replies", [(), (OK,), (OK, OK), (OK, OK, GO)])
def test_a_connection_that_is_lost_between_envelope_and_content_sends_none(replies: tuple[str, ...]) -> None:
    kept = kept_one()
    opening = kept.opening = Deferred()
    kept.send("bob")
    del kept.wire.writes[:]
    del kept.opened[:]
    if replies:
        kept.say(*replies)
    assert kept.statuses == []
    kept.lose()
    assert (kept.statuses, kept.connection.closed.called) == ([DEFERRED], True)
    opening.callback(None)
    assert kept.wire.writes == []
    assert [content.closed for content in kept.opened] == [True] * replies.count(GO)
    assert kept.statuses == [DEFERRED]
    assert not kept.clock.getDelayedCalls()


def test_one_that_is_lost_while_the_content_is_read_sends_no_more_of_it() -> None:
    kept = Kept("PIPELINING", content=b"x\r\n" * 50_000).after_the_first(OK, OK, GO, OK)
    reading = kept.reading = Deferred()
    kept.send("bob")
    kept.say(OK, OK, GO)
    del kept.wire.writes[:]
    kept.lose()
    reading.callback(None)
    assert (kept.wire.writes, kept.statuses) == ([], [DEFERRED])
    assert kept.opened[-1].closed
    assert not kept.clock.getDelayedCalls()


def test_a_server_that_goes_on_talking_after_the_end_is_cut_all_the_same() -> None:
    kept = kept_one()
    kept.send("bob")
    kept.say("421 4.3.2 closing")
    assert (kept.statuses, kept.wire.disconnecting) == ([DEFERRED], True)
    kept.clock.advance(4.0)
    kept.say("421 4.3.2 closing")
    assert not kept.wire.disconnected
    kept.clock.advance(1.1)
    assert kept.wire.disconnected


def test_content_that_is_read_after_the_end_does_not_keep_the_connection() -> None:
    kept = Kept("PIPELINING", content=b"x\r\n" * 50_000).after_the_first(OK, OK, GO, OK)
    kept.send("bob")
    reading = kept.reading = Deferred()
    kept.say(OK, OK, GO)
    kept.connection.abandon("enough")
    assert (kept.statuses, kept.wire.disconnecting) == ([DEFERRED], True)
    reading.callback(None)
    kept.clock.advance(5.1)
    assert kept.wire.disconnected


HOP, PLACE, SLOT = NextHop("hop.example"), ("hop.example", 25), ConnectionSlot("mx:", "")


def pooled_one() -> tuple[Kept, PooledConnection]:
    kept = kept_one()
    return kept, PooledConnection(kept.connection, HOP, PLACE, SLOT, generation=0, clock=kept.clock)


def test_each_rest_of_a_connection_has_its_whole_time() -> None:
    kept, pooled = pooled_one()
    pooled.rest(10.0)
    kept.clock.advance(9.0)
    pooled.end_rest()
    kept.send("bob")
    # The first rest would end here, in the middle of a message.
    kept.clock.advance(5.0)
    kept.say(OK, OK, GO)
    kept.say(OK)
    assert (kept.statuses, QUIT in kept.wire.writes) == ([DELIVERED], False)
    pooled.rest(10.0)
    kept.clock.advance(9.9)
    assert pooled.resting
    assert QUIT not in kept.wire.writes
    kept.clock.advance(0.2)
    assert (pooled.resting, kept.wire.writes[-1]) == (False, QUIT)
    kept.lose()
    pooled.gone()
    assert not kept.clock.getDelayedCalls()


def test_one_that_is_lost_while_it_rests_leaves_no_timer() -> None:
    kept, pooled = pooled_one()
    pooled.rest(10.0)
    kept.lose()
    pooled.gone()
    assert not pooled.resting
    assert not kept.clock.getDelayedCalls()


def test_a_fault_when_a_place_is_given_back_lets_nothing_wait_for_what_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = kept_one()
    pool = ConnectionPool(kept.clock, DeliverySettings("me.example"), DeliveryMetrics())
    pooled = pool.add(kept.connection, HOP, PLACE, SLOT)
    pooled.rest(10.0)
    closed = pooled.closed()

    def broken(slot: ConnectionSlot) -> None:
        raise ValueError("ordered")

    monkeypatch.setattr(pool, "release", broken)
    faults: list[Failure] = []
    kept.connection.closed.addErrback(faults.append)
    kept.lose()
    assert closed.called
    assert [fault.type for fault in faults] == [ValueError]
    assert not pooled.resting
    assert not kept.clock.getDelayedCalls()
