"""The admin calls about destinations: where mail waits, why, and what an operator does about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Protocol

from twisted.logger import Logger

from elemta.daemon.destination_pauses import DestinationPauses
from elemta.daemon.joined_answers import NodeAnswer
from elemta.destination_status import OPEN, DestinationState, DestinationStatus
from elemta.ops.admin_calls import route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Count, Text
from elemta.spool.combined_queue import CombinedQueue
from elemta.spool.records import DestinationMail

if TYPE_CHECKING:
    from elemta.delivery import DeliveryScheduler

_log = Logger()

# As long as the longest target of a route.
_Name = Annotated[str, Text(4096)]


@dataclass(frozen=True, slots=True)
class DestinationEntry:
    """One destination: the domain for mail by ``mx:``, else the target of its route.

    ``waiting`` are messages; ``oldest_at`` is when the first of them came in. ``last_error`` is what was said
    when the destination was found down, else of one of the messages. ``next_attempt_at`` is None while it is
    paused, and where no mail waits. ``paced_by`` is the limit that its mail waits for, if there is one.
    """

    name: str
    route: str
    waiting: int
    oldest_at: float | None
    state: DestinationState
    last_error: str
    next_attempt_at: float | None
    paced_by: str | None


@dataclass(frozen=True, slots=True)
class DestinationListing:
    """A page of destinations by name; ``next`` is the ``after`` of the next one, None at the end.

    ``nodes`` are those that were asked. In a fleet a name has a row for each node whose mail waits for it,
    with the ``node_id``.
    """

    destinations: tuple[DestinationEntry, ...]
    next: str | None
    nodes: tuple[NodeAnswer, ...]


class Delivering(Protocol):
    """What delivers: the node's own delivery first, and those of spools that it adopted."""

    @property
    def deliveries(self) -> Sequence[DeliveryScheduler]: ...

    @property
    def pauses(self) -> DestinationPauses: ...


class DestinationOperations:
    """Shows and changes the destinations of one node; ``now`` gives seconds since the epoch."""

    def __init__(
        self,
        queue: CombinedQueue,
        delivering: Callable[[], Delivering],
        now: Callable[[], float],
        node_id: str,
    ) -> None:
        self._node_id = node_id
        self._queue = queue
        self._delivering = delivering
        self._now = now

    @route("GET", "/v1/destinations")
    async def list(
        self, limit: Annotated[int, Count()] = 100, after: _Name | None = None
    ) -> DestinationListing:
        """The destinations that mail waits for, and those that are paused, by name."""
        found, place = await self._queue.listed_destinations(after, limit)
        mail = {each.name: each for each in found}
        names = dict.fromkeys(mail)
        for name in self._delivering().pauses.names:
            if name > (after or "") and (place is None or name <= place):
                names[name] = None
        rows = tuple(self._entry(name, mail.get(name)) for name in sorted(names))
        return DestinationListing(rows, place, (NodeAnswer(self._node_id),))

    @route("POST", "/v1/destinations/{name}/probe")
    async def probe(self, name: _Name) -> DestinationEntry:
        """Make one attempt now; a destination that is down keeps its back-off if it fails."""
        known = await self._known(name)
        delivering = self._delivering()
        if known in delivering.pauses.names:
            raise AdminRefusal(HTTPStatus.CONFLICT, "the destination is paused", "resume it instead")
        first_due = await self._first_due(known)
        for delivery in delivering.deliveries:
            delivery.commands.probe(known, first_due)
        _log.info("an operator probes a destination", event="admin.destination_probed", destination=known)
        return await self._shown(known)

    @route("POST", "/v1/destinations/{name}/pause")
    async def pause(self, name: _Name) -> DestinationEntry:
        """Attempt nothing more in a destination until it is resumed, also after a restart."""
        known = await self._known(name)
        delivering = self._delivering()
        await delivering.pauses.add(known)
        for delivery in delivering.deliveries:
            delivery.commands.pause([known])
        _log.info("an operator paused a destination", event="admin.destination_paused", destination=known)
        return await self._shown(known)

    @route("POST", "/v1/destinations/{name}/resume")
    async def resume(self, name: _Name) -> DestinationEntry:
        """End the pause of a destination, and attempt what is due."""
        known = await self._known(name)
        delivering = self._delivering()
        if known not in delivering.pauses.names:
            raise AdminRefusal(HTTPStatus.CONFLICT, "the destination is not paused", "probe has it tried now")
        first_due = await self._first_due(known)
        await delivering.pauses.remove(known)
        for delivery in delivering.deliveries:
            delivery.commands.resume(known, first_due)
        _log.info("an operator resumed a destination", event="admin.destination_resumed", destination=known)
        return await self._shown(known)

    async def _first_due(self, name: str) -> float:
        """When the first of a destination's mail is due; 0 where none waits for a time."""
        mail = await self._queue.destination(name)
        return 0.0 if mail is None or mail.due is None else mail.due

    async def _known(self, name: str) -> str:
        """The destination that is meant; refused where no mail goes to one of that name."""
        delivering = self._delivering()
        if name in delivering.pauses.names:
            return name
        # A daemon without mail delivers nothing.
        own = next(iter(delivering.deliveries), None)
        found = None if own is None else own.waits.destination_of(name)
        if found is None and await self._queue.destination(name) is not None:
            return name
        if found is None:
            hint = "elemtactl destinations lists them: domains for mx:, else the targets of routes"
            raise AdminRefusal(HTTPStatus.NOT_FOUND, f"there is no destination {name}", hint)
        return found

    async def _shown(self, name: str) -> DestinationEntry:
        return self._entry(name, await self._queue.destination(name))

    def _entry(self, name: str, mail: DestinationMail | None) -> DestinationEntry:
        deliveries = self._delivering().deliveries
        statuses = (delivery.waits.status(name) for delivery in deliveries)
        status = next((each for each in statuses if each is not OPEN), OPEN)
        return DestinationEntry(
            name=name,
            route=deliveries[0].waits.route_of(name) if deliveries else "",
            waiting=0 if mail is None else mail.messages,
            oldest_at=None if mail is None else mail.oldest_at,
            state=status.state,
            last_error=status.error or ("" if mail is None else mail.last_error),
            next_attempt_at=self._next_attempt(status, mail),
            paced_by=status.paced_by or None,
        )

    def _next_attempt(self, status: DestinationStatus, mail: DestinationMail | None) -> float | None:
        if mail is None or status.state is DestinationState.PAUSED:
            return None
        due = self._now() if mail.active or mail.due is None else mail.due
        return due if status.until is None else status.until
