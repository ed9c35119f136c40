"""What became of one delivery attempt, described once, where it happened.

The value travels untouched to the retry schedule, the log, the metrics and (with bounces) the DSN.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from elemta.address import Address
from elemta.fast_enum import FastEnum


class Status(FastEnum):
    """What one attempt came to."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"


class ReachedStage(FastEnum):
    """How far an attempt came; it says which party a failure is about.

    NOTHING_FREE: no connection was allowed in time, which is no fault of the next hop. NOWHERE: nothing could
    be connected to, or none that was reached was ready to talk, or the one that was answered no command of
    the transaction. ANSWERED: the next hop answered for this very message, or broke off while it was doing
    so, or nothing had to be asked.
    """

    NOTHING_FREE = "nothing free"
    NOWHERE = "nowhere"
    ANSWERED = "answered"


class LocalFault(enum.Flag):
    """What may have failed here. Some other destination that is reached shows that it works.

    SOCKETS: this process got no descriptor, port or memory for a connection. NETWORK: there is no way to the
    other side, or nothing answers. NAMES: no name server gave an answer. These two are of destinations that
    go by ``mx:``. For a next hop that a route names they are ROUTE_NETWORK and ROUTE_NAMES: it may be in a
    network of its own, and its name is looked up in the system's way.
    """

    NONE = 0
    SOCKETS = enum.auto()
    NETWORK = enum.auto()
    NAMES = enum.auto()
    ROUTE_NETWORK = enum.auto()
    ROUTE_NAMES = enum.auto()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one attempt for one recipient.

    ``code`` and ``enhanced`` are the remote's; when there was no reply, ``code`` is 0 and ``enhanced``
    says what happened here (RFC 3463; may be ""). ``command`` is what the reply answers. ``text`` is the
    remote's reply or what happened locally, bounded and printable. ``next_hop`` names the host and address
    (or directory) that was talked to, ``route`` the route's target as configured.
    ``at`` is seconds since the epoch, ``seconds`` how long the attempt took.

    Of a delivered one, ``dsn_passed_on`` says that the next hop offers DSN and so reports by itself from
    here on, ``final`` that the message is where its recipient reads it (a Maildir, an LMTP server); with
    neither it was relayed to a host that will not report (RFC 3461 §5.2.2).

    ``reached`` says how far the attempt had come. ``local`` is about this side: where nothing answered, what
    may be wrong here; where something did, what its answer shows to work here.
    """

    queue_id: str
    recipient: Address
    status: Status
    text: str
    route: str
    next_hop: str
    at: float
    seconds: float = 0.0
    code: int = 0
    enhanced: str = ""
    final: bool = False
    dsn_passed_on: bool = False
    reached: ReachedStage = ReachedStage.ANSWERED
    local: LocalFault = LocalFault.NONE
    command: str = ""
    reason: str = ""


def _no_clock() -> float:
    return 0.0


class Attempt:
    """One attempt for some recipients over one route, while it lasts: describes what becomes of each.

    A transport says where the attempt is: ``next_hop`` is the host in use, ``final`` whether a message that
    it takes is where its recipient reads it, ``works`` what its answers show to work here. ``taken`` gets the
    outcome of each recipient that has the message, the moment that is known: it counts, whatever fails
    after that. ``began_at`` is in seconds since the epoch.
    """

    __slots__ = (
        "_began",
        "_monotonic",
        "_wall",
        "began_at",
        "final",
        "next_hop",
        "queue_id",
        "route",
        "taken",
        "works",
    )

    def __init__(
        self,
        queue_id: str = "",
        route: str = "",
        taken: dict[Address, Outcome] | None = None,
        *,
        wall: Callable[[], float] = _no_clock,
        monotonic: Callable[[], float] = _no_clock,
    ) -> None:
        self.queue_id = queue_id
        self.route = route
        self.taken: dict[Address, Outcome] = {} if taken is None else taken
        self.next_hop = ""
        self.final = False
        self.works = LocalFault.NONE
        self._wall = wall
        self._monotonic = monotonic
        self._began = monotonic()
        self.began_at = wall()

    def begin(self) -> None:
        """What it waited for until now is no part of how long it takes."""
        self._began = self._monotonic()

    def outcome(
        self,
        recipient: Address,
        status: Status,
        code: int,
        enhanced: str,
        text: str,
        *,
        reached: ReachedStage = ReachedStage.ANSWERED,
        local: LocalFault | None = None,
        dsn_passed_on: bool = False,
        command: str = "",
    ) -> Outcome:
        """What became of a recipient at this moment."""
        if local is None:
            local = self.works if reached is ReachedStage.ANSWERED else LocalFault.NONE
        return Outcome(
            self.queue_id,
            recipient,
            status,
            text,
            self.route,
            self.next_hop,
            self._wall(),
            self._monotonic() - self._began,
            code,
            enhanced,
            self.final and status is Status.DELIVERED,
            dsn_passed_on,
            reached,
            local,
            command,
        )

    def same_for_all(
        self,
        recipients: Iterable[Address],
        status: Status,
        enhanced: str,
        text: str,
        *,
        reached: ReachedStage = ReachedStage.ANSWERED,
        local: LocalFault | None = None,
    ) -> tuple[Outcome, ...]:
        """The same for each of these, where no reply says it."""
        return tuple(
            self.outcome(recipient, status, 0, enhanced, text, reached=reached, local=local)
            for recipient in recipients
        )


def all_delivered(outcomes: Iterable[Outcome]) -> bool:
    """Whether every recipient has the message."""
    for outcome in outcomes:  # noqa: SIM110 - for each message: `all` makes a generator
        if outcome.status is not Status.DELIVERED:
            return False
    return True


def furthest(outcomes: Iterable[Outcome]) -> ReachedStage:
    """How far an attempt came, by the outcomes of its recipients."""
    found = ReachedStage.NOTHING_FREE
    for outcome in outcomes:
        if outcome.reached is ReachedStage.ANSWERED:
            return ReachedStage.ANSWERED
        if outcome.reached is ReachedStage.NOWHERE:
            found = ReachedStage.NOWHERE
    return found


@dataclass(frozen=True, slots=True)
class ReturnedMessage:
    """What came of giving a message up: the recipients that it still had, and the notices for the sender.

    No notice is sent where the sender wanted none.
    """

    recipients: int
    notices: int
