"""The TLS handshakes of this worker, counted together with those of the host's other workers."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.limits.identity import ip_identity

if TYPE_CHECKING:
    from elemta.net.registry import ClientConnection

_log = Logger()


class HostHandshakes(typing.Protocol):
    """The handshakes of all workers of the host."""

    def take(self, client: str, most: int) -> Deferred[bool | None]:
        """Whether a client may have one more, of ``most`` (0: it is only counted); None: nothing says so."""

    def give_back(self, client: str) -> None:
        """One that was counted is over."""

    def share(self, most: int) -> int:
        """How many a client may have here, while nothing says how many there are elsewhere."""


class SharedHandshakes:
    """The handshakes that are under way here.

    One begins at once. It ends when the host's answer is that its client has too many.
    """

    def __init__(self, host: HostHandshakes) -> None:
        self._host = host
        # Whether the host counts it, as far as is known.
        self._under_way: dict[ClientConnection, bool] = {}

    def begin(self, connection: ClientConnection, most: int, *, binding: bool) -> None:
        """Count it. ``binding``: no more than ``most`` of its client; else it is let through."""
        client = ip_identity(connection.client_ip)
        self._under_way[connection] = False
        asked = self._host.take(client, most if binding else 0)
        asked.addCallback(self._answered, connection, client, most if binding else 0).addErrback(_failed)

    def end(self, connection: ClientConnection) -> None:
        """It is done, or its connection is gone."""
        if self._under_way.pop(connection, False):
            self._host.give_back(ip_identity(connection.client_ip))

    def _answered(self, granted: bool | None, connection: ClientConnection, client: str, most: int) -> None:
        if connection not in self._under_way:
            if granted:
                self._host.give_back(client)
        elif granted:
            self._under_way[connection] = True
        elif granted is False or (most and self._of(client) > self._host.share(most)):
            del self._under_way[connection]
            connection.refuse_handshake()

    def _of(self, client: str) -> int:
        return sum(ip_identity(each.client_ip) == client for each in self._under_way)


def _failed(failure: Failure) -> None:
    _log.failure("a handshake could not be counted", failure, event="connection.internal_error")
