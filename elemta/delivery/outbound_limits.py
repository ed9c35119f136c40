"""Outbound limits per destination. Mail above a limit waits; nothing fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.bounded_map import BoundedMap
from elemta.config import Counts, Identity
from elemta.deferred_value import MaybeDeferred, then
from elemta.envelope import Client, Envelope, Recipient
from elemta.ip import IPAddress
from elemta.limits import Charge, Limiter, OutboundCharge, Receipt, RefusalCause

_log = Logger()

LOG_INTERVAL = 10.0
"""Seconds between two lines of the log about the same limit."""

_MOST_PACED = 10_000

LOOK_AGAIN = 1.0
"""Seconds after which to ask again for a connection: when another node closes one is unknown."""

_SOONEST, _LATEST = 0.001, 3600.0


@dataclass(frozen=True, slots=True)
class Permit:
    """It may leave now. To be given back with :meth:`OutboundLimiter.done`, once."""

    receipts: tuple[Receipt, ...] = ()


@dataclass(frozen=True, slots=True)
class Throttled:
    """Not before so many seconds have passed: ``limit`` is full.

    ``everybody`` tells that this holds for all mail to the destination, not only for this sender's.
    """

    seconds: float
    limit: str
    whole_destination: bool


FREE = Permit()


class OutboundLimiter:
    """Asks the limits per destination before mail leaves.

    A destination is named the way a limit is shown: the recipients' domain where mail goes by MX, else the
    next hop's name, such as ``smtp.example.net:587``. Answers come at once where the store answers at
    once, else in a Deferred. ``limiter`` is replaced at a reload; what was charged before can still be given
    back.
    """

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self._next_log: dict[str, float] = {}
        # The limit that all mail to a destination waits for, and until when.
        self._paced: BoundedMap[str, tuple[str, float]] = BoundedMap(_MOST_PACED)

    @property
    def limiter(self) -> Limiter:
        """The limiter of the present configuration."""
        return self._limiter

    @limiter.setter
    def limiter(self, limiter: Limiter) -> None:
        self._limiter = limiter
        #: Whether there is any limit on the way out.
        self.counts = any(rule.is_outbound for rule in limiter.rules)

    def acquire(
        self, destination: str, envelope: Envelope, recipients: Sequence[Recipient]
    ) -> MaybeDeferred[Permit | Throttled]:
        """Ask for one transaction: a message, and those of its recipients that go together."""
        if not self.counts:
            return FREE
        client = envelope.client
        return self._ask(
            OutboundCharge(destination, envelope.sender, client.user, tuple(recipients), _ip(client)),
            Counts.MESSAGES,
        )

    def connect(self, destination: str) -> MaybeDeferred[Permit | Throttled]:
        """Ask for one connection, before it is made. It counts, idle or not, until :meth:`done`."""
        return self._ask(OutboundCharge(destination), Counts.OPEN_CONNECTIONS)

    def done(self, go: Permit, *, sent: bool = True) -> MaybeDeferred[None]:
        """A connection is closed, or a transaction is over.

        One that was not ``sent``, so that the next hop never heard of it, is given back.
        """
        if not go.receipts:
            return None
        released = self.limiter.release(go.receipts)
        if sent:
            return released
        refunded = self.limiter.refund(go.receipts)
        return refunded if released is None else released

    def _ask(self, outbound: OutboundCharge, counts: Counts) -> MaybeDeferred[Permit | Throttled]:
        charge = self.limiter.charge_outbound(outbound, counts)
        return then(charge, self._answer, outbound.destination)

    def _answer(self, charge: Charge, destination: str) -> Permit | Throttled:
        refusal = charge.refusal
        if refusal is None:
            return Permit(charge.receipts) if charge.receipts else FREE
        seconds = min(max(refusal.retry_after, _SOONEST), _LATEST)
        if refusal.counts is Counts.OPEN_CONNECTIONS and refusal.cause is RefusalCause.EXCEEDED:
            seconds = min(seconds, LOOK_AGAIN)
        wait = Throttled(seconds, refusal.limit, refusal.limit in self._whole_destination_limits())
        if wait.whole_destination:
            self._paced.keep(destination, (wait.limit, self.limiter.seconds() + wait.seconds))
        self._tell(wait, destination)
        return wait

    def paced(self, destination: str) -> tuple[str, float] | None:
        """The limit that all mail to a destination waits for now, and for how many seconds at most."""
        found = self._paced.get(destination)
        if found is None:
            return None
        limit, until = found
        left = until - self.limiter.seconds()
        if left <= 0:
            del self._paced[destination]
            return None
        return limit, left

    def all_paced(self) -> list[str]:
        """The destinations whose mail waits for a limit now."""
        return [name for name in list(self._paced) if self.paced(name) is not None]

    def _whole_destination_limits(self) -> set[str]:
        return {rule.name for rule in self.limiter.rules if rule.per == (Identity.DESTINATION,)}

    def _tell(self, wait: Throttled, destination: str) -> None:
        now = self.limiter.seconds()
        if now < self._next_log.get(wait.limit, now):
            return
        self._next_log[wait.limit] = now + LOG_INTERVAL
        _log.info(
            "mail waits for a limit",
            event="delivery.throttled",
            limit=wait.limit,
            destination=destination,
            seconds=round(wait.seconds, 3),
        )


def log_not_released(failure: Failure) -> None:
    """Say that what a permit holds could not be given back."""
    _log.failure(
        "a limit on the way out could not be given back", failure, event="delivery.limit_not_released"
    )


def _ip(client: Client) -> IPAddress | None:
    try:
        return ip_address(client.ip)
    except ValueError:
        return None  # from a Unix socket, or written here
