"""The route and the destination of each recipient, by the configuration or as a policy chooses them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from elemta.address import Address
from elemta.bounded_map import BoundedMap
from elemta.deferred_value import value_of
from elemta.delivery.routes import ANY, HELD, LOCAL, HoldRoute, MaildirRoute, Route, RouteTable, chosen_route
from elemta.delivery.settings import DeliverySettings
from elemta.domains import canonical_domain
from elemta.envelope import Envelope, Recipient
from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.policy.route_choice import RouteChoice
from elemta.policy.verdicts import Defer, Hold, RouteTo, Verdict
from elemta.spool.records import PlannedPart, QueuedMessage, Submission

_REMEMBERED = 4096
# A name of RFC 1035 §3.1, or an address literal.
_DOMAIN = re.compile(r"[^\s/:@\[\]]{1,255}|\[[^\s/@\[\]]{1,100}\]")
_EVERYWHERE = frozenset({ANY})


@dataclass(frozen=True, slots=True)
class WaitRoute(Route):
    """Mail waits for its next attempt: nothing is tried, and the outcome is deferred for ``reason``."""

    reason: str = ""
    enhanced: str = "4.3.0"


class RouteChooser:
    """Asks the policies for a recipient's route. The answers are values, so that equal ones go together.

    A target that a ``[[route]]`` has too is that route, but for what the policy itself says. Any other has
    the defaults of a ``[[route]]``.
    """

    def __init__(self, hooks: DeliveryHooks, routes: Sequence[Route]) -> None:
        self._hooks = hooks
        self._configured: dict[str, Route] = {}
        for route in routes:
            self._configured.setdefault(route.target, route)
        self._chosen: dict[RouteChoice, Route] = {}
        of_maildirs = (route.domains_named for route in routes if isinstance(route, MaildirRoute))
        self._domains = next(of_maildirs, None)

    async def __call__(self, envelope: Envelope, recipient: Recipient) -> Route | None:
        """The route that a policy chose for this recipient, None where none has an opinion. Never raises."""
        decision = await value_of(self._hooks.route(envelope, recipient))
        return self._route(decision.verdict)

    def _route(self, verdict: Verdict) -> Route | None:
        if isinstance(verdict, RouteTo):
            # The hooks have checked it.
            return self._to(verdict.choice())
        if isinstance(verdict, Hold):
            return HoldRoute("hold:", _EVERYWHERE, reason=verdict.reason)
        if isinstance(verdict, Defer):
            return WaitRoute("", _EVERYWHERE, reason=verdict.text, enhanced=verdict.enhanced)
        return None

    def _to(self, choice: RouteChoice) -> Route:
        configured = self._configured.get(choice.target)
        if configured is not None and choice.names_target_only:
            return configured
        route = self._chosen.get(choice)
        if route is None:
            # A policy may choose a new one for every message.
            if len(self._chosen) >= _REMEMBERED:
                self._chosen.clear()
            route = self._chosen[choice] = chosen_route(choice, configured, self._domains)
        return route


# The destination of what is not yet routed.
UNKNOWN = ""

# Parts on their way to another destination whose choice is remembered until they are attempted there.
_MOST_SETTLED = 10_000


@dataclass(frozen=True, slots=True)
class SortedRecipients:
    """The recipients of a part by route, as far as they belong in its destination, and the destinations of
    the others.

    ``waiting`` are those that a policy lets wait.
    """

    here: dict[Route, list[Recipient]] = field(default_factory=dict)
    elsewhere: dict[str, list[Recipient]] = field(default_factory=dict)
    waiting: list[tuple[Recipient, WaitRoute]] = field(default_factory=list)


class Router:
    """Finds the routes of recipients: those of the configuration, or what a policy chooses in their place."""

    def __init__(
        self, routes: RouteTable, settings: DeliverySettings, choose: RouteChooser | None = None
    ) -> None:
        self.routes = routes
        self._choose = choose
        self._settled: BoundedMap[tuple[str, str], dict[Recipient, Route]] = BoundedMap(_MOST_SETTLED)
        by_domain = [route.max_connections for route in routes.routes if route.each_domain]
        self._by_domain = max(by_domain, default=settings.max_per_destination)
        self._limits = {
            route.target: route.max_connections for route in routes.routes if not route.each_domain
        }
        self._hops = {
            route.target: route.next_hop for route in reversed(routes.routes) if not route.each_domain
        }

    def limit(self, destination: str) -> int | None:
        """How many parts of a destination may be under way; None for one that ends here."""
        if destination in (UNKNOWN, HELD, LOCAL):
            return None
        return self._limits.get(destination, self._by_domain)

    def limited_as(self, destination: str) -> str:
        """What the limits on the way out call a destination."""
        return self._hops.get(destination, destination)

    def destinations_of(self, limited_as: str) -> list[str]:
        """The destinations that the limits on the way out call so."""
        return [target for target, hop in self._hops.items() if hop == limited_as] or [limited_as]

    def destination_of(self, name: str) -> str | None:
        """The destination of a domain's mail, or of a route's target, where that has the name; else None."""
        if name == LOCAL:
            return name
        if name in self._hops:
            of_target = next(route for route in self.routes.routes if route.target == name)
            return None if of_target.hold_reason else of_target.stays_in or name
        domain = canonical_domain(name)
        if not _DOMAIN.fullmatch(domain):
            return None
        recipient = Recipient(Address("postmaster", domain))
        destination = self.routes.route(recipient.address).destination(recipient)
        return destination if destination == domain else None

    def target_of(self, destination: str) -> str:
        """The target of the route by which mail for a destination goes; the destination where it is none."""
        if destination in self._hops or destination in (UNKNOWN, HELD):
            return destination
        if destination == LOCAL:
            return next(route.target for route in self.routes.routes if route.stays_in == LOCAL)
        return self.routes.route(Address("postmaster", destination)).target

    def plan(self, submission: Submission, turn: Callable[[str], float]) -> tuple[PlannedPart, ...]:
        """The parts of a new message by destination; ``turn`` gives the place of each in its destination.

        No policy is asked here: accepting mail does not wait for one.
        """
        recipients = submission.recipients
        destinations: dict[str, list[int]] = {}
        for position, recipient in enumerate(recipients):
            destination = self.routes.route(recipient.address).destination(recipient)
            destinations.setdefault(destination, []).append(position)
        if len(destinations) == 1:
            (destination,) = destinations
            return (PlannedPart(destination, turn(destination)),)
        return tuple(
            PlannedPart(destination, turn(destination), tuple(places))
            for destination, places in destinations.items()
        )

    async def sort(self, message: QueuedMessage) -> SortedRecipients:
        """The recipients of a part by the routes that they have now.

        A policy is asked once for each attempt: what it chose when a part moved holds where it moved to, so
        that one with a new answer every time does not keep mail going round.
        """
        by_route = SortedRecipients()
        settled: dict[Recipient, Route] = {}
        if self._settled:
            settled = self._settled.pop((message.queue_id, message.destination), {})
        for recipient in message.pending:
            route = settled.get(recipient) if settled else None
            if route is None and self._choose is not None:
                route = await self._choose(message.envelope, recipient)
            if route is None:
                route = self.routes.route(recipient.address)
            if isinstance(route, WaitRoute):
                by_route.waiting.append((recipient, route))
                continue
            destination = route.destination(recipient)
            if destination == message.destination:
                by_route.here.setdefault(route, []).append(recipient)
            else:
                by_route.elsewhere.setdefault(destination, []).append(recipient)
                self._settle(message.queue_id, destination, recipient, route)
        if by_route.elsewhere:
            for route, recipients in by_route.here.items():
                for recipient in recipients:
                    self._settle(message.queue_id, message.destination, recipient, route)
        return by_route

    def _settle(self, queue_id: str, destination: str, recipient: Recipient, route: Route) -> None:
        if self._choose is None:
            return
        settled = self._settled.get((queue_id, destination), {})
        settled[recipient] = route
        self._settled.keep((queue_id, destination), settled)


def moved(
    message: QueuedMessage, elsewhere: Mapping[str, Sequence[Recipient]], turn: Callable[[str], float]
) -> tuple[PlannedPart, ...]:
    """Other destinations for some recipients of a part, as the spool takes it."""
    return tuple(
        PlannedPart(destination, turn(destination), tuple(_positions(message.envelope, recipients)))
        for destination, recipients in elsewhere.items()
    )


def _positions(envelope: Envelope, recipients: Iterable[Recipient]) -> list[int]:
    wanted = frozenset(recipients)
    return [place for place, recipient in enumerate(envelope.recipients) if recipient in wanted]


def router_of(routes: Sequence[Route], settings: DeliverySettings, hooks: DeliveryHooks | None) -> Router:
    """The router for these routes, and for the policies that choose routes."""
    choose = RouteChooser(hooks, routes) if hooks is not None and hooks.asks else None
    return Router(RouteTable(routes), settings, choose)
