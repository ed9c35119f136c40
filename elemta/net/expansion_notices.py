"""Notices that a message went to all addresses of an alias (RFC 3461 §5.2.7.2)."""

from __future__ import annotations

import io
from collections.abc import Sequence

from elemta.delivery.bounces import BounceSpool, submit
from elemta.delivery.notices import tell_operator
from elemta.domains import Domains
from elemta.envelope import Envelope
from elemta.message.notice import DsnAction, Notice, NoticeKind, RecipientReport
from elemta.net.recipients import ExpandedAlias
from elemta.outcome import Outcome, Status


def expansion_notice(
    envelope: Envelope, aliases: Sequence[ExpandedAlias], hostname: str, domains: Domains
) -> Notice | None:
    """The notice of the aliases whose success the sender wants to hear of; None where there are none."""
    if not envelope.sender:
        return None
    at = envelope.received_at
    reports = tuple(
        RecipientReport(
            Outcome(envelope.queue_id, alias.recipient.address, Status.DELIVERED, "", "", "", at),
            DsnAction.EXPANDED,
            # RFC 3463 §2: success, and nothing more to say
            "2.0.0",
            alias.recipient.orcpt,
        )
        for alias in aliases
        if alias.wants_notice
    )
    if not reports:
        return None
    to = domains.expand(envelope.sender)
    return Notice(NoticeKind.SUCCESS, hostname, envelope, reports, at, at, to=to)


async def queue_notice(spool: BounceSpool, notice: Notice, head: bytes) -> None:
    """Put the notice into the queue; ``head`` has the header of the message. Does not raise.

    A failure is logged. The message itself is on stable storage by then, and its 250 does not depend on it.
    """
    try:
        await submit(spool, notice, io.BytesIO(head))
    except Exception as error:
        tell_operator(notice.envelope, error)
