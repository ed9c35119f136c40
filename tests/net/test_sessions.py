"""Order, drain and back-pressure of one protocol, on a transport of memory over a real spool."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater
from twisted.logger import LogEvent

from elemta.config import ListenerTLS
from elemta.net import backend, protocol
from elemta.net.factory import RefusalProtocol
from elemta.net.input_flow import MOST_WAITING_INPUT, READ_COMMANDS
from elemta.net.timeouts import CLOSING_SECONDS
from elemta.policy import CONTINUE, Reject
from elemta.smtp import events as session_events
from elemta.smtp.events import Event, PauseQuestion, Question
from elemta.spool import MessageState
from tests.net.conftest import BLOCK, MESSAGE, Place, StuckDisk, errors, reply_of
from tests.support.waiting import until

SHUTTING_DOWN = "421 4.3.2 Service shutting down, try again later"


# Events


def kinds_of(base: type) -> set[type]:
    """The classes of a session's events below a class that have none below them."""
    named = {each for each in vars(session_events).values() if isinstance(each, type)}
    below = {each for each in named if issubclass(each, base)}
    return {each for each in below if not any(each in other.__bases__ for other in below)}


def test_every_event_has_its_action_and_every_question_its_answer() -> None:
    assert {*backend._ANSWERS, PauseQuestion} == kinds_of(Question)
    assert set(protocol._ACTIONS) == kinds_of(Event) - kinds_of(Question)


def test_what_is_neither_action_nor_question_is_taken_for_none(place: Place) -> None:
    client = place.connect()
    with pytest.raises(TypeError, match="no action for Event"):
        client.protocol._run([Event()])


# Answers


def test_ten_thousand_pipelined_commands_whose_answers_are_there_already_do_not_recurse(place: Place) -> None:
    place.policy.answers["rcpt"] = lambda: succeed(CONTINUE)
    client = place.connect()
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\n")
    lines = b"".join(b"RCPT TO:<r%d@example.test>\r\n" % number for number in range(10_000))
    assert client.send(lines) == ["250 2.1.5 Recipient OK"] * 10_000


def test_ten_thousand_commands_behind_a_late_answer_do_not_recurse(place: Place) -> None:
    first: Deferred[object] = Deferred()
    answers = [first]

    async def coroutine() -> object:
        return CONTINUE

    place.policy.answers["rcpt"] = lambda: answers.pop() if answers else coroutine()
    client = place.connect()
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\n")
    lines = b"".join(b"RCPT TO:<r%d@example.test>\r\n" % number for number in range(10_000))
    assert client.send(lines) == []
    first.callback(Reject("no such mailbox"))
    assert client.said() == ["550 5.7.1 no such mailbox", *["250 2.1.5 Recipient OK"] * 9_999]


def test_an_answer_that_comes_when_the_client_is_gone_is_nobodys(
    place: Place, events: list[LogEvent]
) -> None:
    late: Deferred[object] = Deferred(lambda _: None)
    place.policy.answers["rcpt"] = late
    client = place.connect()
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<b@example.test>\r\nNOOP\r\n")
    client.said()
    client.lose()
    assert not place.registry.connections
    assert place.policy.told == ["refused", "disconnected"]
    if not late.called:
        late.callback(CONTINUE)
    assert client.said() == []
    assert errors(events) == []
    place.clock.advance(10)
    assert not place.clock.getDelayedCalls()


def test_input_behind_an_open_question_is_read_up_to_a_bound_and_then_waits(place: Place) -> None:
    answer: Deferred[object] = Deferred()
    place.policy.answers["rcpt"] = answer
    client = place.connect()
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<b@example.test>\r\n")
    noop = b"NOOP " + b"x" * 1017 + b"\r\n"
    assert len(noop) == 1024
    client.send(noop * 4)
    assert client.transport.producerState == "producing"
    client.send(b"\r\n")
    assert client.transport.producerState == "paused"
    assert MOST_WAITING_INPUT == 4 * 1024
    assert client.transport.bufferSize == READ_COMMANDS == 16 * 1024
    answer.callback(CONTINUE)
    assert client.transport.producerState == "producing"
    assert client.said()[:2] == ["250 2.1.5 Recipient OK", "250 2.0.0 OK"]


def test_a_client_that_sends_on_although_nobody_reads_is_ended(place: Place) -> None:
    place.policy.answers["rcpt"] = Deferred()
    client = place.connect()
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<b@example.test>\r\n")
    client.said()
    for _ in range(17):
        client.protocol.dataReceived(b"NOOP\r\n" * 11_000)
    assert client.said() == ["421 4.7.0 Too much input without waiting for replies"]
    assert client.transport.disconnecting
    assert client.send(b"NOOP\r\n") == []


def test_no_input_is_read_after_the_close(place: Place) -> None:
    client = place.connect()
    client.said()
    assert client.send(b"QUIT\r\nEHLO client.test\r\n") == ["221 2.0.0 mx.test closing connection"]
    assert client.send(b"EHLO client.test\r\n") == []
    assert place.policy.asked == ["connect"]


# A client that closes its half


@pytest.mark.parametrize("behind", [b"", b"RCPT TO:<b@example.test>\r\nQUIT\r\n"])
def test_a_client_that_has_closed_its_half_is_answered_all_it_asked(place: Place, behind: bytes) -> None:
    answer: Deferred[object] = Deferred()
    place.policy.answers["mail"] = answer
    client = place.connect()
    client.send(b"EHLO client.test\r\n")
    client.said()
    client.send(b"MAIL FROM:<a@client.test>\r\n" + behind)
    client.protocol.readConnectionLost()
    assert client.said() == []
    assert not client.transport.disconnecting
    answer.callback(CONTINUE)
    assert [line[:3] for line in client.said()] == ["250"] + (["250", "221"] if behind else [])
    assert client.transport.disconnecting


def test_a_client_that_closes_while_nothing_is_to_be_said_is_let_go(place: Place) -> None:
    client = place.connect()
    client.said()
    client.protocol.readConnectionLost()
    assert client.transport.disconnecting
    inside = place.connect()
    inside.envelope()
    inside.send(b"Subject: x\r\n")
    inside.protocol.readConnectionLost()
    assert inside.transport.disconnecting
    inside.lose()
    assert place.policy.told[-2:] == ["refused", "disconnected"]


# Drain


def test_a_drain_says_421_to_the_idle_at_once(place: Place) -> None:
    client = place.connect()
    client.said()
    place.registry.drain()
    assert client.said() == [SHUTTING_DOWN]
    assert client.transport.disconnecting


def test_a_drain_waits_for_the_answer_to_an_open_question(place: Place) -> None:
    answer: Deferred[object] = Deferred()
    place.policy.answers["mail"] = answer
    client = place.connect()
    client.send(b"EHLO client.test\r\n")
    client.said()
    client.send(b"MAIL FROM:<a@client.test>\r\n")
    place.registry.drain()
    assert client.said() == []
    answer.callback(CONTINUE)
    assert client.said() == ["250 2.1.0 Sender OK", SHUTTING_DOWN]
    assert place.policy.told == ["refused"]


def test_a_drain_while_policies_hang_ends_with_their_timeout(place: Place) -> None:
    place.policy.answers["mail"] = Deferred
    client = place.connect()
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\n")
    client.said()
    place.registry.drain()
    place.pass_time(6)
    said = client.said()
    assert [line[:3] for line in said] == ["451", "421"], said


@ensureDeferred
async def test_a_drain_lets_a_message_finish(place: Place) -> None:
    client = place.connect()
    client.envelope()
    client.send(b"Subject: x\r\n")
    place.registry.drain()
    assert client.said() == []
    client.send(b"\r\nx\r\n.\r\n")
    place.registry.drain()
    said = await reply_of(client)
    assert "queued as" in said[0]
    assert said[1:] == [SHUTTING_DOWN]
    assert place.policy.told == ["committed"]


def test_a_drain_during_a_handshake_asks_nobody_any_more(place: Place) -> None:
    place.listener = replace(place.listener, tls=ListenerTLS.IMPLICIT)
    client = place.connect()
    place.registry.drain()
    assert client.transport.disconnecting
    client.handshake()
    assert place.policy.asked == []
    client.lose()
    assert not place.registry.connections


def test_a_drain_during_the_handshake_of_starttls_says_nothing_into_it(place: Place) -> None:
    client = place.connect()
    client.send(b"EHLO client.test\r\n")
    client.said()
    client.send(b"STARTTLS\r\n")
    client.said()
    place.registry.drain()
    assert client.said() == []
    assert client.transport.disconnecting


def test_a_drain_is_over_when_the_last_connection_is_gone(place: Place) -> None:
    clients = [place.connect() for _ in range(3)]
    place.registry.drain()
    over: list[bool] = []
    place.registry.call_when_empty(lambda: over.append(True))
    for client in clients:
        assert over == []
        client.lose()
    assert over == [True]


def test_a_client_that_comes_during_a_drain_gets_421(place: Place) -> None:
    place.registry.drain()
    client = place.connect()
    assert isinstance(client.protocol, RefusalProtocol)
    assert client.said() == [SHUTTING_DOWN]
    assert not place.registry.connections


# Too much


def test_one_address_that_stalls_its_handshakes_does_not_take_everybodys_place(place: Place) -> None:
    place.listener = replace(place.listener, tls=ListenerTLS.IMPLICIT)
    place.registry.max_connections_per_ip = 3
    stalling = [place.connect(f"2001:db8:1:2::{number:x}") for number in range(1, 6)]
    assert [isinstance(client.protocol, RefusalProtocol) for client in stalling] == [False] * 3 + [True] * 2
    assert stalling[-1].said() == []  # no plain text where a handshake is expected
    assert stalling[-1].transport.disconnecting
    assert place.counted.refused == [("mx", "max_connections_per_ip")] * 2
    other = place.connect("2001:db8:1:3::1")
    assert other.handshake() == ["220 mx.test ESMTP Elemta"]
    # Whose handshake is done is the limits' affair.
    stalling[0].handshake()
    assert not isinstance(place.connect("2001:db8:1:2::9").protocol, RefusalProtocol)
    stalling[1].lose()
    assert not isinstance(place.connect("2001:db8:1:2::9").protocol, RefusalProtocol)
    assert isinstance(place.connect("2001:db8:1:2::9").protocol, RefusalProtocol)


def test_over_max_connections_a_client_is_told_421_and_takes_no_place(place: Place) -> None:
    place.registry.max_connections = 2
    first, _, third = (place.connect() for _ in range(3))
    assert third.said() == ["421 4.7.0 Too many connections, try again later"]
    assert third.transport.disconnecting
    first.lose()
    assert place.connect().said() == ["220 mx.test ESMTP Elemta"]


@pytest.mark.parametrize("start", [b"DATA\r\n", b"BDAT 999999999 LAST\r\n"])
def test_who_sends_far_too_much_can_read_why_before_the_connection_is_gone(
    place: Place, start: bytes
) -> None:
    client = place.connect()
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<b@example.test>\r\n")
    client.said()
    said = client.send(start)
    block = BLOCK * 1024
    for _ in range(81):
        said += client.send(block)
    assert said[-1] == "552 5.3.4 Message size exceeds fixed limit"
    assert len(said) <= 2
    assert client.transport.half_closed
    assert not client.transport.disconnecting
    assert client.send(block) == []
    place.pass_time(CLOSING_SECONDS)
    assert client.transport.aborted


# The disk


@ensureDeferred
async def test_a_disk_that_is_behind_stops_the_reading_until_it_is_not(place: Place, disk: StuckDisk) -> None:
    client = place.connect()
    client.envelope()
    disk.writes.clear()
    sent = 0
    while client.transport.producerState == "producing" and sent < 64 * 1024 * 1024:
        client.protocol.dataReceived(BLOCK * 64)
        sent += 64 * len(BLOCK)
    assert client.transport.producerState == "paused"
    assert sent < 4 * 1024 * 1024
    # It is not the client's fault, and not for ever either.
    place.pass_time(700)
    assert client.said() == []
    disk.writes.set()
    await until(lambda: client.transport.producerState == "producing")
    client.protocol.dataReceived(b".\r\n")
    assert "queued as" in (await reply_of(client))[0]


@ensureDeferred
async def test_a_client_that_leaves_while_the_disk_is_behind_leaves_nothing(
    place: Place, disk: StuckDisk, events: list[LogEvent]
) -> None:
    client = place.connect()
    client.envelope()
    disk.writes.clear()
    client.protocol.dataReceived(BLOCK * 2048)
    assert client.transport.producerState == "paused"
    client.lose()
    disk.writes.set()
    await until(lambda: len(place.policy.told) >= 2 and not place.registry.connections)
    assert (await place.spool.stats()).total == 0
    assert errors(events) == []
    assert place.policy.told == ["refused", "disconnected"]


@pytest.mark.parametrize("asks", [True, False])
@ensureDeferred
async def test_a_client_that_leaves_behind_its_dot_while_the_disk_is_behind_is_no_trouble(
    place: Place, disk: StuckDisk, events: list[LogEvent], asks: bool
) -> None:
    if not asks:
        place.chain_is_empty = True
    client = place.connect()
    client.envelope()
    disk.writes.clear()
    client.protocol.dataReceived(BLOCK * 512 + b".\r\n")
    client.lose()
    disk.writes.set()
    await deferLater(reactor, 0.05)
    assert errors(events) == []
    assert (await place.spool.stats()).total == 0


@ensureDeferred
async def test_a_client_that_leaves_during_the_commit_has_sent_its_message(place: Place) -> None:
    client = place.connect()
    client.envelope()
    client.send(MESSAGE)
    client.lose()
    await until(lambda: len(place.policy.told) >= 2 and place.spool.messages[MessageState.ACTIVE])
    assert (await place.spool.stats()).total == 1
    assert place.policy.told == ["committed", "disconnected"]


@ensureDeferred
async def test_a_failing_disk_is_451_and_the_session_goes_on(place: Place, disk: StuckDisk) -> None:
    client = place.connect()
    client.envelope()
    disk.fail("fdatasync")
    client.protocol.dataReceived(BLOCK * 512 + b".\r\n")
    assert (await reply_of(client)) == ["451 4.3.0 Local trouble, try again later"]
    assert client.send(b"NOOP\r\n") == ["250 2.0.0 OK"]
    assert place.policy.told == ["refused"]


# What goes wrong on our side


def test_trouble_at_the_end_of_a_connection_does_not_keep_its_place(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = place.connect()

    def fails() -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(client.protocol._session, "lost", fails)
    with pytest.raises(RuntimeError):
        client.lose()
    monkeypatch.undo()
    assert not place.registry.connections
    assert len(place.counted.ended) == 1


def test_one_connections_trouble_is_not_everybodys_deadline(
    place: Place, events: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, other = place.connect(), place.connect()
    other.said()
    place.pass_time(299)
    monkeypatch.setattr(broken.protocol, "_deadlines", None)
    place.clock.advance(1)
    place.registry.check_deadlines()
    monkeypatch.undo()
    assert broken.transport.aborted
    assert other.said() == ["421 4.4.2 Timeout, closing connection"]
    assert [event["event"] for event in errors(events)] == ["session.timeout_failed"]
