"""The free space on the spool's disk, as of a few seconds ago."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.runtime.disk import FreeSpace

_log = Logger()


class SpaceWatch:
    """Looks at the disk each ``seconds``, until it is stopped.

    ``upkeep`` is done before each look, ``ask`` asks for the space in a thread, and ``found`` gets it.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        seconds: float,
        space: FreeSpace,
        *,
        upkeep: Callable[[], None],
        ask: Callable[[], Deferred[FreeSpace]],
        found: Callable[[FreeSpace], None],
    ) -> None:
        #: What the last look found; nothing is known after one that failed.
        self.space = space
        self._reactor = reactor
        self._seconds = seconds
        self._upkeep = upkeep
        self._ask = ask
        self._found = found
        self._stopped = False
        self._call: IDelayedCall | None = None
        self._later()

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _later(self) -> None:
        self._call = self._reactor.callLater(self._seconds, self._look)

    def _look(self) -> None:
        self._call = None
        try:
            self._upkeep()
            asked = self._ask()
        except Exception:
            # It must come again, whatever broke.
            self._failed(Failure())
        else:
            asked.addCallbacks(self._looked, self._failed)

    def _looked(self, space: FreeSpace) -> None:
        self.space = space
        if not self._stopped:
            self._later()
            self._found(space)

    def _failed(self, failure: Failure) -> None:
        _log.error(
            "the free space on the spool's disk is not known",
            event="spool.space_unknown",
            reason=str(failure.value),
        )
        self._looked(FreeSpace(0, None))
