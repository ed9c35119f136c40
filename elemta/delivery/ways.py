"""Which way each recipient goes: the route, and the lane of its destination."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from elemta.delivery.choosing import Chooser, WaitRoute
from elemta.delivery.routes import MaildirRoute, MxRoute, NextHopRoute, Route, RouteTable
from elemta.delivery.settings import DeliverySettings
from elemta.domains import canonical_domain
from elemta.envelope import Envelope, Recipient
from elemta.spool.records import PlannedPart, QueuedMessage, Submission

# Lanes that are no destination: what nobody has looked at yet, what is held, what ends here.
UNKNOWN = ""
HELD = "hold:"
LOCAL = "maildir:"

# Parts on their way to another lane whose choice is remembered until they are attempted there.
_MOST_SETTLED = 10_000


@dataclass(frozen=True, slots=True)
class Sorted:
    """The recipients of a part by route, as far as they belong in its lane, and the lanes of the others.

    ``waiting`` are those whom a policy lets wait.
    """

    here: dict[Route, list[Recipient]] = field(default_factory=dict)
    elsewhere: dict[str, list[Recipient]] = field(default_factory=dict)
    waiting: list[tuple[Recipient, WaitRoute]] = field(default_factory=list)


def lane_of(route: Route, recipient: Recipient) -> str:
    """The lane in which a recipient waits: that of the destination to which the route leads.

    For ``mx:`` it is the recipient's domain, for a next hop of the configuration that.
    """
    if isinstance(route, MxRoute):
        return canonical_domain(recipient.domain) or route.target
    if isinstance(route, NextHopRoute):
        return route.target
    return LOCAL if isinstance(route, MaildirRoute) else HELD


class Ways:
    """Finds ways by the routes of the configuration, or by what a policy chooses in their place."""

    def __init__(self, routes: RouteTable, settings: DeliverySettings, choose: Chooser | None = None) -> None:
        self.routes = routes
        self._choose = choose
        self._settled: dict[tuple[str, str], dict[Recipient, Route]] = {}
        by_mx = [route.max_connections for route in routes.routes if isinstance(route, MxRoute)]
        self._by_mx = max(by_mx, default=settings.max_per_destination)
        self._limits = {
            route.target: route.max_connections for route in routes.routes if isinstance(route, NextHopRoute)
        }

    def limit(self, lane: str) -> int | None:
        """How many parts of a lane may be under way; None for one that ends here."""
        if lane in (UNKNOWN, HELD, LOCAL):
            return None
        return self._limits.get(lane, self._by_mx)

    def plan(self, submission: Submission, turn: Callable[[str], float]) -> tuple[PlannedPart, ...]:
        """The parts of a new message by lane; ``turn`` gives the place of each in its lane.

        No policy is asked here: accepting mail does not wait for one.
        """
        recipients = submission.recipients
        lanes: dict[str, list[int]] = {}
        for position, recipient in enumerate(recipients):
            lane = lane_of(self.routes.route(recipient.address), recipient)
            lanes.setdefault(lane, []).append(position)
        if len(lanes) == 1:
            (lane,) = lanes
            return (PlannedPart(lane, turn(lane)),)
        return tuple(PlannedPart(lane, turn(lane), tuple(places)) for lane, places in lanes.items())

    async def sort(self, message: QueuedMessage) -> Sorted:
        """The ways of a part's recipients as things stand now.

        A policy is asked once for each attempt: what it chose when a part moved holds where it moved to, so
        that one with a new answer every time does not keep mail going round.
        """
        ways = Sorted()
        settled = self._settled.pop((message.queue_id, message.lane), {})
        for recipient in message.pending:
            route = settled.get(recipient)
            if route is None:
                route = await self._route(message.envelope, recipient)
            if isinstance(route, WaitRoute):
                ways.waiting.append((recipient, route))
                continue
            lane = lane_of(route, recipient)
            if lane == message.lane:
                ways.here.setdefault(route, []).append(recipient)
            else:
                ways.elsewhere.setdefault(lane, []).append(recipient)
                self._settle(message.queue_id, lane, recipient, route)
        if ways.elsewhere:
            for route, recipients in ways.here.items():
                for recipient in recipients:
                    self._settle(message.queue_id, message.lane, recipient, route)
        return ways

    async def _route(self, envelope: Envelope, recipient: Recipient) -> Route:
        chosen = None if self._choose is None else await self._choose(envelope, recipient)
        return self.routes.route(recipient.address) if chosen is None else chosen

    def _settle(self, queue_id: str, lane: str, recipient: Recipient, route: Route) -> None:
        if self._choose is None:
            return
        self._settled.setdefault((queue_id, lane), {})[recipient] = route
        if len(self._settled) > _MOST_SETTLED:
            del self._settled[next(iter(self._settled))]


def moved(
    message: QueuedMessage, elsewhere: Mapping[str, Sequence[Recipient]], turn: Callable[[str], float]
) -> tuple[PlannedPart, ...]:
    """Other lanes for some recipients of a part, as the spool takes it."""
    return tuple(
        PlannedPart(lane, turn(lane), tuple(_positions(message.envelope, recipients)))
        for lane, recipients in elsewhere.items()
    )


def _positions(envelope: Envelope, recipients: Iterable[Recipient]) -> list[int]:
    wanted = frozenset(recipients)
    return [place for place, recipient in enumerate(envelope.recipients) if recipient in wanted]
