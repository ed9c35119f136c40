"""What can be read of the queue: the part of the spool that changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import BinaryIO, ParamSpec, TypeVar, cast

from elemta.envelope import Envelope
from elemta.errors import SpoolError
from elemta.message.notice import Notice
from elemta.spool.content import RecentContents
from elemta.spool.damaged_rows import DamagedRows, Found
from elemta.spool.filters import QueueFilter
from elemta.spool.group_commit import GroupCommit
from elemta.spool.queries import Queries
from elemta.spool.queue_list import QueueList, seen
from elemta.spool.records import (
    ArrivalPage,
    DestinationDue,
    DestinationMail,
    HeldPart,
    Listing,
    MessageRecord,
    MessageState,
    MessageSummary,
    SpoolSettings,
    SpoolStats,
)
from elemta.spool.schedule import Schedule
from elemta.spool.space_watch import SpaceWatch
from elemta.spool.threads import SpoolThreads
from elemta.spool.waits import NO_WAITS, Waits, with_views

# A page of a filter looks at so many times `queue_list.LOOKED_AT` messages, others being served between.
_QUESTIONS_FOR_A_PAGE = 20

P = ParamSpec("P")
R = TypeVar("R")


class QueueLookups:
    """Reads in the threads of the spool. A row that can't be read is put on hold and left out.

    A subclass sets the attributes. ``waits`` is what delivery knows of mail that waits, once there is a
    delivery.
    """

    waits: Waits | None
    settings: SpoolSettings
    _threads: SpoolThreads
    _queries: Queries
    _listing: QueueList
    _schedule: Schedule
    _damaged: DamagedRows
    _recent: RecentContents
    _commits: GroupCommit
    _space_watch: SpaceWatch
    _now: Callable[[], float]
    # Messages on hold before this place are undeliverable notices, since so many changes.
    _held_from: int
    _changes_of_holds: int
    _closed: bool

    async def owed(self, after: str | None, limit: int) -> list[Notice]:
        """What senders have still to hear of deliveries, from behind the message with a queue id on."""
        found = await self._read(self._schedule.owed, after, limit)
        if found.damaged:
            await self._damaged.write_off(found.damaged)
        return found.value

    async def held(self, before: float, limit: int) -> list[HeldPart]:
        """Parts whose hold has an end and began at ``before`` or earlier, the oldest hold first."""
        return await self._find(self._schedule.held, before, limit)

    async def undeliverable(self, limit: int) -> list[HeldPart]:
        """Undeliverable notices on hold, the oldest hold first."""
        return await self._find(self._schedule.undeliverable, limit)

    async def destinations(self, after: str | None, limit: int) -> list[tuple[str, float | None]]:
        """Destinations by name from behind ``after`` on, and when something is due: 0.0 now, None if all
        is held."""
        return await self._read(self._schedule.destinations, after, limit)

    async def due(
        self,
        now: float,
        wanted: Mapping[str, int],
        excluding: Mapping[str, Collection[tuple[str, int]]] = MappingProxyType({}),
        until: Mapping[str, float] = MappingProxyType({}),
    ) -> list[DestinationDue]:
        """For each of the destinations at most so many parts to attempt now; see `Schedule.due`."""
        found = await self._read(self._schedule.due, now, wanted, excluding, until)
        if not found.damaged or await self._damaged.put_on_hold(found.damaged):
            return found.value
        # Those that can't be put on hold still stand before the others.
        later = now + self.settings.refresh
        return [
            replace(destination, next_due=later) if destination.next_due == now else destination
            for destination in found.value
        ]

    async def older(
        self, before: float, after: int = -1, limit: int = 500, *, unwarned: bool = False
    ) -> ArrivalPage:
        """Parts that wait, of messages received at ``before`` or earlier; see `Schedule.older`."""
        return await self._find(self._schedule.older, before, after, limit, unwarned=unwarned)

    async def open_content(self, queue_id: str) -> BinaryIO:
        """The message as it is sent on, header block and body: a seekable binary file with a ``size``."""
        recent: BinaryIO | None = self._recent.find(queue_id)
        return cast(BinaryIO, await self._read(self._queries.content, queue_id)) if recent is None else recent

    async def show(self, queue_id: str) -> MessageRecord:
        """All that is known of a message but its content. UnknownMessage."""
        record = await self._read(self._queries.show, queue_id)
        return with_views(record, self.waits)

    async def find(self, chosen: QueueFilter, limit: int = 100, after: str | None = None) -> Listing:
        """A page of the messages that a filter chooses, in the order of arrival; see `Listing`."""
        waits = self.waits
        asks = waits is not None and (chosen.state is not None or chosen.reason is not None)
        known = waits.known_waits() if waits is not None and asks else NO_WAITS
        found: list[MessageSummary] = []
        for _ in range(_QUESTIONS_FOR_A_PAGE):
            some, after = await self._read(self._listing.find, chosen, known, limit - len(found), after)
            lines = (seen(summary, parts, waits, chosen) for summary, parts in some)
            found += [line for line in lines if line is not None]
            if after is None or len(found) >= limit:
                break
        return Listing(tuple(found), after)

    async def listed_destinations(self, after: str | None, limit: int) -> list[DestinationMail]:
        """The destinations that mail waits for, in the order of their names, from behind one on."""
        return await self._read(self._listing.destinations, after, limit)

    async def destination(self, name: str) -> DestinationMail | None:
        """The mail that waits for one destination; None where there is none."""
        return await self._read(self._listing.destination, name)

    async def stats(self, *, as_listed: bool = False) -> SpoolStats:
        """The queue in numbers; ``as_listed`` takes a look at each message that was never tried, as one that
        waits for its destination is not active."""
        counts, changes = self._commits.counts, self._changes_of_holds
        oldest, held_from = await self._read(self._listing.oldest, self._held_from)
        if self._changes_of_holds == changes:
            self._held_from = held_from
        messages = {state: counts.messages[state] for state in MessageState}
        octets = {state: counts.octets[state] for state in MessageState}
        waits = self.waits
        known = waits.known_waits() if waits is not None and as_listed else NO_WAITS
        if known.destinations:
            moving, size = await self._read(self._listing.still_moving, known)
            for numbers, active in ((messages, moving), (octets, size)):
                others = max(0, numbers[MessageState.ACTIVE] - active)
                numbers[MessageState.DEFERRED] += others
                numbers[MessageState.ACTIVE] -= others
        return SpoolStats(
            messages=messages,
            octets=octets,
            oldest_age=0.0 if oldest is None else max(0.0, self._now() - oldest),
            free=self._space_watch.space.free,
            healthy=self._commits.healthy,
            undeliverable=counts.undeliverable,
        )

    async def received_since(
        self, at: float, limit: int, after: str | None = None
    ) -> tuple[list[Envelope], str | None]:
        """Envelopes of messages received at ``at`` or later; see `Queries.received_since`."""
        return await self._read(self._queries.received_since, at, limit, after)

    async def _find(self, work: Callable[P, Found[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """Read something; what can't be read on the way is put on hold before the answer is given."""
        found = await self._read(work, *args, **kwargs)
        if found.damaged:
            await self._damaged.put_on_hold(found.damaged)
        return found.value

    async def _read(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._closed:
            raise SpoolError("the spool is closed")
        return await self._threads.read.call(work, *args, **kwargs)

    # Last, because from here on the name means this method.
    async def list(
        self, state: MessageState | None = None, limit: int = 100, after: str | None = None
    ) -> list[MessageSummary]:
        """A page of the queue in the order of arrival, from behind the queue id ``after`` on."""
        return list((await self.find(QueueFilter(state), limit, after)).messages)
