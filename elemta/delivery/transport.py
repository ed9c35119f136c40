"""What a transport is: it delivers one message to some recipients, and says what became of each.

A transport is a module in this package with a ``TRANSPORT``, and a row of
:class:`elemta.config.TargetKind` that names the module.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, Protocol, TypeVar

from elemta.config import TargetKind
from elemta.outcome import Attempt, Outcome

if TYPE_CHECKING:
    from elemta.config import RouteConfig, RouteTarget
    from elemta.delivery.connections import Connections
    from elemta.delivery.mx import MailResolver
    from elemta.delivery.routes import Route
    from elemta.delivery.settings import DeliverySettings
    from elemta.domains import Domains
    from elemta.envelope import Envelope, Recipient
    from elemta.runtime import Runtime, WorkerPool

R_co = TypeVar("R_co", bound="Route", covariant=True)


@dataclass(frozen=True, slots=True)
class MessageToDeliver(Generic[R_co]):
    """One message on its way out over one route.

    ``attempt`` makes the outcomes. ``open_content`` gives the message as it is sent on, which the
    caller closes, or raises SpoolError.
    """

    envelope: Envelope
    route: R_co
    attempt: Attempt
    open_content: Callable[[], Awaitable[BinaryIO]]


@dataclass(frozen=True, slots=True)
class TransportServices:
    """What transports share: threads that may block, connections to next hops, and DNS (None: there is
    none)."""

    runtime: Runtime
    threads: WorkerPool
    connections: Connections
    settings: DeliverySettings
    resolver: MailResolver | None = None


class Transport(Protocol):
    """Delivers the messages of all routes of its kind."""

    @property
    def has_stuck_thread(self) -> bool:
        """Whether one of the threads hangs in work for an attempt that is over."""
        return False

    async def deliver(
        self, message: MessageToDeliver[Any], recipients: Sequence[Recipient]
    ) -> Sequence[Outcome]:
        """Try each of these recipients once: one outcome for each, in order.

        What is wrong on this side is DEFERRED. The outcome of a recipient that has the message goes into
        ``message.attempt.taken`` at once. An exception defers all for a fault inside Elemta, but for those.
        """
        raise NotImplementedError

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Use these settings for every message from now on."""


@dataclass(frozen=True, slots=True)
class ConfiguredRoute:
    """A ``[[route]]``, its target and its domains in canonical form.

    ``key`` names it in a fault; ``domains_named`` knows the mailboxes that are there by name.
    """

    config: RouteConfig
    target: RouteTarget
    domains: frozenset[str]
    key: str = "route"
    domains_named: Domains | None = None


@dataclass(frozen=True, slots=True)
class TransportKind:
    """What a module of a transport offers as its ``TRANSPORT``.

    ``route_type`` is the class of its routes; ``route`` makes one, or raises ConfigError; ``make`` makes the
    transport.
    """

    route_type: type[Route]
    route: Callable[[ConfiguredRoute], Route]
    make: Callable[[TransportServices], Transport]


def transport_of(kind: TargetKind) -> TransportKind | None:
    """The transport for targets of this kind; None where mail does not leave."""
    if not kind.transport:
        return None
    found: TransportKind = import_module(kind.transport).TRANSPORT
    return found


def make_transports(services: TransportServices) -> dict[type[Route], Transport]:
    """All transports, each by the class of its routes."""
    kinds = [found for kind in TargetKind if (found := transport_of(kind)) is not None]
    return {kind.route_type: kind.make(services) for kind in kinds}
