"""Whether a queued message can still be read: asked before one is given up, so that what is lost is told."""

from __future__ import annotations

from typing import BinaryIO

from elemta.delivery.queue import Queue
from elemta.errors import SpoolError, UnknownMessage
from elemta.spool.records import QueuedMessage

_CHUNK = 64 * 1024


async def why_unreadable(queue: Queue, message: QueuedMessage) -> str | None:
    """What is wrong with the stored message; None where it is whole, or gone."""
    try:
        content = await queue.open_content(message.queue_id)
    except UnknownMessage:
        return None
    except (SpoolError, OSError) as error:
        return str(error)
    try:
        return await queue.in_disk_thread(_fault_in, content, message.envelope.size)
    except (SpoolError, OSError) as error:
        return str(error)


def _fault_in(content: BinaryIO, size: int) -> str | None:
    """In a disk thread; closes the content. SpoolError, OSError."""
    with content:
        found = content.seek(0, 2)
        if found != size:
            return f"the stored message has {found} octets of {size}"
        content.seek(0)
        # All of it: a bad block may be anywhere. It costs no more than the last attempt did.
        while content.read(_CHUNK):
            pass
    return None
