"""The seam between the limits and where they are counted: this node's memory, or a store that nodes share.

A store knows keys, bounds and amounts; it knows nothing of mail. All methods give a value, or a Deferred
of one; a store that answers at once must not make a Deferred, because every command of every client waits
for it. A store that can't answer raises, or fails with, :class:`elemta.errors.StoreUnavailable`.

Time is the store's own, so that all nodes of a cluster agree on it; only waits, in microseconds from now,
come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zope.interface import Attribute, Interface

from elemta.config import WhenValkeyIsDown
from elemta.deferred_value import MaybeDeferred
from elemta.limits.window import Bound, WindowCounter
from elemta.value_type import value_type

LEASE_SECONDS = 30
"""How long a lease outlives the last sign of life of the node that holds it."""


@dataclass(frozen=True, slots=True)
class LimitSpec:
    """What one limit asks of the store, the same for all its identities.

    ``name`` is the first part of every key. ``bounds`` are all to hold; for open connections there are none
    and ``leases`` says how many may be held at a time. ``binding`` requests are granted all or none; one
    that is not is charged by itself, if the binding ones beside it were granted, and its denial refuses
    nothing. ``cluster`` tells whether all nodes count together, and ``when_down`` what this node does while
    their shared store is away. ``of_session`` is for what belongs to the connection rather than to the
    transaction in it, and is never given back.
    """

    name: str
    bounds: tuple[Bound, ...] = ()
    leases: int | None = None
    binding: bool = True
    cluster: bool = True
    of_session: bool = False
    when_down: WhenValkeyIsDown = WhenValkeyIsDown.LOCAL


@value_type
class Request:
    """``amount`` for one identity of one limit. One call never has two requests with the same key."""

    spec: LimitSpec
    identity: str
    amount: int = 1

    @property
    def key(self) -> str:
        return f"{self.spec.name}:{self.identity}"


@dataclass(slots=True, eq=False)
class Receipt:
    """What one request was charged: a token rather than a value, because it is good for one return.

    ``at`` is the store's time of the charge in microseconds, ``origin`` whatever the store needs to find
    the charge again. The store sets ``settled`` when it takes the charge or the lease back. ``mirror`` is
    what this node's memory was charged for the same thing, where a shared store made the charge.
    """

    request: Request
    at: int
    origin: object = None
    settled: bool = False
    mirror: Receipt | None = None

    @property
    def key(self) -> str:
        """What was charged: the limit's name and the identity."""
        return self.request.key

    @property
    def limit(self) -> str:
        """The name of the limit."""
        return self.request.spec.name

    @property
    def is_lease(self) -> bool:
        return self.request.spec.leases is not None


@value_type
class Denial:
    """A request that did not pass. ``wait`` is exactly how many microseconds later the same request would,

    if nothing else were charged; for a lease, whose end is unknown, the time by which a dead node's are
    gone. None: it never passes, because the amount alone is above the limit. ``provisional`` is what this
    node says by itself while the shared store is away: it holds no longer than that, so don't remember it.
    """

    request: Request
    wait: int | None
    provisional: bool = False


@value_type
class Decision:
    """What became of the requests of one call: a receipt for each that was charged."""

    receipts: tuple[Receipt, ...] = ()
    denials: tuple[Denial, ...] = ()
    granted: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a request's key is: what counts now for each bound (or the leases held), and when it passes.

    ``wait`` as in :class:`Denial`; 0 when the request would pass now.
    """

    request: Request
    used: tuple[int, ...]
    wait: int | None


@dataclass(slots=True, eq=False)
class Snapshot:
    """What a store knows of a request's key, for a caller that goes on counting in a copy.

    ``request`` is as the store decides it: while the shared store is away, with this node's share. ``now`` is
    the time of the store in microseconds, ``counter`` a copy, and ``leases`` are those that are held.
    Requests of a lower ``turn`` are decided first. One that is ``allowed`` passes and is not counted, one
    that is ``unavailable`` can't be decided. ``alone``: this node decides by itself.
    """

    request: Request
    now: int
    counter: WindowCounter
    leases: int = 0
    turn: int = 0
    allowed: bool = False
    unavailable: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Ranking:
    """The fullest keys of a limit, fullest first. Not ``complete`` when not all could be looked at."""

    usages: tuple[Usage, ...] = ()
    complete: bool = True


class ILimitStore(Interface):
    """Where limits are counted."""

    renewal = Attribute("Every how many seconds to call renew; None where leases need no renewal.")

    def seconds() -> float:
        """This node's own steady time, by which waits can be remembered. Not the time that is counted by."""

    def acquire(requests: Sequence[Request]) -> MaybeDeferred[Decision]:
        """Charge the binding requests all or none, in one round trip; see :class:`LimitSpec` for the others.

        What is refused is not charged. A refusal reports every binding request that falls short. What is
        granted after the Deferred was cancelled, the store itself gives back.
        """

    def refund(receipts: Sequence[Receipt]) -> MaybeDeferred[None]:
        """Take exactly these charges back; twice is once, after their expiry nothing. Not for leases."""

    def release(receipts: Sequence[Receipt]) -> MaybeDeferred[None]:
        """Give these leases back; twice is once."""

    def renew() -> MaybeDeferred[None]:
        """Prolong all leases of this node by :data:`LEASE_SECONDS`."""

    def peek(requests: Sequence[Request]) -> MaybeDeferred[tuple[Usage, ...]]:
        """How full the keys of these requests are, and whether each would pass by itself. Charges nothing."""

    def snapshot(requests: Sequence[Request]) -> MaybeDeferred[tuple[Snapshot, ...]]:
        """Copies of what counts for these requests, in their order. Changes nothing."""

    def reset(spec: LimitSpec, identity: str) -> MaybeDeferred[bool]:
        """Forget what is counted for one key; False when nothing is. Leases stay: they are facts."""

    def top(spec: LimitSpec, count: int) -> MaybeDeferred[Ranking]:
        """The ``count`` fullest keys of a limit, fullest first."""
