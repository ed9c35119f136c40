"""Turns: few attempts of one user and of one network are under way at once, and the others wait in order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from elemta.errors import CredentialsUnavailable

PER_USER = 2
PER_NETWORK = 8
WAITING_PER_NETWORK = 64
WAITING = 1024
WAIT_SECONDS = 10.0


@dataclass(slots=True, eq=False)
class AttemptPermit:
    """One attempt's right to be under way; to be ended exactly once."""

    user: str
    network: str


@dataclass(slots=True)
class _Network:
    under_way: int = 0
    users: dict[str, int] = field(default_factory=dict)
    waiting: dict[AttemptPermit, Deferred[AttemptPermit]] = field(default_factory=dict)


class AttemptLimiter:
    """Hands out turns.

    An attempt is charged as a failure before its password is looked at. So without this, as many good logins
    at the same moment as failures are allowed would refuse one more. What waits here is not charged yet.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        per_user: int = PER_USER,
        per_network: int = PER_NETWORK,
        waiting_per_network: int = WAITING_PER_NETWORK,
        waiting: int = WAITING,
        longest_wait: float = WAIT_SECONDS,
    ) -> None:
        """``longest_wait`` is in seconds; the rest are numbers of attempts.

        ``per_user`` is for one user in one network.
        """
        self._clock = clock
        self._per_user = per_user
        self._per_network = per_network
        self._waiting_per_network = waiting_per_network
        self._most_waiting = waiting
        self._longest_wait = longest_wait
        self._networks: dict[str, _Network] = {}
        self._waiting = 0
        self._ready: deque[tuple[AttemptPermit, Deferred[AttemptPermit]]] = deque()
        self._going_on = False

    def __len__(self) -> int:
        """How many networks have attempts under way."""
        return len(self._networks)

    def take(self, user: str, network: str) -> Deferred[AttemptPermit]:
        """A turn, now or when it comes.

        Raises, or fails with, :class:`~elemta.errors.CredentialsUnavailable` when too many wait already, or
        when it did not come in time.
        """
        turn = AttemptPermit(user, network)
        known = self._networks.setdefault(network, _Network())
        if self._fits(known, user):
            self._begin(known, turn)
            return succeed(turn)
        if len(known.waiting) >= self._waiting_per_network or self._waiting >= self._most_waiting:
            raise CredentialsUnavailable(f"{self._waiting} logins wait for others to end already")

        def leave(_deferred: Deferred[AttemptPermit]) -> None:
            self._leave(known, turn)

        waiting: Deferred[AttemptPermit] = Deferred(leave)
        known.waiting[turn] = waiting
        self._waiting += 1
        waiting.addTimeout(self._longest_wait, self._clock)
        return waiting.addErrback(_unavailable)

    def end(self, turn: AttemptPermit) -> None:
        """The attempt is over: those that waited for it go on."""
        known = self._networks[turn.network]
        known.under_way -= 1
        known.users[turn.user] -= 1
        if not known.users[turn.user]:
            del known.users[turn.user]
        begun = []
        for waiting in known.waiting:
            if known.under_way >= self._per_network:
                break
            if self._fits(known, waiting.user):
                self._begin(known, waiting)
                begun.append(waiting)
        self._ready.extend((each, self._leave(known, each)) for each in begun)
        if not known.under_way:
            del self._networks[turn.network]
        self._go_on()

    def _go_on(self) -> None:
        """Let those go on whose turn has come. One may end at once and come back here: hence the loop."""
        if self._going_on:
            return
        self._going_on = True
        try:
            while self._ready:
                turn, deferred = self._ready.popleft()
                deferred.callback(turn)
        finally:
            self._going_on = False

    def _fits(self, known: _Network, user: str) -> bool:
        return known.under_way < self._per_network and known.users.get(user, 0) < self._per_user

    def _begin(self, known: _Network, turn: AttemptPermit) -> None:
        known.under_way += 1
        known.users[turn.user] = known.users.get(turn.user, 0) + 1

    def _leave(self, known: _Network, turn: AttemptPermit) -> Deferred[AttemptPermit]:
        self._waiting -= 1
        return known.waiting.pop(turn)


def _unavailable(failure: Failure) -> AttemptPermit:
    failure.trap(OutOfTime)
    raise CredentialsUnavailable("the turn did not come in time") from None
