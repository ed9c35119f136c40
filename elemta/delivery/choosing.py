"""The routes that policies choose in place of the configuration's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred

from elemta.config import RouteConfig
from elemta.delivery.routes import ANY, HoldRoute, Route, route_of
from elemta.envelope import Envelope, Recipient
from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.policy.verdicts import Defer, Hold, RouteTo, Verdict

_REMEMBERED = 4096
_EVERYWHERE = frozenset({ANY})


@dataclass(frozen=True, slots=True)
class WaitRoute(Route):
    """Mail waits for its next attempt: nothing is tried, and the outcome is deferred for ``reason``."""

    reason: str = ""
    enhanced: str = "4.3.0"


class Chooser:
    """Asks the policies for a recipient's route. The answers are values, so that equal ones go together.

    A target that a ``[[route]]`` has too is that route: its TLS, credentials and number of connections hold.
    Any other has the defaults of a ``[[route]]``.
    """

    def __init__(self, hooks: DeliveryHooks, routes: Sequence[Route]) -> None:
        self._hooks = hooks
        self._configured: dict[str, Route] = {}
        for route in routes:
            self._configured.setdefault(route.target, route)
        self._chosen: dict[str, Route] = {}

    async def __call__(self, envelope: Envelope, recipient: Recipient) -> Route | None:
        """The route that a policy chose for this recipient, None where none has an opinion. Never raises."""
        decision = self._hooks.route(envelope, recipient)
        if isinstance(decision, Deferred):
            decision = await decision
        return self._route(decision.verdict)

    def _route(self, verdict: Verdict) -> Route | None:
        if isinstance(verdict, RouteTo):
            return self._to(verdict.target)
        if isinstance(verdict, Hold):
            return HoldRoute("hold:", _EVERYWHERE, reason=verdict.reason)
        if isinstance(verdict, Defer):
            return WaitRoute("", _EVERYWHERE, reason=verdict.text, enhanced=verdict.enhanced)
        return None

    def _to(self, target: str) -> Route:
        route = self._configured.get(target) or self._chosen.get(target)
        if route is None:
            # The hooks have checked the target; a policy may choose a new one for every message.
            if len(self._chosen) >= _REMEMBERED:
                self._chosen.clear()
            route = self._chosen[target] = route_of(RouteConfig(domains=(ANY,), to=target))
        return route
