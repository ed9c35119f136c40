"""Messages that a test puts into a spool, and what it lets become of them."""

from __future__ import annotations

from typing import Any

from elemta.address import Address
from elemta.envelope import Client, MailParameters, Recipient
from elemta.message.summary import read_summary
from elemta.outcome import Outcome, Status
from elemta.spool import Spool, Submission
from elemta.spool.message_search import FoundMessages, MessageSearch

KEEP = 7 * 86400.0
HEAD = b"Message-ID: <One@client.test>\r\nSubject: =?utf-8?Q?caf=C3=A9?=\r\n\r\n"
AT = 1_700_000_000.0


def address(text: str) -> Address:
    local, _, domain = text.rpartition("@")
    return Address(local, domain.lower())


def submission(
    *recipients: str,
    head: bytes = HEAD,
    sender: str = "Anna@Client.test",
    ip: str = "192.0.2.7",
    user: str | None = None,
    **more: Any,
) -> Submission:
    """What a session says of a message."""
    return Submission(
        sender=address(sender),
        recipients=tuple(Recipient(address(each)) for each in recipients or ("bob@example.test",)),
        parameters=MailParameters(),
        client=Client(ip=ip, helo="client.test", listener="mx", session_id="S1", user=user),
        header_block=b"Received: from x\r\n",
        received_at=AT,
        summary=read_summary(head),
        **more,
    )


async def take(
    spool: Spool,
    *recipients: str,
    head: bytes = HEAD,
    sender: str = "Anna@Client.test",
    ip: str = "192.0.2.7",
    user: str | None = None,
    **more: Any,
) -> str:
    """A message that the spool accepts; its queue id."""
    writer = spool.begin()
    writer.write(head + b"text\r\n")
    made = submission(*recipients, head=head, sender=sender, ip=ip, user=user, **more)
    envelope = await spool.commit(writer, made)
    return envelope.queue_id


def outcome(queue_id: str, to: str, status: Status, text: str = "ok", **more: Any) -> Outcome:
    """What an attempt came to."""
    hop = "mx.example.test[192.0.2.9]"
    return Outcome(queue_id, address(to), status, text, "mx:", hop, AT + 5, 0.25, **more)


async def settle(spool: Spool, queue_id: str, *outcomes: Outcome, **more: Any) -> None:
    """Record an attempt; deferred recipients have a next one."""
    later = AT + 600 if any(each.status is Status.DEFERRED for each in outcomes) else None
    await spool.settle(queue_id, outcomes, **{"retry_at": later, "hold_reason": None, **more})


async def find(spool: Spool, text: str, limit: int = 20, after: str | None = None) -> FoundMessages:
    """What is found in one spool."""
    return await MessageSearch(spool, list).find(text, limit, after)
