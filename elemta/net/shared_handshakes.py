"""The TLS handshakes of this worker, counted together with those of the host's other workers."""

from __future__ import annotations

import typing
from dataclasses import dataclass
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


@dataclass(slots=True, eq=False)
class _Handshake:
    """One that is under way."""

    client: str
    #: How many its client may have; 0: it is let through.
    most: int
    #: Whether the host counts it, as far as is known.
    counted: bool = False


class SharedHandshakes:
    """The handshakes that are under way here.

    One begins at once. It ends when the host's answer is that its client has too many.
    """

    def __init__(self, host: HostHandshakes) -> None:
        self._host = host
        self._under_way: dict[ClientConnection, _Handshake] = {}

    def begin(self, connection: ClientConnection, most: int, *, binding: bool) -> None:
        """Count it. ``binding``: no more than ``most`` of its client; else it is let through."""
        handshake = _Handshake(ip_identity(connection.client_ip), most if binding else 0)
        self._under_way[connection] = handshake
        asked = self._host.take(handshake.client, handshake.most)
        asked.addCallback(self._answered, connection, handshake).addErrback(_failed)

    def end(self, connection: ClientConnection) -> None:
        """It is done, or its connection is gone."""
        handshake = self._under_way.pop(connection, None)
        if handshake is not None and handshake.counted:
            self._host.give_back(handshake.client)

    def _answered(self, granted: bool | None, connection: ClientConnection, handshake: _Handshake) -> None:
        if connection not in self._under_way:
            if granted:
                self._host.give_back(handshake.client)
        elif granted:
            handshake.counted = True
        elif granted is False or (handshake.most and self._is_beyond_share(handshake)):
            del self._under_way[connection]
            connection.refuse_handshake()

    def _is_beyond_share(self, handshake: _Handshake) -> bool:
        here = sum(each.client == handshake.client for each in self._under_way.values())
        return here > self._host.share(handshake.most)


def _failed(failure: Failure) -> None:
    _log.failure("a handshake could not be counted", failure, event="connection.internal_error")
