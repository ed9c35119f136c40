"""Overload: how many connections may be open while this process has more work than time.

All sessions share one event loop, so each one more makes all of them slower, and no message is taken sooner.
A new client gets 421 at once instead, and tries again later or elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from elemta.metrics import NetMetrics
from elemta.runtime.fast_logger import FastLogger

_log = FastLogger()

BEAT_SECONDS = 0.1
"""Seconds from one look at the event loop to the next."""

LATE_SECONDS = 0.1
"""Looks that come so late begin an overload. A session of one message takes some ten turns of the loop."""

STILL_LATE_SECONDS = 0.05
"""As long as looks come so late, an overload goes on: those that were let in are to be done in a second."""

SLOW_COMMIT_SECONDS = 0.5
"""A commit that takes so long keeps all sessions waiting that have sent a message."""

FEWEST_CONNECTIONS = 100
"""So many connections are always allowed: where fewer are slow, the load is not theirs."""

LOOKS_TO_BEGIN = 3
"""So many late looks in a row begin an overload; a burst of clients makes one or two.

Two are enough where together they are as late as these: the later looks are, the fewer there are, while
sessions go on opening. Either way it takes half a second at least.
"""

LOOKS_TO_GROW = 5
"""So many looks in time in a row let more in: a look may be in time by chance, between two long turns."""


class OverloadLimit:
    """The number of connections that may be open, beside ``max_connections``.

    ``open_connections()`` says how many are open, ``most()`` is ``max_connections``. Looks begin with
    :meth:`watch` and end by themselves. A late look cuts the number to nine tenths of what is open. Where
    some were in time without a late one between them, each further one adds a tenth. A few late looks do not
    begin that: a burst or the collector of garbage may have caused them.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        metrics: NetMetrics,
        open_connections: Callable[[], int],
        most: Callable[[], int],
    ) -> None:
        self._reactor = reactor
        self._metrics = metrics
        self._open = open_connections
        self._most = most
        #: How long the commit that is under way has taken so far; 0.0 where there is none.
        self.commit_seconds: Callable[[], float] = float
        #: None: there is no overload.
        self.limit: int | None = None
        self.refused = 0
        # How late the last looks were, as long as each was late.
        self._late: deque[float] = deque(maxlen=LOOKS_TO_BEGIN)
        self._looks_in_time = 0
        self._due = 0.0
        self._watches = False

    @property
    def has_capacity(self) -> bool:
        """Whether one more connection may be open."""
        return self.limit is None or self._open() < self.limit

    def watch(self) -> None:
        """Begin to look, if there are enough connections; called for each new one."""
        if not self._watches and self._open() >= FEWEST_CONNECTIONS:
            self._watches = True
            # Those of an earlier burst are of no account.
            self._late.clear()
            self._schedule()

    def _schedule(self) -> None:
        self._due = self._reactor.seconds() + BEAT_SECONDS
        self._reactor.callLater(BEAT_SECONDS, self._look)

    def _look(self) -> None:
        # Whatever goes wrong below: the next connection begins it again.
        self._watches = False
        late = self._reactor.seconds() - self._due
        commit = self.commit_seconds()
        connections = self._open()
        most = LATE_SECONDS if self.limit is None else STILL_LATE_SECONDS
        if late >= most or commit >= SLOW_COMMIT_SECONDS:
            self._late.append(max(late, LATE_SECONDS))
            self._looks_in_time = 0
            begins = len(self._late) > 1 and sum(self._late) >= LOOKS_TO_BEGIN * LATE_SECONDS
            if self.limit is not None or begins:
                self._cut(connections, late, commit)
        else:
            self._late.clear()
            self._looks_in_time += 1
            if self.limit is not None and self._looks_in_time >= LOOKS_TO_GROW:
                self._grow(self.limit)
        self._watches = self.limit is not None or connections >= FEWEST_CONNECTIONS
        if self._watches:
            self._schedule()

    def _cut(self, connections: int, late: float, commit: float) -> None:
        if self.limit is None:
            if connections < FEWEST_CONNECTIONS:
                return
            self.refused = 0
            self._metrics.overloaded.inc()
            _log.warn(
                "there is more to do than time; new connections are refused",
                event="overload.begun",
                connections=connections,
                late_seconds=round(late, 3),
                commit_seconds=round(commit, 3),
            )
        self.limit = max(FEWEST_CONNECTIONS, min(connections, self._most()) * 9 // 10)

    def _grow(self, limit: int) -> None:
        limit += limit // 10
        if limit < self._most():
            self.limit = limit
            return
        self.limit = None
        self._metrics.overloaded.dec()
        _log.info("new connections are taken again", event="overload.ended", refused=self.refused)
