"""Notices that a message went to all addresses of an alias (RFC 3461 §5.2.7.2)."""

from __future__ import annotations

import io
from collections.abc import Sequence

from elemta.delivery.bounces import BounceSpool, submit
from elemta.delivery.notices import tell_operator
from elemta.envelope import Envelope
from elemta.message.notice import Notice, NoticeKind, NoticeSettings
from elemta.net.recipients import ExpandedAlias
from elemta.outcome import Outcome, Status


def expansion_notice(envelope: Envelope, aliases: Sequence[ExpandedAlias]) -> Notice | None:
    """The notice of the aliases whose success the sender wants to hear of; None where there are none."""
    if not envelope.sender:
        return None
    at = envelope.received_at
    recipients = tuple(alias.recipient for alias in aliases if alias.wants_notice)
    if not recipients:
        return None
    outcomes = tuple(
        Outcome(envelope.queue_id, recipient.address, Status.DELIVERED, "", "", "", at)
        for recipient in recipients
    )
    return Notice(NoticeKind.SUCCESS, envelope, recipients, outcomes, at, expanded=True)


async def queue_notice(spool: BounceSpool, notice: Notice, settings: NoticeSettings, head: bytes) -> None:
    """Put the notice into the queue; ``head`` has the header of the message. Does not raise.

    A failure is logged. The message itself is on stable storage by then, and its 250 does not depend on it.
    """
    try:
        await submit(spool, notice, settings, io.BytesIO(head))
    except Exception as error:
        tell_operator(notice.envelope, error)
