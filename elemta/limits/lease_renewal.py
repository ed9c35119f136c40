"""The renewal of the leases that a store holds: every few seconds, whatever the last one came to."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.deferred_value import MaybeDeferred, Steps, run
from elemta.errors import StoreUnavailable

_log = Logger()


class RenewedStore(Protocol):
    """A store with leases: every how many seconds it renews them, None where they need no renewal."""

    @property
    def renewal(self) -> float | None: ...

    def renew(self) -> MaybeDeferred[None]: ...


class LeaseRenewal:
    """Renews the leases of ``store`` from :meth:`start` to :meth:`stop`."""

    def __init__(self, clock: IReactorTime, store: RenewedStore) -> None:
        self._store = store
        self._renewals = LoopingCall(self._renew)
        self._renewals.clock = clock

    def start(self) -> None:
        """Renew them from now on, if they need it."""
        if self._store.renewal is not None:
            self._renewals.start(self._store.renewal, now=False).addErrback(_ended)

    def stop(self) -> None:
        """Renew them no more."""
        if self._renewals.running:
            self._renewals.stop()

    def _renew(self) -> Any:
        return run(self._renew_leases())

    def _renew_leases(self) -> Steps[None]:
        # After a failure the next renewal comes in a few seconds.
        try:
            yield self._store.renew()
        except StoreUnavailable:
            return
        except Exception:
            _log.failure("the leases of open connections could not be renewed", event="limits.not_renewed")


def _ended(failure: Failure) -> None:
    _log.failure("the renewal of leases ended", failure, event="limits.not_renewed")
