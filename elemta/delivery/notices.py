"""Telling senders: the notices of a conclusion put into the queue before its outcomes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import BinaryIO, Protocol

from twisted.logger import Logger

from elemta.delivery.bounces import BounceSpool, submit, tell_left_out
from elemta.delivery.conclusions import Conclusion
from elemta.delivery.queue import Queue
from elemta.delivery.recording import settle_surely
from elemta.errors import SpoolError, UnknownMessage
from elemta.message.notice import Kind, Notice
from elemta.spool.records import QueuedMessage

_log = Logger()


class NoticeSpool(BounceSpool, Protocol):
    """What notices about a queued message need of the spool."""

    async def open_content(self, queue_id: str) -> BinaryIO:
        """The whole message as it is sent on."""


async def record(queue: Queue, message: QueuedMessage, conclusion: Conclusion, retry_at: float) -> Conclusion:
    """Put a conclusion into the queue, whole and durable; gives what was recorded in fact.

    The notices come first: a crash between them and the outcomes may tell a sender twice, but never not
    at all. Where one that tells of a failure can't be queued, its recipients are tried again at
    ``retry_at``. What was delivered is not recorded here: that was settled before anybody was told.
    SpoolError: the outcomes are not stored yet.
    """
    notices = conclusion.notices.to_send
    try:
        await tell(queue, message, [notice for notice in notices if notice.kind is Kind.FAILURE])
    except Exception as error:
        tell_operator(message, error)
        conclusion = conclusion.without_notices(retry_at)
    else:
        try:
            await tell(queue, message, [notice for notice in notices if notice.kind is not Kind.FAILURE])
        except Exception as error:
            tell_operator(message, error)
            conclusion = replace(conclusion, warned=False)
    await settle_surely(
        queue,
        message,
        conclusion.outcomes,
        retry_at=conclusion.retry_at,
        hold_reason=conclusion.hold_reason,
        hold=conclusion.hold,
        warned=conclusion.warned,
    )
    if conclusion.hold_reason is not None:
        _log.warn(
            "message put on hold",
            event="delivery.held",
            queue_id=message.queue_id,
            sender=str(message.envelope.sender),
            reason=conclusion.hold_reason,
        )
    return conclusion


async def tell(spool: NoticeSpool, message: QueuedMessage, notices: Iterable[Notice]) -> None:
    """Put notices about a message into the queue: from the envelope alone, if the message can't be read.

    UnknownMessage: it is gone, and there is nothing to tell. SpoolFull, SpoolError: not all are queued.
    """
    for notice in notices:
        await submit(spool, notice, await content_for_notice(spool, message.queue_id))


async def content_for_notice(spool: NoticeSpool, queue_id: str) -> BinaryIO | None:
    """The message that a notice is about; None where it can't be read. UnknownMessage."""
    try:
        return await spool.open_content(queue_id)
    except UnknownMessage:
        raise
    except Exception as error:
        tell_left_out(queue_id, error)
        return None


def tell_operator(message: QueuedMessage, error: Exception) -> None:
    """Log that a notice could not be built or queued."""
    if not isinstance(error, SpoolError | OSError):
        _log.failure("a notice to a sender broke", event="bounce.broke", queue_id=message.queue_id)
        return
    _log.error(
        "a notice to a sender could not be queued",
        event="bounce.not_queued",
        queue_id=message.queue_id,
        reason=str(error),
    )
