"""Several spools as one queue, for operators."""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from elemta.errors import SpoolError, UnknownMessage
from elemta.spool.filters import QueueFilter
from elemta.spool.records import Listing, MessageRecord, MessageState, SpoolStats
from elemta.spool.spool import Spool

R = TypeVar("R")


class CombinedQueue:
    """The spool ``own`` and what ``others()`` gives at the moment; a message is in one of them.

    Raises what a spool raises. One of the others that is closed meanwhile is left out.
    """

    def __init__(self, own: Spool, others: Callable[[], Sequence[Spool]]) -> None:
        self.own = own
        self._others = others

    async def show(self, queue_id: str) -> MessageRecord:
        """All that is known of a message but its content. UnknownMessage."""
        return await self._where_it_is(lambda spool: spool.show(queue_id))

    async def hold(self, queue_id: str, reason: str | None = None) -> None:
        """Keep a message from being delivered; without a reason a held one keeps the one that it has.

        UnknownMessage.
        """
        await self._where_it_is(lambda spool: spool.hold(queue_id, reason))

    async def release(self, queue_id: str) -> None:
        """Deliver a held message now. UnknownMessage."""
        await self._where_it_is(lambda spool: spool.release(queue_id))

    async def retry(self, queue_id: str) -> None:
        """Attempt a deferred message now. UnknownMessage."""
        await self._where_it_is(lambda spool: spool.retry(queue_id))

    async def delete(self, queue_id: str) -> None:
        """Remove a message for good. UnknownMessage."""
        await self._where_it_is(lambda spool: spool.delete(queue_id))

    async def of(self, queue_id: str) -> Spool:
        """The spool that has a message. UnknownMessage."""

        async def found(spool: Spool) -> Spool:
            await spool.show(queue_id)
            return spool

        return await self._where_it_is(found)

    async def find(self, chosen: QueueFilter, limit: int = 100, after: str | None = None) -> Listing:
        """A page of the messages that a filter chooses, in the order of arrival; see `Listing`."""
        pages = (
            await self.own.find(chosen, limit, after),
            *await self._of_others(lambda spool: spool.find(chosen, limit, after)),
        )
        # Behind the place that one of them has come to, it may have more before what another one has.
        place = min((page.after for page in pages if page.after is not None), default=None)
        in_order = [
            message
            for message in heapq.merge(*(page.messages for page in pages), key=lambda each: each.queue_id)
            if place is None or message.queue_id <= place
        ]
        if len(in_order) > limit:
            place = in_order[limit - 1].queue_id
        return Listing(tuple(in_order[:limit]), place)

    async def stats(self) -> SpoolStats:
        """The queue in numbers; what is said of the disk is said of the own spool's."""
        own = await self.own.stats()
        each = [own, *await self._of_others(Spool.stats)]
        return SpoolStats(
            messages={state: sum(stats.messages[state] for stats in each) for state in MessageState},
            octets={state: sum(stats.octets[state] for stats in each) for state in MessageState},
            oldest_age=max(stats.oldest_age for stats in each),
            free=own.free,
            healthy=own.healthy,
            undeliverable=sum(stats.undeliverable for stats in each),
        )

    async def _where_it_is(self, work: Callable[[Spool], Awaitable[R]]) -> R:
        try:
            return await work(self.own)
        except UnknownMessage:
            for spool in self._others():
                try:
                    return await work(spool)
                except UnknownMessage:
                    continue
                except SpoolError:
                    if spool in self._others():
                        raise
            raise

    async def _of_others(self, work: Callable[[Spool], Awaitable[R]]) -> list[R]:
        found = []
        for spool in self._others():
            try:
                found.append(await work(spool))
            except SpoolError:
                if spool in self._others():
                    raise
        return found
