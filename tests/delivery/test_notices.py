"""Messages that an operator returns: which notices go out, what leaves the queue, and nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail

from elemta.address import NULL, Address
from elemta.delivery.notices import return_to_sender
from elemta.envelope import Client, MailParameters, Notify, Recipient
from elemta.errors import NoSender, SpoolFull, UnknownMessage
from elemta.message.notice import NoticeSettings
from elemta.outcome import Outcome, ReturnedMessage, Status
from elemta.runtime import Runtime
from elemta.spool import MessageState, Spool, SpoolSettings, Submission

JANE = Address("jane", "example.org")
ANNA, BERTA = Address("anna", "example.com"), Address("berta", "example.net")
SETTINGS = NoticeSettings("mx1.example.org")
NOW = 1_800_000_000.0


@pytest_twisted.async_yield_fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    spool = await Spool.open(
        SpoolSettings(directory=tmp_path / "spool", minimum_free=0), runtime=Runtime.of(reactor)
    )
    yield spool
    await spool.close()


async def queue(
    spool: Spool, *to: Recipient, sender: Address = JANE, hold: str | None = None, body: bytes = b"hello\r\n"
) -> str:
    writer = spool.begin()
    writer.write(b"Subject: hello\r\n\r\n" + body)
    submission = Submission(sender, to or (Recipient(ANNA),), MailParameters(), Client(), b"", NOW - 60, hold)
    return (await spool.commit(writer, submission)).queue_id


async def give_up(spool: Spool, queue_id: str) -> ReturnedMessage:
    return await return_to_sender(spool, queue_id, SETTINGS, lambda: NOW)


async def ids(spool: Spool) -> list[str]:
    return [summary.queue_id for summary in await spool.list()]


async def content_of(spool: Spool, queue_id: str) -> bytes:
    with await spool.open_content(queue_id) as content:
        return content.read()


@pytest.mark.parametrize("hold", [None, "looks odd"])
@ensureDeferred
async def test_a_returned_message_leaves_the_queue_and_its_sender_is_told(
    spool: Spool, hold: str | None
) -> None:
    queue_id = await queue(spool, Recipient(ANNA), Recipient(BERTA), hold=hold)
    assert await give_up(spool, queue_id) == ReturnedMessage(recipients=2, notices=1)
    (notice,) = await ids(spool)
    record = await spool.show(notice)
    assert (record.envelope.sender, record.message.state) == (NULL, MessageState.ACTIVE)
    assert [each.recipient for each in record.recipients] == [Recipient(JANE, Notify.NEVER)]
    report = message_from_bytes(await content_of(spool, notice), policy=default)
    assert report.get_content_type() == "multipart/report"
    text, status, original = report.iter_parts()  # type: ignore[attr-defined]
    assert "returned by the operator of this mail system" in text.get_content()
    fields = [part.items() for part in status.get_payload()]
    finals = [value for part in fields for name, value in part if name == "Final-Recipient"]
    assert finals == ["rfc822; anna@example.com", "rfc822; berta@example.net"]
    assert ("Status", "5.0.0") in fields[1]
    assert original.get_payload(0)["Subject"] == "hello"


@ensureDeferred
async def test_who_has_got_it_already_is_no_part_of_the_notice(spool: Spool) -> None:
    queue_id = await queue(spool, Recipient(ANNA), Recipient(BERTA))
    came = Outcome(queue_id, ANNA, Status.DELIVERED, "ok", "mx:", "mail.example.com", NOW)
    await spool.settle(queue_id, [came], retry_at=NOW + 60, hold_reason=None)
    assert await give_up(spool, queue_id) == ReturnedMessage(recipients=1, notices=1)
    (notice,) = await ids(spool)
    assert b"anna@example.com" not in await content_of(spool, notice)


@ensureDeferred
async def test_a_message_from_nobody_is_not_returned(spool: Spool) -> None:
    queue_id = await queue(spool, sender=NULL)
    with pytest.raises(NoSender):
        await give_up(spool, queue_id)
    assert (await spool.show(queue_id)).message.state is MessageState.ACTIVE


@ensureDeferred
async def test_a_sender_who_wanted_no_notice_gets_none(spool: Spool) -> None:
    queue_id = await queue(spool, Recipient(ANNA, Notify.NEVER))
    assert await give_up(spool, queue_id) == ReturnedMessage(recipients=1, notices=0)
    assert await ids(spool) == []


@ensureDeferred
async def test_a_message_that_is_gone_is_unknown(spool: Spool) -> None:
    queue_id = await queue(spool)
    await spool.delete(queue_id)
    with pytest.raises(UnknownMessage):
        await give_up(spool, queue_id)


@pytest.mark.parametrize(("hold", "state"), [(None, MessageState.ACTIVE), ("looks odd", MessageState.HOLD)])
@ensureDeferred
async def test_where_the_notice_can_not_be_queued_the_message_stays_as_it_was(
    spool: Spool, hold: str | None, state: MessageState, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue_id = await queue(spool, hold=hold)

    def full(*_: Any, **__: Any) -> Deferred[Any]:
        return fail(SpoolFull("no room"))

    monkeypatch.setattr(spool, "commit", full)
    with pytest.raises(SpoolFull):
        await give_up(spool, queue_id)
    message = (await spool.show(queue_id)).message
    assert (message.state, message.hold_reason) == (state, hold)
    assert await ids(spool) == [queue_id]


@pytest.mark.parametrize("subject", ["=?\u00e9?q?a?=", "=?utf-8?b?a?=", "=?\x01\x7f?q?\xff?="])
@ensureDeferred
async def test_a_message_with_a_subject_that_nobody_can_decode_is_returned(
    spool: Spool, subject: str
) -> None:
    writer = spool.begin()
    writer.write(b"Subject: " + subject.encode() + b"\r\n\r\nhello\r\n")
    submission = Submission(JANE, (Recipient(ANNA),), MailParameters(), Client(), b"", NOW - 60)
    queue_id = (await spool.commit(writer, submission)).queue_id
    assert await give_up(spool, queue_id) == ReturnedMessage(recipients=1, notices=1)
    (notice,) = await ids(spool)
    assert len(list(message_from_bytes(await content_of(spool, notice)).get_payload())) == 3


@ensureDeferred
async def test_a_message_whose_body_is_lost_is_returned(spool: Spool, tmp_path: Path) -> None:
    queue_id = await queue(spool, body=b"x" * 100_000)
    (tmp_path / "spool" / "p0" / "bodies" / queue_id).unlink()
    assert await give_up(spool, queue_id) == ReturnedMessage(recipients=1, notices=1)
    (notice,) = await ids(spool)
    assert len(list(message_from_bytes(await content_of(spool, notice)).get_payload())) == 2
