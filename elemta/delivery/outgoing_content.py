"""The content of a message on its way to a next hop: read no faster than the transport takes it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import BinaryIO

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Connection

from elemta.delivery.next_hop_state import ContentFlow, FlowChange, next_flow
from elemta.smtp.client import ClientSession

Read = Callable[[BinaryIO], Awaitable[bytes]]
OpenContent = Callable[[], Awaitable[BinaryIO]]


class OutgoingContent:
    """Gives the content of one message after the other to the session of a connection, a chunk at a time.

    The transport holds it back through ``producer``, and the session while it is congested. ``flush`` writes
    what the session has to say; ``abandon`` gives the transaction up.
    """

    def __init__(
        self,
        session: ClientSession,
        producer: IPushProducer,
        *,
        read: Read,
        flush: Callable[[], None],
        abandon: Callable[[str], None],
    ) -> None:
        #: The transport, once there is one.
        self.wire: Connection | None = None
        #: What the content waits for while it is held back.
        self.held: Deferred[None] | None = None
        self._session = session
        self._producer = producer
        self._read = read
        self._flush = flush
        self._abandon = abandon
        self._flow = ContentFlow.NONE

    async def send(self, size: int, open_content: OpenContent) -> None:
        """Send so many octets, and the end of the message only after exactly these.

        Ends early when the session is over. Raises what ``open_content`` and ``read`` raise.
        """
        content = await open_content()
        try:
            sent = 0
            stored = content.seek(0, os.SEEK_END)
            content.seek(0)
            while sent < size and not self._session.closed:
                chunk = await self._read(content)
                sent += len(chunk)
                if not chunk:
                    break
                self._session.content(chunk)
                if sent >= size:
                    # The end goes with it: one packet less, and for a small message one wait less.
                    break
                self._begin_producing()
                self._flush()
                if self._is_kept:
                    self.held = Deferred()
                    await self.held
        finally:
            content.close()
        if self._session.closed:
            return
        if sent != size or stored != size:
            # A message that was cut short on the disk must never end: it would count as delivered.
            self._abandon(f"the stored message has {min(sent, stored)} octets of {size}")
            return
        self._end_producing()
        self._session.end_content()
        self._flush()

    def pause(self) -> None:
        """The transport takes nothing more for now."""
        self._flow = next_flow(self._flow, FlowChange.PAUSE)

    def resume(self) -> None:
        """The transport takes more, or nothing ever again."""
        self._flow = next_flow(self._flow, FlowChange.RESUME)
        self.go_on()

    def go_on(self) -> None:
        """Let the content go on if nothing keeps it any more."""
        if self.held is not None and not self._is_kept:
            held, self.held = self.held, None
            held.callback(None)

    def stop(self) -> None:
        """Send no more: the session is over."""
        self._end_producing()
        self.go_on()

    @property
    def _is_kept(self) -> bool:
        return not self._session.closed and (self._flow is ContentFlow.PAUSED or self._session.congested)

    def _begin_producing(self) -> None:
        if self._session.closed or self.wire is None:
            return
        if self._flow in (ContentFlow.NONE, ContentFlow.HELD_BACK):
            self._flow = next_flow(self._flow, FlowChange.BEGIN)
            self.wire.registerProducer(self._producer, True)

    def _end_producing(self) -> None:
        if self._flow in (ContentFlow.FLOWING, ContentFlow.PAUSED) and self.wire is not None:
            self._flow = next_flow(self._flow, FlowChange.END)
            self.wire.unregisterProducer()
