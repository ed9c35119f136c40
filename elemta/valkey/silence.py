"""Which servers left a command without its answer, until they answer one in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from elemta.valkey.address import ServerAddress

if TYPE_CHECKING:
    from elemta.valkey.connection import Connection

ASK_SECONDS = 0.4
"""Seconds between two questions to a silent server, so that an idle node hears of its return."""


class Silence:
    """Knows which servers are silent. ``ask`` sends a question with the common deadline to each of them.

    A server is silent from the first command that it did not answer in time, and no longer from the first
    that it did. ``changed`` is called at either.
    """

    __slots__ = ("_ask", "_changed", "_reactor", "_stopped", "_timer", "servers")

    def __init__(
        self, reactor: Any, ask: Callable[[set[ServerAddress]], None], changed: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._ask = ask
        self._changed = changed
        self._timer: Any = None
        self._stopped = False
        self.servers: set[ServerAddress] = set()

    def missed(self, connection: Connection | None) -> None:
        """A command got no answer, or none in time."""
        if self._stopped or connection is None or connection.address in self.servers:
            return
        self.servers.add(connection.address)
        self._changed()
        self._ask_later()

    def heard(self, connection: Connection | None) -> None:
        """A command was answered in time."""
        if connection is not None and connection.address in self.servers:
            self.servers.discard(connection.address)
            self._changed()

    def keep(self, known: set[ServerAddress]) -> None:
        """Only these are of interest: another server may have taken the place of a silent one."""
        self.servers &= known

    def stop(self) -> None:
        self._stopped = True
        self.servers.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ask_later(self) -> None:
        if self._timer is None:
            self._timer = self._reactor.callLater(ASK_SECONDS, self._ask_again)

    def _ask_again(self) -> None:
        self._timer = None
        if self.servers:
            self._ask(set(self.servers))
        if self.servers:
            self._ask_later()
