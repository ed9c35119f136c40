"""The delivery service over a real spool: what leaves, what stays, and when it is tried again."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, globalLogPublisher

from elemta.address import NULL
from elemta.delivery import DeliveryScheduler, Retries
from elemta.delivery.maildir import Errors, MaildirJob, MaildirWriter
from elemta.delivery.routes import HoldRoute, MaildirRoute, NextHopRoute, Placeholder, Route
from elemta.envelope import MailParameters
from elemta.errors import SpoolError
from elemta.outcome import Status
from elemta.runtime import Runtime
from elemta.smtp.client import ClientTimeouts
from elemta.spool import MessageState
from tests.support.post import BODY, CLOSE, ENDLESS, STALL, TRACE, Hop, Post, files, reactor

ANY = frozenset("*")


def maildir(post: Post, domains: frozenset[str] = ANY) -> MaildirRoute:
    template = (f"{post.directory}/mail/", Placeholder.DOMAIN, "/", Placeholder.LOCAL)
    return MaildirRoute("maildir:", domains, template=template, create_mailboxes=True)


@ensureDeferred
async def test_a_new_message_lies_in_the_maildir_and_leaves_the_queue(post: Post) -> None:
    post.start(maildir(post))
    queue_id = await post.send("bob@example.com", "eve@example.com")
    await post.idle(2)
    assert await post.queued() == []
    paths = files(post.directory / "mail")
    assert [path.parts[-3] for path in paths] == ["bob", "eve"]
    assert all(path.read_bytes() == b"Return-Path: <sender@example.org>\r\n" + TRACE + BODY for path in paths)
    first = post.observer.outcomes[0]
    assert (first.queue_id, first.status, first.route) == (queue_id, Status.DELIVERED, "maildir:")
    assert first.next_hop == str(post.directory / "mail/example.com/bob")


@ensureDeferred
async def test_what_was_queued_before_the_start_is_delivered_after_it(post: Post) -> None:
    for i in range(5):
        await post.send(f"u{i}@example.com")
    post.start(maildir(post))
    await post.idle(5)
    assert await post.queued() == []
    assert len(files(post.directory / "mail")) == 5


@ensureDeferred
async def test_a_large_message_goes_through_a_file_and_arrives_whole(post: Post) -> None:
    body = b"Subject: big\r\n\r\n" + os.urandom(500_000).replace(b"\n", b"x").replace(b"\r", b"x") + b"\r\n"
    hop = Hop()
    post.start(await post.listen(hop))
    await post.send("bob@example.com", body=body)
    await post.idle()
    assert hop.messages == [TRACE + body]


@ensureDeferred
async def test_a_message_is_handed_to_a_next_hop_with_its_envelope(post: Post) -> None:
    hop = Hop()
    route = await post.listen(hop)
    post.start(route)
    await post.send("bob@example.com", "eve@example.net")
    await post.idle(2)
    assert hop.heard[:4] == [
        b"EHLO me.example",
        b"MAIL FROM:<sender@example.org>",
        b"RCPT TO:<bob@example.com>",
        b"RCPT TO:<eve@example.net>",
    ]
    assert hop.messages == [TRACE + BODY.replace(b"\r\n.", b"\r\n..")]
    assert await post.queued() == []
    outcome = post.observer.outcomes[0]
    assert (outcome.code, outcome.enhanced, outcome.next_hop) == (250, "2.0.0", route.next_hop)


@pytest.mark.parametrize("unix", [False, True])
@ensureDeferred
async def test_over_lmtp_each_recipient_has_an_outcome_of_its_own(post: Post, unix: bool) -> None:
    hop = Hop(
        {
            ".": b"250 2.0.0 stored\r\n452 4.2.2 over quota\r\n",
            "RCPT": [b"250 ok\r\n", b"550 5.1.1 no\r\n", b"250 ok\r\n"],
        },
        lmtp=True,
    )
    post.start(await post.listen(hop, Path("/tmp") / f"elemta-{os.getpid()}.lmtp" if unix else None))
    queue_id = await post.send("bob@example.com", "eve@example.com", "tom@example.com")
    await post.idle(3)
    assert [outcome.status.value for outcome in post.observer.outcomes] == ["delivered", "failed", "deferred"]
    record = await post.show(queue_id)
    assert record.message.state is MessageState.DEFERRED
    assert [str(recipient) for recipient in record.message.pending] == ["tom@example.com"]
    last = record.recipients[1].outcome
    assert last is not None
    assert (record.recipients[1].pending, last.enhanced) == (False, "5.1.1")
    (bounce,) = await post.bounces()
    assert "eve@example.com" in bounce
    assert "tom@example.com" not in bounce


SCRIPTS = [
    ({"": b"421 4.3.2 no\r\n"}, "deferred"),
    ({"": b"554 5.7.1 no\r\n"}, "deferred"),
    ({"": CLOSE}, "deferred"),
    ({"": b"999 what\r\n"}, "deferred"),
    ({"": b"250-endless\r\n" * 10_000}, "deferred"),
    ({"": b"x" * 1_000_000}, "deferred"),
    ({"EHLO": b"451 later\r\n"}, "deferred"),
    ({"EHLO": CLOSE}, "deferred"),
    ({"EHLO": ENDLESS}, "deferred"),
    ({"MAIL": b"450 later\r\n"}, "deferred"),
    ({"MAIL": b"550 5.7.1 never\r\n"}, "failed"),
    ({"MAIL": CLOSE}, "deferred"),
    ({"MAIL": ENDLESS}, "deferred"),
    ({"RCPT": b"450 4.2.0 later\r\n"}, "deferred"),
    ({"RCPT": b"550 5.1.1 never\r\n"}, "failed"),
    ({"RCPT": CLOSE}, "deferred"),
    ({"DATA": b"451 later\r\n"}, "deferred"),
    ({"DATA": b"554 5.6.0 never\r\n"}, "failed"),
    ({"DATA": CLOSE}, "deferred"),
    ({"DATA": b"250 what\r\n"}, "deferred"),
    ({".": b"452 4.3.1 full\r\n"}, "deferred"),
    ({".": b"550 5.7.1 spam\r\n"}, "failed"),
    ({".": CLOSE}, "deferred"),
    ({".": ENDLESS}, "deferred"),
    ({".": b"354 again?\r\n"}, "deferred"),
    ({"QUIT": CLOSE}, "delivered"),
    ({"QUIT": b"550 no\r\n"}, "delivered"),
    ({"QUIT": b"x" * 100_000}, "delivered"),
]


@pytest.mark.parametrize(
    "ehlo", [b"250 hop\r\n", b"250-hop\r\n250 PIPELINING\r\n"], ids=["plain", "pipelining"]
)
@pytest.mark.parametrize(
    ("script", "expected"), SCRIPTS, ids=[f"{k}-{v[:16]!r}-{e}" for s, e in SCRIPTS for k, v in s.items()]
)
@ensureDeferred
async def test_whatever_a_next_hop_says_the_message_is_delivered_or_still_there(
    post: Post, script: dict[str, bytes], expected: str, ehlo: bytes
) -> None:
    hop = Hop({"EHLO": ehlo, **script})
    post.start(await post.listen(hop))
    queue_id = await post.send("bob@example.com")
    await post.idle()
    if expected != "deferred":
        assert await post.queued() == []
        bounces = await post.bounces()
        assert len(bounces) == (expected == "failed")
        assert all("Final-Recipient: rfc822; bob@example.com" in bounce for bounce in bounces)
        return
    message = (await post.show(queue_id)).message
    assert [str(recipient) for recipient in message.pending] == ["bob@example.com"]
    assert message.state is MessageState.DEFERRED
    assert time.time() + 500 < message.next_attempt_at < time.time() + 3.0 * 3600
    assert await post.bounces() == []


@pytest.mark.parametrize(
    ("verb", "deadline"),
    [("", "greeting"), ("EHLO", "hello"), ("MAIL", "mail"), ("RCPT", "rcpt"), ("DATA", "data"), (".", "end")],
)
@ensureDeferred
async def test_a_next_hop_that_stalls_at_any_point_defers(post: Post, verb: str, deadline: str) -> None:
    post.settings = replace(post.settings, deadlines=ClientTimeouts(**{deadline: 0.05}))
    post.start(await post.listen(Hop({verb: STALL})))
    queue_id = await post.send("bob@example.com")
    await post.idle()
    assert (await post.show(queue_id)).message.state is MessageState.DEFERRED
    assert "no progress within 0.05 s" in post.observer.outcomes[0].text


@ensureDeferred
async def test_one_refused_recipient_of_three_does_not_hold_up_the_others(post: Post) -> None:
    hop = Hop({"RCPT": [b"250 ok\r\n", b"550 5.1.1 no such user\r\n", b"250 ok\r\n"]})
    post.start(await post.listen(hop))
    queue_id = await post.send("bob@example.com", "eve@example.com", "tom@example.com")
    await post.idle(3)
    assert await post.queued() == []
    (bounce,) = await post.bounces()
    assert "eve@example.com" in bounce
    assert "bob@example.com" not in bounce
    assert queue_id in bounce
    assert len(hop.messages) == 1


@ensureDeferred
async def test_a_recipient_that_failed_is_told_of_at_once_while_others_are_deferred(post: Post) -> None:
    hop = Hop({"RCPT": [b"550 5.1.1 no\r\n", b"450 later\r\n", b"250 ok\r\n"]})
    post.settings = replace(post.settings, retries=Retries((0.01,)))
    post.start(await post.listen(hop))
    await post.send("bob@example.com", "eve@example.com")
    await post.idle(3)
    assert await post.queued() == []
    (bounce,) = await post.bounces()
    assert "bob@example.com" in bounce
    assert "eve@example.com" not in bounce
    assert [str(outcome.recipient) for outcome in post.observer.outcomes] == [
        "bob@example.com",
        "eve@example.com",
        "eve@example.com",
    ]


@ensureDeferred
async def test_a_deferred_message_is_tried_again_and_a_released_one_too(post: Post) -> None:
    hop = Hop({"MAIL": [b"450 later\r\n", b"550 no\r\n", b"250 ok\r\n"]})
    post.sender = NULL  # no notice can be sent, so it is kept
    post.settings = replace(post.settings, retries=Retries((0.05,)), poll=60.0)
    post.start(await post.listen(hop))
    queue_id = await post.send("bob@example.com")
    await post.idle(2)
    assert (await post.show(queue_id)).message.state is MessageState.HOLD
    await post.spool.release(queue_id)
    await post.idle(3)
    assert await post.spool.list() == []


@ensureDeferred
async def test_a_message_that_is_too_old_is_returned_after_its_last_attempt(post: Post) -> None:
    post.settings = replace(post.settings, retries=Retries((60.0,), expire=100.0))
    post.start(await post.listen(Hop({"MAIL": b"450 4.2.0 later\r\n"})))
    await post.send("bob@example.com", received_at=time.time() - 200)
    await post.idle()
    assert await post.queued() == []
    (bounce,) = await post.bounces()
    assert "Status: 5.4.7" in bounce
    assert "450 4.2.0 later" in bounce


@ensureDeferred
async def test_a_dead_next_hop_costs_few_attempts_however_much_mail_waits_for_it(post: Post) -> None:
    hop = Hop()
    route = await post.listen(hop)
    await post._ports.pop().stopListening()
    post.start(route)
    queue_ids = [await post.send("bob@example.com") for _ in range(20)]
    await post.idle()
    await deferLater(reactor, 0.3)
    assert 1 <= len(post.observer.outcomes) <= 2
    assert all("no connection to 127.0.0.1" in outcome.text for outcome in post.observer.outcomes)
    attempts = [(await post.show(queue_id)).message.attempts for queue_id in queue_ids]
    assert sum(attempts) == len(post.observer.outcomes)


@pytest.mark.parametrize("route", [HoldRoute("hold:", ANY)])
@ensureDeferred
async def test_what_a_route_holds_stays_visibly_in_the_queue(post: Post, route: Route) -> None:
    post.start(route)
    queue_id = await post.send("bob@example.com")
    message = (await post.reached(queue_id, MessageState.HOLD)).message
    assert message.hold_reason
    assert len(message.pending) == 1


@ensureDeferred
async def test_each_recipient_takes_its_own_route(post: Post) -> None:
    hop = Hop()
    smtp = replace(await post.listen(hop), domains=frozenset({"hop.example"}))
    post.start(smtp, maildir(post, frozenset({"local.example"})), HoldRoute("hold:", ANY))
    queue_id = await post.send("a@hop.example", "b@local.example", "c@hop.example", "d@kept.example")
    await post.idle(3)
    assert len(hop.messages) == 1
    assert len(files(post.directory / "mail")) == 1
    message = (await post.show(queue_id)).message
    assert (message.state, [str(recipient) for recipient in message.pending]) == (
        MessageState.HOLD,
        ["d@kept.example"],
    )


@ensureDeferred
async def test_many_recipients_go_in_transactions_of_a_hundred(post: Post) -> None:
    hop = Hop()
    post.start(await post.listen(hop))
    await post.send(*[f"u{i}@example.com" for i in range(250)])
    await post.idle(250)
    assert len(hop.messages) == 3
    assert sorted(line for line in hop.heard if line.startswith(b"RCPT")) == sorted(
        b"RCPT TO:<u%d@example.com>" % i for i in range(250)
    )


@ensureDeferred
async def test_no_more_connections_than_the_route_allows_are_open(post: Post) -> None:
    hop = Hop()
    post.start(replace(await post.listen(hop), max_connections=3))
    for _ in range(30):
        await post.send("bob@example.com")
    await post.idle(30)
    assert len(hop.messages) == 30
    assert hop.most_sessions <= 3


@ensureDeferred
async def test_more_messages_than_memory_holds_are_all_delivered_once(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elemta.delivery.destination_table.MOST_WAITING", 10)
    post.settings = replace(post.settings, max_messages=4)
    post.start(maildir(post))
    sent = [post.send(f"u{i % 7}@example.com") for i in range(200)]
    for one in [Deferred.fromCoroutine(coroutine) for coroutine in sent]:
        await one
    await post.idle(200)
    await post.until(lambda: not post.spool.messages[MessageState.ACTIVE])
    assert len(files(post.directory / "mail")) == len(post.observer.outcomes) == 200


@ensureDeferred
async def test_a_maildir_that_cannot_be_written_defers(post: Post) -> None:
    (post.directory / "mail").write_bytes(b"a file where a directory should be")
    post.start(maildir(post))
    queue_id = await post.send("bob@example.com")
    await post.idle()
    assert (await post.show(queue_id)).message.state is MessageState.DEFERRED
    assert "the Maildir could not be written" in post.observer.outcomes[0].text


@ensureDeferred
async def test_smtputf8_is_needed_only_where_header_or_addresses_do(post: Post) -> None:
    post.start(await post.listen(Hop()))
    plain = await post.send("bob@example.com", parameters=MailParameters(smtputf8=True))
    await post.idle()
    assert plain not in await post.queued()
    needy = await post.send(
        "bob@example.com",
        body="Subject: Grüße\r\n\r\nhi\r\n".encode(),
        parameters=MailParameters(smtputf8=True),
    )
    await post.idle(2)
    assert needy not in await post.queued()
    (bounce,) = await post.bounces()
    assert "SMTPUTF8" in bounce


@ensureDeferred
async def test_new_routes_are_taken_from_the_next_attempt_on(post: Post) -> None:
    delivery = post.start(HoldRoute("hold:", ANY))
    queue_id = await post.send("bob@example.com")
    await post.reached(queue_id, MessageState.HOLD)
    delivery.reconfigure([maildir(post)], post.settings, post.observer.hooks)
    await post.spool.release(queue_id)
    await post.idle()
    assert await post.queued() == []


@ensureDeferred
async def test_a_stop_waits_for_what_is_under_way(post: Post) -> None:
    post.settings = replace(post.settings, deadlines=ClientTimeouts(end=0.2))
    hop = Hop({".": STALL})
    delivery = post.start(await post.listen(hop))
    queue_id = await post.send("bob@example.com")
    await post.until(lambda: hop.messages)
    await delivery.stopService()
    assert (await post.show(queue_id)).message.state is MessageState.DEFERRED


@ensureDeferred
async def test_what_is_cut_off_at_the_end_of_the_grace_stays_in_the_queue_as_it_was(post: Post) -> None:
    post.settings = replace(post.settings, grace=0.05)
    hop = Hop({"MAIL": STALL})
    delivery = post.start(await post.listen(hop))
    queue_id = await post.send("bob@example.com")
    await post.until(lambda: hop.heard[-1:] == [b"MAIL FROM:<sender@example.org>"])
    await delivery.stopService()
    message = (await post.show(queue_id)).message
    assert (message.state, message.attempts) == (MessageState.ACTIVE, 0)
    hop.script.clear()
    again = DeliveryScheduler(
        Runtime.of(reactor), post.spool, delivery.routes, post.settings, hooks=post.observer.hooks
    )
    post.delivery = again
    again.startService()
    await post.until(lambda: len(hop.messages) == 1 and not again.under_way)
    assert await post.queued() == []


@ensureDeferred
async def test_a_file_system_that_does_not_answer_keeps_nothing_from_stopping(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elemta.delivery.scheduler._LAST_WAIT", 0.05)
    post.settings = replace(post.settings, grace=0.05)
    begun, answers = threading.Event(), threading.Event()

    def hang(writer: MaildirWriter, jobs: Sequence[MaildirJob]) -> list[Errors]:
        begun.set()
        answers.wait(60)
        return [[OSError(errno.EIO, "late")] for _ in jobs]

    monkeypatch.setattr(MaildirWriter, "write", hang)
    delivery = post.start(maildir(post))
    queue_id = await post.send("bob@example.com")
    await post.until(begun.is_set)
    try:
        await delivery.stopService()
        message = (await post.show(queue_id)).message
        assert (message.state, message.attempts) == (MessageState.ACTIVE, 0)
    finally:
        answers.set()
    # The late answer comes to nothing.
    await post.until(lambda: not delivery.under_way)


@ensureDeferred
async def test_after_the_stop_nothing_new_is_started(post: Post) -> None:
    delivery = post.start(maildir(post))
    await delivery.stopService()
    queue_id = await post.send("bob@example.com")
    assert await post.queued() == [queue_id]
    assert not delivery.under_way


@ensureDeferred
async def test_every_attempt_is_logged_with_its_ids_and_the_reply(post: Post) -> None:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        post.start(await post.listen(Hop({"RCPT": b"450 4.2.1 greylisted\r\n"})))
        queue_id = await post.send("bob@example.com")
        await post.idle()
    finally:
        globalLogPublisher.removeObserver(events.append)
    (event,) = [event for event in events if event.get("event") == "delivery.attempted"]
    assert (event["queue_id"], event["session_id"], event["recipient"]) == (queue_id, "S1", "bob@example.com")
    assert (event["status"], event["code"], event["enhanced"]) == ("deferred", 450, "4.2.1")
    assert event["reply"] == "greylisted"


@ensureDeferred
async def test_an_attempt_that_cannot_be_recorded_is_not_made_again_and_again(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    post.settings = replace(post.settings, poll=0.01)
    monkeypatch.setattr(post.spool, "settle", lambda *_, **__: fail(SpoolError("the disk says no")))
    hop = Hop()
    delivery = post.start(await post.listen(hop))
    queue_id = await post.send("bob@example.com")
    await post.idle()
    looks = 0
    due = post.spool.due

    async def counted(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        return await due(*args)

    monkeypatch.setattr(post.spool, "due", counted)
    while looks < 3:
        await post.spool.retry(queue_id)
        await deferLater(reactor, 0.02)
    assert len(hop.messages) == 1
    assert not delivery.under_way
    assert await post.queued() == [queue_id]


def test_the_next_hop_of_a_unix_socket_is_its_path() -> None:
    assert NextHopRoute("lmtp+unix:///x", ANY, path="/x", lmtp=True).next_hop == "/x"
