"""Several spools as one queue, for operators."""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Sequence
from functools import reduce
from typing import TypeVar

from elemta.errors import SpoolError, UnknownMessage
from elemta.spool.filters import QueueFilter
from elemta.spool.records import DestinationMail, Listing, MessageRecord, MessageState, SpoolStats
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

    async def hold(self, queue_id: str, reason: str | None = None, *, by: str = "") -> None:
        """Keep a message from being delivered; without a reason a held one keeps the one that it has.

        UnknownMessage.
        """
        await self._where_it_is(lambda spool: spool.hold(queue_id, reason, by=by))

    async def release(self, queue_id: str, *, by: str = "") -> None:
        """Deliver a held message now. UnknownMessage."""
        await self._where_it_is(lambda spool: spool.release(queue_id, by=by))

    async def retry(self, queue_id: str, *, by: str = "") -> None:
        """Attempt a deferred message now. UnknownMessage."""
        await self._where_it_is(lambda spool: spool.retry(queue_id, by=by))

    async def delete(self, queue_id: str, *, by: str = "") -> None:
        """Remove a message for good. UnknownMessage."""
        await self._where_it_is(lambda spool: spool.delete(queue_id, by=by))

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

    async def listed_destinations(
        self, after: str | None, limit: int
    ) -> tuple[list[DestinationMail], str | None]:
        """Destinations that mail waits for, by name, and the name to go on behind; None at the end."""
        pages = [
            await self.own.listed_destinations(after, limit),
            *await self._of_others(lambda spool: spool.listed_destinations(after, limit)),
        ]
        # Behind the end of a full page, its spool may have some before those of another one.
        place = min((page[-1].name for page in pages if len(page) == limit), default=None)
        found: dict[str, DestinationMail] = {}
        for mail in (each for page in pages for each in page if place is None or each.name <= place):
            other = found.get(mail.name)
            found[mail.name] = _together(other, mail)
        return sorted(found.values(), key=lambda mail: mail.name), place

    async def destination(self, name: str) -> DestinationMail | None:
        """The mail that waits for one destination; None where there is none."""
        own = await self.own.destination(name)
        found = [own, *await self._of_others(lambda spool: spool.destination(name))]
        return reduce(_together, (mail for mail in found if mail is not None), None)

    async def stats(self, *, as_listed: bool = False) -> SpoolStats:
        """The queue in numbers; what is said of the disk is said of the own spool's."""
        own = await self.own.stats(as_listed=as_listed)
        each = [own, *await self._of_others(lambda spool: spool.stats(as_listed=as_listed))]
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


def _together(one: DestinationMail | None, other: DestinationMail) -> DestinationMail:
    """What two spools have for one destination."""
    if one is None:
        return other
    return DestinationMail(
        one.name,
        one.messages + other.messages,
        one.active or other.active,
        min(one.oldest_at, other.oldest_at),
        min((each.due for each in (one, other) if each.due is not None), default=None),
        one.last_error or other.last_error,
    )
