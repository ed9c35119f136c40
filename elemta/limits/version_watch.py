"""Watches a number in Valkey that is another after each change of what all nodes share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.errors import StoreUnavailable
from elemta.runtime import Runtime
from elemta.valkey.client import ValkeyCommands

_log = Logger()

LOOK_SECONDS = 1.0
"""Seconds between two looks at the number."""

DEADLINE = 1.0
"""Seconds that a look, or a change, may take."""


def shared_keys(prefix: str, name: str, *, clustered: bool) -> list[bytes]:
    """The key of something that all nodes share, and that of its version: on one server of a cluster."""
    key = f"{prefix}{{{name}}}" if clustered else f"{prefix}{name}"
    return [key.encode(), f"{key}:version".encode()]


class VersionWatch:
    """Calls ``look`` every second with the number at ``key`` (None: there is none), while Valkey is there.

    ``before`` is called before each look, also while Valkey is away, and ``reconnected`` when it is back:
    what it says then may be older, or nothing. A StoreUnavailable of a look is no failure: the next comes at
    its time.
    """

    def __init__(
        self,
        runtime: Runtime,
        valkey: ValkeyCommands,
        key: bytes,
        look: Callable[[int | None], Awaitable[None]],
        *,
        before: Callable[[], None],
        reconnected: Callable[[], None],
    ) -> None:
        self._valkey = valkey
        self._key = key
        self._look = look
        self._before = before
        self._reconnected = reconnected
        self._looks = LoopingCall(self._look_soon)
        self._looks.clock = runtime.reactor
        self.under_way: Deferred[None] | None = None

    def start(self) -> None:
        self._valkey.on_change(self._link_changed)
        self._looks.start(LOOK_SECONDS)

    def stop(self) -> None:
        if self._looks.running:
            self._looks.stop()
        if self.under_way is not None:
            self.under_way.cancel()

    def _link_changed(self, up: bool) -> None:
        if up and self._looks.running:
            self._reconnected()
            self._look_soon()

    def _look_soon(self) -> None:
        """Never waited for: a slow one is as good as none."""
        self._before()
        if self.under_way is None and self._valkey.up:
            self.under_way = ensureDeferred(self._look_now())
            self.under_way.addBoth(self._look_ended)

    def _look_ended(self, result: object) -> None:
        self.under_way = None
        if isinstance(result, Failure) and result.check(CancelledError) is None:
            _log.failure(
                "what all nodes share could not be read", result, event="limits.look_failed", key=self._name
            )

    async def _look_now(self) -> None:
        try:
            found = await self._valkey.command("GET", self._key, key=self._key, deadline=DEADLINE)
            await self._look(int(found) if found is not None and found.isdigit() else None)
        except StoreUnavailable:
            _log.debug("what all nodes share was not read", event="limits.not_looked", key=self._name)

    @property
    def _name(self) -> str:
        return self._key.decode("utf-8", "replace")
