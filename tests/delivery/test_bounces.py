"""Which notices are sent: a table of decisions; and the DSN that the real spool has afterwards."""

from __future__ import annotations

import email
import email.policy
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from email.errors import CharsetError
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred
from twisted.internet.defer import CancelledError
from twisted.logger import LogEvent

from elemta.address import NULL, Address
from elemta.delivery.bounces import notices_for, submit, undeliverable_reason
from elemta.envelope import BodyType, Envelope, MailParameters, Notify, Recipient, Return
from elemta.errors import SpoolError
from elemta.message.notice import DsnAction, Notice, NoticeKind, NoticeSettings
from elemta.outcome import Outcome, Status
from elemta.spool import MessageState, QueuedMessage, Spool
from tests.support.generators import generator
from tests.support.post import Post

ROOT = Path(__file__).parents[2]
RECEIVED = 1_763_862_000.0
HOUR = 3600.0
DAY = 24 * HOUR
EARLY, LATE, OVER = RECEIVED + 60, RECEIVED + 4 * HOUR, RECEIVED + 5 * DAY
ALICE = Address("alice", "example.org")
SETTINGS = NoticeSettings("mx.example.org")


def person(name: str, notify: Notify | None = None, orcpt: str | None = None) -> Recipient:
    return Recipient(Address(name, "example.com"), notify, orcpt)


def message(
    *recipients: Recipient, sender: Address = ALICE, size: int = 1000, **parameters: Any
) -> QueuedMessage:
    envelope = Envelope("4A7BC", sender, recipients, RECEIVED, size, MailParameters(**parameters))
    return QueuedMessage(envelope, MessageState.ACTIVE, 0, recipients, RECEIVED)


def outcome(
    recipient: Recipient | str, status: Status, code: int = 0, enhanced: str = "", text: str = "", **more: Any
) -> Outcome:
    who = person(recipient) if isinstance(recipient, str) else recipient
    return Outcome(
        "4A7BC", who.address, status, text, "mx:", "mail.example.com:25", EARLY, 0.5, code, enhanced, **more
    )


def refused(who: Recipient | str) -> Outcome:
    return outcome(who, Status.FAILED, 550, "5.1.1", "no such user")


def deferred(who: Recipient | str) -> Outcome:
    return outcome(who, Status.DEFERRED, 452, "4.2.2", "mailbox full")


def delivered(who: Recipient | str, **how: bool) -> Outcome:
    return outcome(who, Status.DELIVERED, 250, "2.0.0", "ok", **how)


def decided(
    queued: QueuedMessage, outcomes: Sequence[Outcome], now: float = EARLY, **how: Any
) -> tuple[Notice, ...]:
    warned = how.pop("warned", ())
    settings = replace(SETTINGS, **how)
    envelope, people = queued.envelope, queued.pending
    return notices_for(envelope, people, outcomes, now=now, settings=settings, warned=warned)


def hold_reason(queued: QueuedMessage, outcomes: Sequence[Outcome], now: float = EARLY) -> str | None:
    return undeliverable_reason(queued.envelope, queued.pending, outcomes, expired=now >= OVER)


def actions(notices: Sequence[Notice]) -> list[DsnAction]:
    return [notice.action(outcome) for notice in notices for outcome in notice.outcomes]


# The table

OUTCOMES: dict[str, tuple[Any, float]] = {
    "failed": (refused, EARLY),
    "deferred": (deferred, EARLY),
    "deferred for long": (deferred, LATE),
    "deferred at the end": (deferred, OVER),
    "failed at the end": (refused, OVER),
    "final": (lambda who: delivered(who, final=True), EARLY),
    "relayed": (delivered, EARLY),
    "passed on": (lambda who: delivered(who, dsn_passed_on=True), EARLY),
    "passed on by LMTP": (lambda who: delivered(who, dsn_passed_on=True, final=True), EARLY),
}
ALL = Notify.SUCCESS | Notify.FAILURE | Notify.DELAY
# RFC 3461 §4.1
TABLE: dict[Notify | None, dict[str, DsnAction]] = {
    None: {
        "failed": DsnAction.FAILED,
        "deferred for long": DsnAction.DELAYED,
        "deferred at the end": DsnAction.FAILED,
        "failed at the end": DsnAction.FAILED,
    },
    Notify.NEVER: {},
    Notify.FAILURE: {
        "failed": DsnAction.FAILED,
        "deferred at the end": DsnAction.FAILED,
        "failed at the end": DsnAction.FAILED,
    },
    Notify.DELAY: {"deferred for long": DsnAction.DELAYED},
    Notify.SUCCESS: {"final": DsnAction.DELIVERED, "relayed": DsnAction.RELAYED},
    ALL: {
        "failed": DsnAction.FAILED,
        "deferred for long": DsnAction.DELAYED,
        "deferred at the end": DsnAction.FAILED,
        "failed at the end": DsnAction.FAILED,
        "final": DsnAction.DELIVERED,
        "relayed": DsnAction.RELAYED,
    },
}


def cases() -> Iterator[tuple[Notify | None, str, DsnAction | None]]:
    for notify, row in TABLE.items():
        for name in OUTCOMES:
            yield notify, name, row.get(name)


@pytest.mark.parametrize(("notify", "name", "action"), list(cases()))
def test_who_asked_for_it_is_told(notify: Notify | None, name: str, action: DsnAction | None) -> None:
    happened, now = OUTCOMES[name]
    bob = person("bob", notify)
    found = decided(message(bob), [happened(bob)], now)
    assert actions(found) == ([] if action is None else [action])
    assert hold_reason(message(bob), [happened(bob)], now) is None


@pytest.mark.parametrize("notify", TABLE)
@pytest.mark.parametrize("name", OUTCOMES)
def test_nobody_is_told_of_a_message_from_nobody(notify: Notify | None, name: str) -> None:
    happened, now = OUTCOMES[name]
    bob = person("bob", notify)
    about = message(bob, sender=NULL)
    assert decided(about, [happened(bob)], now) == ()
    fails = name in ("failed", "deferred at the end", "failed at the end")
    assert (hold_reason(about, [happened(bob)], now) is not None) is fails


def test_what_is_held_says_why() -> None:
    about = message(person("bob"), person("eve"), sender=NULL)
    assert hold_reason(about, [refused("bob"), deferred("eve")]) == (
        "undeliverable, and the sender <> gets no notice: bob@example.com 550 5.1.1 no such user"
    )


# More than one


def test_recipients_of_whom_the_same_is_to_be_said_share_a_notice() -> None:
    people = [person(name, ALL) for name in ("ann", "bob", "cat", "dan", "eve", "fay")]
    ann, bob, cat, dan, eve, fay = people
    outcomes = [
        refused(ann),
        deferred(bob),
        delivered(cat),
        refused(dan),
        deferred(eve),
        delivered(fay, final=True),
    ]
    found = decided(message(*people), outcomes, LATE)
    assert [(each.kind, [one.recipient.local for one in each.outcomes]) for each in found] == [
        (NoticeKind.FAILURE, ["ann", "dan"]),
        (NoticeKind.DELAY, ["bob", "eve"]),
        (NoticeKind.SUCCESS, ["cat", "fay"]),
    ]


def test_an_address_that_was_named_twice_has_both_its_wishes() -> None:
    quiet, loud = person("bob", Notify.NEVER), person("bob", None, "rfc822;b@example.net")
    found = decided(message(quiet, loud), [refused("bob"), refused("bob")])
    assert [recipient.orcpt for recipient in found[0].recipients] == ["rfc822;b@example.net"]


def test_of_a_recipient_that_is_not_pending_nothing_is_said() -> None:
    assert decided(message(person("bob")), [refused("eve")]) == ()


def test_a_delay_is_told_once() -> None:
    bob, eve = person("bob"), person("eve")
    found = decided(message(bob, eve), [deferred(bob), deferred(eve)], LATE + HOUR, warned={bob.address})
    assert [(each.kind, each.recipients) for each in found] == [(NoticeKind.DELAY, (eve,))]


def test_who_was_warned_is_told_of_the_failure_all_the_same() -> None:
    bob = person("bob")
    found = decided(message(bob), [deferred(bob)], OVER, warned={bob.address})
    assert [each.kind for each in found] == [NoticeKind.FAILURE]


def test_without_a_time_for_it_no_delay_is_told() -> None:
    assert decided(message(person("bob")), [deferred("bob")], OVER - 1, warn_after=0.0) == ()


def test_a_clock_that_was_set_back_tells_nothing_early() -> None:
    assert decided(message(person("bob")), [deferred("bob")], RECEIVED - DAY) == ()


# What a report says


def notice_of(happened: Outcome, now: float = EARLY, notify: Notify | None = ALL) -> Notice:
    (notice,) = decided(message(person("bob", notify)), [happened], now)
    return notice


def test_what_expired_has_its_own_status_and_the_last_answer() -> None:
    notice = notice_of(deferred("bob"), OVER)
    (last,) = notice.outcomes
    assert (notice.status(last), notice.has_expired(last)) == ("5.4.7", True)
    assert last == deferred("bob")


@pytest.mark.parametrize(
    ("happened", "now", "status"),
    [
        (refused("bob"), EARLY, "5.1.1"),
        (refused("bob"), OVER, "5.1.1"),
        (outcome("bob", Status.FAILED, 550), EARLY, "5.0.0"),
        (outcome("bob", Status.FAILED, 550, "5.1.1\r\nX: y"), EARLY, "5.0.0"),
        (outcome("bob", Status.FAILED, 521, "4.3.2"), EARLY, "5.0.0"),
        (outcome("bob", Status.DEFERRED, 554, ""), LATE, "4.0.0"),
        (outcome("bob", Status.DEFERRED, 0, "4.4.1"), LATE, "4.4.1"),
        (delivered("bob"), EARLY, "2.0.0"),
        (outcome("bob", Status.DELIVERED, 250, ""), EARLY, "2.0.0"),
    ],
)
def test_the_status_goes_with_what_is_reported(happened: Outcome, now: float, status: str) -> None:
    assert notice_of(happened, now).status(happened) == status


@pytest.mark.parametrize(
    ("ret", "size", "whole"),
    [
        (None, 50 * 1024, True),
        (None, 50 * 1024 + 1, False),
        (Return.FULL, 50 * 1024, True),
        (Return.FULL, 50 * 1024 + 1, False),
        (Return.FULL, 50 * 1024 * 1024, False),
        (Return.HEADERS, 100, False),
    ],
)
def test_a_failure_returns_what_was_asked_for_up_to_a_size(
    ret: Return | None, size: int, whole: bool
) -> None:
    (notice,) = decided(message(person("bob"), size=size, ret=ret), [refused("bob")])
    assert SETTINGS.returns_whole(notice) is whole


@pytest.mark.parametrize(("happened", "now"), [(deferred("bob"), LATE), (delivered("bob"), EARLY)])
def test_other_notices_return_the_header_only(happened: Outcome, now: float) -> None:
    (notice,) = decided(message(person("bob", ALL), ret=Return.FULL), [happened], now)
    assert not SETTINGS.returns_whole(notice)


STATUSES = st.sampled_from(list(Status))
WISHES = st.one_of(st.none(), st.integers(0, 7).map(Notify))


@given(
    people=st.lists(
        st.tuples(st.sampled_from("abc"), WISHES, STATUSES, st.booleans(), st.booleans()), max_size=6
    ),
    now=st.sampled_from([EARLY, LATE, OVER]),
    null=st.booleans(),
)
def test_everybody_gets_at_most_one_notice_and_only_what_was_asked_for(
    people: list[tuple[str, Notify | None, Status, bool, bool]], now: float, null: bool
) -> None:
    recipients = [person(name, notify) for name, notify, *_ in people]
    outcomes = [
        outcome(who, status, final=final, dsn_passed_on=passed)
        for who, (_, _, status, final, passed) in zip(recipients, people, strict=True)
    ]
    found = decided(message(*recipients, sender=NULL if null else ALICE), outcomes, now)
    told = [
        (each, who, what) for each in found for who, what in zip(each.recipients, each.outcomes, strict=True)
    ]
    assert len(told) <= len(people)
    assert not (null and told)
    assert len({each.kind for each in found}) == len(found)
    asked = {
        NoticeKind.FAILURE: Notify.FAILURE,
        NoticeKind.DELAY: Notify.DELAY,
        NoticeKind.SUCCESS: Notify.SUCCESS,
    }
    classes = {NoticeKind.FAILURE: "5", NoticeKind.DELAY: "4", NoticeKind.SUCCESS: "2"}
    for notice, who, what in told:
        wish, kind = who.notify, notice.kind
        assert who.address == what.recipient
        assert kind is not NoticeKind.SUCCESS if wish is None else asked[kind] in wish
        assert notice.status(what)[0] == classes[kind]


# Into the spool


ORIGINAL = b"Received: from a by b; now\r\nMessage-ID: <1@example.org>\r\nSubject: x\r\n\r\nhello\r\n"


def failure(**parameters: Any) -> Notice:
    return decided(message(person("bob"), **parameters), [refused("bob")])[0]


async def content(spool: Spool, queue_id: str) -> bytes:
    with await spool.open_content(queue_id) as opened:
        return opened.read()


@ensureDeferred
async def test_the_dsn_is_in_the_queue_from_nobody_to_the_sender(post: Post, events: list[LogEvent]) -> None:
    original = io.BytesIO(ORIGINAL)
    envelope = await submit(post.spool, failure(envid="E1", ret=Return.FULL), SETTINGS, original)
    assert original.closed
    record = await post.spool.show(envelope.queue_id)
    assert record.message.state is MessageState.ACTIVE
    stored = record.envelope
    # RFC 3461 §6.1
    assert stored.sender == NULL
    assert stored.recipients == (Recipient(ALICE, Notify.NEVER),)
    assert stored.parameters == MailParameters()
    assert stored.client.listener == "bounce"
    assert stored.received_at == EARLY
    raw = await content(post.spool, envelope.queue_id)
    assert len(raw) == stored.size
    dsn: Any = email.message_from_bytes(raw, policy=email.policy.default)
    assert dsn["Message-ID"] == f"<{envelope.queue_id}@mx.example.org>"
    assert [part.get_content_type() for part in dsn.iter_parts()] == [
        "text/plain",
        "message/delivery-status",
        "message/rfc822",
    ]
    assert ORIGINAL in raw
    (told,) = [event for event in events if event.get("event") == "bounce.queued"]
    assert (told["queue_id"], told["about"], told["kind"]) == (envelope.queue_id, "4A7BC", "failure")


@ensureDeferred
async def test_a_dsn_that_fails_leads_to_no_other(post: Post) -> None:
    envelope = await submit(post.spool, failure(), SETTINGS, io.BytesIO(ORIGINAL))
    queued = (await post.spool.show(envelope.queue_id)).message
    failed = [outcome(Recipient(ALICE), Status.FAILED, 550, "5.1.1", "no")]
    assert decided(queued, failed) == ()
    assert str(ALICE) in (hold_reason(queued, failed) or "")


@ensureDeferred
async def test_a_large_message_with_eight_bit_octets_comes_back_whole(post: Post) -> None:
    original = ORIGINAL + b"gr\xc3\xbc\xc3\x9fe " * 300_000 + b"\r\n"
    envelope = await submit(post.spool, failure(ret=Return.FULL), SETTINGS, io.BytesIO(original))
    assert envelope.parameters == MailParameters(body=BodyType.EIGHT_BIT)
    assert original in await content(post.spool, envelope.queue_id)


@ensureDeferred
async def test_an_internationalised_sender_is_answered_by_smtputf8(post: Post) -> None:
    sender = Address("josé", "exámple.org")
    envelope = await submit(post.spool, failure(sender=sender, smtputf8=True), SETTINGS, io.BytesIO(ORIGINAL))
    assert envelope.parameters == MailParameters(body=BodyType.EIGHT_BIT, smtputf8=True)
    assert envelope.recipients == (Recipient(sender, Notify.NEVER),)


@ensureDeferred
async def test_the_message_of_the_spool_can_be_returned(post: Post) -> None:
    first = await submit(post.spool, failure(), SETTINGS, io.BytesIO(ORIGINAL))
    second = await submit(post.spool, failure(), SETTINGS, await post.spool.open_content(first.queue_id))
    assert await content(post.spool, first.queue_id) in await content(post.spool, second.queue_id)


@ensureDeferred
async def test_a_notice_goes_out_without_a_message_that_can_not_be_read(post: Post) -> None:
    envelope = await submit(post.spool, failure(), SETTINGS, None)
    dsn: Any = email.message_from_bytes(
        await content(post.spool, envelope.queue_id), policy=email.policy.default
    )
    assert len(list(dsn.iter_parts())) == 2


class Broken(io.BytesIO):
    """A content that ends in an error, at its second or third reading."""

    def __init__(self, data: bytes, good: int) -> None:
        super().__init__(data)
        self.good = good

    def read(self, size: int | None = -1, /) -> bytes:
        self.good -= 1
        if self.good < 0:
            raise SpoolError("the body of a queued message is shorter than it was")
        return super().read(size)


@pytest.mark.parametrize("good", [0, 1, 4])
@ensureDeferred
async def test_a_notice_about_a_message_that_breaks_on_the_way_is_built_from_its_envelope(
    post: Post, good: int
) -> None:
    broken: BinaryIO = Broken(ORIGINAL + b"x" * 200_000, good)
    envelope = await submit(post.spool, failure(ret=Return.FULL), SETTINGS, broken)
    assert broken.closed
    dsn: Any = email.message_from_bytes(
        await content(post.spool, envelope.queue_id), policy=email.policy.default
    )
    assert [part.get_content_type() for part in dsn.iter_parts()] == ["text/plain", "message/delivery-status"]
    # What was begun before is gone.
    assert (await post.spool.stats()).total == 1
    await post.until(lambda: not list((post.directory / "spool" / "p0" / "bodies").iterdir()))


@pytest.mark.parametrize(
    "trouble", [CharsetError("Lone surrogate"), RecursionError(), MemoryError(), CancelledError()], ids=repr
)
@ensureDeferred
async def test_a_notice_whose_making_fails_in_any_way_is_built_from_the_envelope(
    post: Post, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr("elemta.delivery.bounces.examine", fails)
    envelope = await submit(post.spool, failure(), SETTINGS, io.BytesIO(ORIGINAL))
    assert (await post.show(envelope.queue_id)).message.state is MessageState.ACTIVE
    assert (await post.spool.stats()).total == 1


# The page


def test_the_notices_that_the_page_shows_are_those_that_are_sent() -> None:
    page = (ROOT / "docs" / "delivery.md").read_text(encoding="utf-8")
    assert generator("generate_dsn").render(page) == page, "stale: run docs/generate_dsn.py"


@pytest.mark.parametrize("kind", [NoticeKind.FAILURE, NoticeKind.DELAY])
def test_the_notices_that_the_page_shows_are_reports(kind: NoticeKind) -> None:
    dsn: Any = email.message_from_bytes(generator("generate_dsn").dsn(kind), policy=email.policy.default)
    assert dsn.get_content_type() == "multipart/report"
    assert [dict(block.items()).get("Action") for block in list(dsn.iter_parts())[1].get_payload()] == [
        None,
        {NoticeKind.FAILURE: "failed", NoticeKind.DELAY: "delayed"}[kind],
    ]
