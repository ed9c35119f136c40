"""Returning a message to its sender because an operator says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from elemta.delivery.bounces import NoticeSettings, decide
from elemta.delivery.notices import tell
from elemta.errors import SpoolError
from elemta.outcome import Outcome, Status
from elemta.spool import MessageState, Spool
from elemta.spool.records import QueuedMessage

_RETURNED = "returned by the operator of this mail system"
_HELD = "being returned to the sender"


class NobodyToTell(SpoolError):
    """The message is from the null reverse-path: there is no sender to return it to (RFC 5321 §4.5.5)."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What came of it: the recipients that were given up, and how many notices tell the sender.

    No notice is sent where the sender wanted none.
    """

    recipients: int
    notices: int


async def return_to_sender(
    spool: Spool, queue_id: str, settings: NoticeSettings, now: Callable[[], float]
) -> Returned:
    """Give up every recipient that is left, and tell the sender.

    The notice is in the queue before the message leaves it. An attempt that is under way at this moment may
    still deliver it. NobodyToTell; UnknownMessage; SpoolError: nothing is changed.
    """
    message = (await spool.show(queue_id)).message
    if not message.envelope.sender:
        raise NobodyToTell(f"{queue_id} is from <>: nobody can be told")
    held = message.state is not MessageState.HOLD
    if held:
        # So that no attempt begins while the notice is written.
        await spool.hold(queue_id, _HELD)
    try:
        message = (await spool.show(queue_id)).message
        return await _give_up(spool, message, settings, now())
    except Exception:
        if held:
            await spool.release(queue_id)
        raise


async def _give_up(spool: Spool, message: QueuedMessage, settings: NoticeSettings, now: float) -> Returned:
    # RFC 3463 §3.1 X.0.0: nothing more can be said.
    outcomes = [
        Outcome(message.queue_id, one.address, Status.FAILED, _RETURNED, "", "", now, enhanced="5.0.0")
        for one in message.pending
    ]
    notices = decide(message, outcomes, now=now, settings=settings).to_send
    await tell(spool, message, notices)
    await spool.settle(message.queue_id, outcomes, retry_at=None, hold_reason=None)
    return Returned(len(outcomes), len(notices))
