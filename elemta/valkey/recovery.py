"""What is done about error replies: send the command again where that helps, say what it was where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from elemta.errors import ValkeyError, ValkeyFailure
from elemta.valkey.calls import ValkeyCall
from elemta.valkey.resp import move_of
from elemta.valkey.topology import Topology

if TYPE_CHECKING:
    from elemta.valkey.connection import Connection

_TURNS = 8
_PAUSE_SECONDS = 0.005
_PARKED = 1024
# Such a server has another role than we think, has lost its memory, or has forgotten our login.
_DISTRUSTED = ("READONLY", "MASTERDOWN", "LOADING", "NOAUTH")

# TRYAGAIN for keys that a script did not announce: they are not where the slot leaves from.
_ON_THE_MOVE = "non local key"


class Recovery:
    """Takes the calls that were refused.

    NOSCRIPT: the script is loaded, and the call goes behind it. MOVED and ASK are followed. TRYAGAIN, and a
    redirection to a node that is yet to be connected to, are tried again every few milliseconds, as long as
    the call's deadline allows. Everything else fails: only an error reply proves that nothing was done, and
    most would say the same again.
    """

    def __init__(
        self, reactor: Any, topology: Topology, failed: Callable[[ValkeyCall, ValkeyError], None]
    ) -> None:
        self._reactor = reactor
        self._topology = topology
        self._failed = failed
        self._parked: list[ValkeyCall] = []
        self._timer: Any = None
        self._stopped = False

    def refused(self, call: ValkeyCall, error: Exception) -> None:
        """An error came instead of a reply, or the connection is lost."""
        connection = call.connection
        assert connection is not None  # noqa: S101  # it was sent
        if connection.is_lost(error):
            self._failed(call, ValkeyError(ValkeyFailure.DISCONNECTED, str(error), maybe_done=True))
            return
        words = str(error)
        call.turns += 1
        if call.turns > _TURNS or not self._send_again(call, words):
            if words.startswith(_DISTRUSTED):
                self._topology.distrust(connection, words)
            self._failed(call, _trouble(connection, error))

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        parked, self._parked = self._parked, []
        for call in parked:
            self._failed(call, ValkeyError(ValkeyFailure.DISCONNECTED, "stopped"))

    def _send_again(self, call: ValkeyCall, words: str) -> bool:
        """Whether the call is on its way again, or will be."""
        connection = call.connection
        assert connection is not None  # noqa: S101
        kind = words.partition(" ")[0]
        if kind == "NOSCRIPT" and call.script is not None:
            connection.load(call.script)
            call.send(connection, asking=call.asking)
            return True
        if not self._topology.clustered:
            return False
        if kind in ("MOVED", "ASK"):
            return self._follow(call, words)
        if kind == "CLUSTERDOWN":
            self._topology.doubt()
        return (kind == "TRYAGAIN" or _ON_THE_MOVE in words) and self._park(call)

    def _follow(self, call: ValkeyCall, words: str) -> bool:
        move = move_of(words)
        if move is None or call.connection is None:
            return False
        for_good = words.startswith("MOVED")
        connection = self._topology.redirected(move, call.connection, for_good=for_good)
        if connection is None:
            return self._park(call)
        call.send(connection, asking=not for_good)
        return True

    def _park(self, call: ValkeyCall) -> bool:
        if self._stopped or call.key is None or len(self._parked) >= _PARKED:
            return False
        self._parked.append(call)
        if self._timer is None:
            self._timer = self._reactor.callLater(_PAUSE_SECONDS, self._resume)
        return True

    def _resume(self) -> None:
        self._timer = None
        parked, self._parked = self._parked, []
        for call in parked:
            if call.deferred is None:
                continue  # its deadline has passed
            connection = self._topology.connection(call.key)
            if connection is None:
                self._park(call)
            else:
                call.turns = 0
                call.send(connection)


def _trouble(connection: Connection, error: Exception) -> ValkeyError:
    if str(error).startswith("NOSCRIPT") and connection.cannot_load:
        return ValkeyError(ValkeyFailure.DENIED, connection.cannot_load)
    return connection.trouble(error)
