"""Deadlines as a client meets them: a protocol, its session and a clock that a test moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import LogEvent

from elemta.config import ListenerTLS
from elemta.net.timeouts import ANSWER_SECONDS, CLOSING_SECONDS, HANDSHAKE_SECONDS, UNREAD_SECONDS
from elemta.policy import CONTINUE, Reject
from elemta.spool import MessageState
from tests.net.conftest import BLOCK, Place, StuckDisk, errors, reply_of
from tests.support.waiting import until

TIMEOUT = "421 4.4.2 Timeout, closing connection"


def test_a_client_that_says_nothing_is_told_421_after_its_time(place: Place) -> None:
    client = place.connect()
    assert client.said() == ["220 mx.test ESMTP Elemta"]
    place.pass_time(299)
    assert client.said() == []
    place.pass_time(1)
    assert client.said() == [TIMEOUT]
    assert client.transport.disconnecting


def test_one_octet_a_minute_does_not_make_a_command_line_later(place: Place) -> None:
    client = place.connect()
    client.said()
    for _ in range(4):
        place.pass_time(60)
        assert client.send(b"N") == []
    place.pass_time(60)
    assert client.said() == [TIMEOUT]


def test_a_client_that_does_not_close_after_its_421_is_aborted(place: Place) -> None:
    client = place.connect()
    place.pass_time(300)
    assert not client.transport.aborted
    place.pass_time(CLOSING_SECONDS)
    assert client.transport.aborted


def test_a_client_that_stalls_the_handshake_of_starttls_is_aborted_in_seconds(place: Place) -> None:
    client = place.connect()
    client.send(b"EHLO client.test\r\n")
    assert client.send(b"STARTTLS\r\n") == ["220 2.0.0 Ready to start TLS"]
    assert client.transport.tls
    place.pass_time(HANDSHAKE_SECONDS - 1)
    assert not client.transport.aborted
    place.pass_time(1)
    assert client.transport.aborted
    assert client.said() == []
    client.lose()
    assert place.counted.handshakes == ["failed"]


def test_after_the_handshake_of_starttls_a_client_has_the_time_of_a_command(place: Place) -> None:
    client = place.connect()
    client.send(b"EHLO client.test\r\n")
    client.send(b"STARTTLS\r\n")
    place.pass_time(HANDSHAKE_SECONDS - 1)
    assert client.handshake() == []
    place.pass_time(299)
    assert client.said() == []
    place.pass_time(1)
    assert client.said() == [TIMEOUT]
    client.lose()
    assert place.counted.handshakes == ["TLSv1.3"]


def test_a_client_that_stalls_an_implicit_handshake_is_aborted_in_seconds(place: Place) -> None:
    place.listener = replace(place.listener, tls=ListenerTLS.IMPLICIT)
    client = place.connect()
    place.pass_time(HANDSHAKE_SECONDS)
    assert client.transport.aborted
    assert client.said() == []
    client.lose()
    assert place.counted.handshakes == ["failed"]
    assert place.policy.asked == []


def test_a_policy_that_takes_its_time_after_an_implicit_handshake_is_waited_for(place: Place) -> None:
    place.listener = replace(place.listener, tls=ListenerTLS.IMPLICIT)
    place.policy_timeout = 100.0
    answer: Deferred[object] = Deferred()
    place.policy.answers["connect"] = answer
    client = place.connect()
    assert client.handshake() == []
    place.pass_time(90)
    assert not client.transport.aborted
    answer.callback(CONTINUE)
    assert client.said() == ["220 mx.test ESMTP Elemta"]
    client.lose()
    assert place.counted.handshakes == ["TLSv1.3"]


def test_a_message_below_the_pace_ends_with_421_and_nothing_is_queued(place: Place) -> None:
    client = place.connect()
    assert client.envelope()[-1].startswith("354")
    for _ in range(11):
        place.pass_time(1)
        assert client.send(b"x") == []
    place.pass_time(1)
    assert client.said() == [TIMEOUT]
    assert place.policy.told == ["refused"]


def test_a_small_data_timeout_ends_pauses_and_no_slow_message(place: Place) -> None:
    place.server = replace(place.server, data_timeout=3.0)
    client = place.connect()
    assert client.envelope()[-1].startswith("354")
    for _ in range(300):
        place.pass_time(1)
        assert client.send(b"x" * 508 + b"\r\n") == []
    place.pass_time(4)
    assert client.said() == [TIMEOUT]


def test_a_chunk_that_is_only_read_to_be_refused_has_the_time_of_a_message(place: Place) -> None:
    place.policy.answers["data"] = Reject("not today")
    client = place.connect()
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<b@example.test>\r\n")
    assert client.send(b"BDAT 1000000 LAST\r\n") == []
    for _ in range(10):
        place.pass_time(60)
        assert client.send(b"x" * 100_000) in ([], ["550 5.7.1 not today"])
    assert client.send(b"NOOP\r\n") == ["250 2.0.0 OK"]


def test_a_client_that_does_not_read_is_aborted_after_minutes(place: Place) -> None:
    client = place.connect()
    client.transport.producer.pauseProducing()
    assert client.transport.producerState == "paused"
    place.pass_time(UNREAD_SECONDS - 1)
    assert not client.transport.aborted
    place.pass_time(1)
    assert client.transport.aborted


def test_a_client_that_reads_again_in_time_goes_on(place: Place) -> None:
    client = place.connect()
    client.said()
    client.transport.producer.pauseProducing()
    place.pass_time(UNREAD_SECONDS - 1)
    client.transport.producer.resumeProducing()
    assert client.transport.producerState == "producing"
    place.pass_time(200)
    assert client.send(b"NOOP\r\n") == ["250 2.0.0 OK"]


def test_what_nobody_answers_in_time_is_451_and_its_late_answer_is_nobodys(place: Place) -> None:
    place.policy_timeout = 3600.0
    never: Deferred[object] = Deferred(lambda _: None)
    place.policy.answers["mail"] = never
    client = place.connect()
    client.send(b"EHLO client.test\r\n")
    assert client.send(b"MAIL FROM:<a@client.test>\r\n") == []
    place.pass_time(ANSWER_SECONDS)
    assert client.said() == ["451 4.3.0 Local trouble, try again later"]
    del place.policy.answers["mail"]
    assert client.send(b"MAIL FROM:<a@client.test>\r\n") == ["250 2.1.0 Sender OK"]
    if not never.called:
        never.callback(Reject("too late"))
    assert client.said() == []
    assert client.send(b"RCPT TO:<b@example.test>\r\n") == ["250 2.1.5 Recipient OK"]


@pytest.mark.parametrize("stage", ["connect", "helo", "mail", "rcpt", "data", "message"])
def test_a_policy_that_hangs_at_any_stage_costs_its_timeout_and_no_more(place: Place, stage: str) -> None:
    place.policy.answers[stage] = Deferred
    client = place.connect()
    if stage != "connect":
        client.envelope()
        client.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
    client.said()
    place.pass_time(6)
    said = client.said()
    assert said[0][:3] in ("421", "451"), said
    assert not client.transport.aborted


@ensureDeferred
async def test_a_message_that_policies_pass_too_late_is_not_committed_and_spoils_no_other(
    place: Place, events: list[LogEvent]
) -> None:
    place.policy_timeout = 3600.0
    late: Deferred[object] = Deferred(lambda _: None)
    place.policy.answers["message"] = late
    client = place.connect()
    client.envelope()
    assert client.send(b"Subject: first\r\n\r\nx\r\n.\r\n") == []
    place.pass_time(ANSWER_SECONDS)
    assert client.said() == ["451 4.3.0 Local trouble, try again later"]
    del place.policy.answers["message"]
    client.envelope()
    client.send(b"Subject: second\r\n")
    if not late.called:
        late.callback(CONTINUE)
    client.send(b"\r\nx\r\n.\r\n")
    assert "queued as" in (await reply_of(client))[0]
    (message,) = await place.spool.list()
    with await place.spool.open_content(message.queue_id) as content:
        assert b"Subject: second" in content.read()
    assert place.policy.told == ["refused", "committed"]
    assert errors(events) == []


@ensureDeferred
async def test_a_commit_that_takes_too_long_is_451_and_stays_charged(place: Place, disk: StuckDisk) -> None:
    client = place.connect()
    client.envelope()
    client.protocol.dataReceived(BLOCK * 512)
    await deferLater(reactor, 0.5)
    disk.syncs.clear()
    assert client.send(b".\r\n") == []
    await deferLater(reactor, 0.5)
    place.pass_time(ANSWER_SECONDS)
    assert client.said() == ["451 4.3.0 Local trouble, try again later"]
    assert place.policy.told == ["committed"]
    disk.syncs.set()
    assert client.send(b"NOOP\r\n") == ["250 2.0.0 OK"]
    await until(lambda: place.spool.messages[MessageState.ACTIVE] == 1)
    assert len(await place.spool.list()) == 1
    assert client.said() == []


def test_the_time_in_which_the_daemon_stood_still_is_no_clients(place: Place) -> None:
    client, silent = place.connect(), place.connect()
    client.said(), silent.said()
    place.pass_time(200)
    place.clock.advance(900)
    place.registry.check_deadlines()
    assert client.said() == silent.said() == []
    assert client.send(b"NOOP\r\n") == ["250 2.0.0 OK"]
    place.pass_time(98)
    assert silent.said() == []
    place.pass_time(2)
    assert silent.said() == [TIMEOUT]
    assert client.said() == []
