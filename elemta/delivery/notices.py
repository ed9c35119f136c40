"""Telling senders: the notices of a conclusion put into the queue before its outcomes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from twisted.logger import Logger

from elemta.delivery.bounces import submit
from elemta.delivery.conclusions import Conclusion
from elemta.delivery.queue import Queue
from elemta.errors import SpoolError
from elemta.message.notice import Kind, Notice
from elemta.spool.records import QueuedMessage

_log = Logger()


async def record(queue: Queue, message: QueuedMessage, conclusion: Conclusion, retry_at: float) -> Conclusion:
    """Put a conclusion into the queue, whole and durable; gives what was recorded in fact.

    The notices come first: a crash between them and the outcomes may tell a sender twice, but never not
    at all. Where one that tells of a failure can't be queued, its recipients are tried again at
    ``retry_at``. SpoolError: the outcomes are not stored yet.
    """
    notices = conclusion.notices.to_send
    try:
        await tell(queue, message, [notice for notice in notices if notice.kind is Kind.FAILURE])
    except (SpoolError, OSError) as error:
        _tell_operator(message, error)
        conclusion = conclusion.without_notices(retry_at)
    else:
        try:
            await tell(queue, message, [notice for notice in notices if notice.kind is not Kind.FAILURE])
        except (SpoolError, OSError) as error:
            # What was delivered must not be delivered again because nobody could be told.
            _tell_operator(message, error)
            conclusion = replace(conclusion, warned=False)
    await queue.settle(
        message.queue_id,
        conclusion.outcomes,
        part=message.part,
        retry_at=conclusion.retry_at,
        hold_reason=conclusion.hold_reason,
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


async def tell(queue: Queue, message: QueuedMessage, notices: Iterable[Notice]) -> None:
    """Put notices about a message into the queue. SpoolError, OSError."""
    for notice in notices:
        await submit(queue, notice, await queue.open_content(message.queue_id))


def _tell_operator(message: QueuedMessage, error: Exception) -> None:
    _log.error(
        "a notice to a sender could not be queued",
        event="bounce.not_queued",
        queue_id=message.queue_id,
        reason=str(error),
    )
