"""How much of a client's input is read: why reading pauses, the octets of one read, and input that waits.

Reading stops while the client does not read its replies, while the disk is behind, and while much input
waits for an answer. It goes on when none of these reasons is left.
"""

from __future__ import annotations

from typing import Any

from elemta.net.connection_state import ENDING, ConnectionState
from elemta.net.registry import ConnectionRegistry
from elemta.net.timeouts import ConnectionTimeouts

# Input that waits behind an open question; above it reading pauses. One read more may have come by then.
MOST_WAITING_INPUT = 4 * 1024
# Octets of one read while commands come. A client with so many unsent octets of replies does not read.
READ_COMMANDS = 16 * 1024
# Beneath TLS there is one read, one record and what was made of them: OpenSSL keeps a buffer of each.
READ_COMMANDS_BY_TLS = 8 * 1024
# Octets of one read while a message comes.
READ_MESSAGE = 64 * 1024
READ_MESSAGE_BY_TLS = 32 * 1024


# One for all sessions: an empty set of its own takes 216 octets.
_NOTHING: frozenset[str] = frozenset()


class InputFlow:
    """The reading of one connection; ``deadlines`` stand still while it pauses."""

    __slots__ = ("_deadlines", "_registry", "_transport", "paused_for", "waiting_memory")

    def __init__(self, registry: ConnectionRegistry, deadlines: ConnectionTimeouts) -> None:
        self._registry = registry
        self._deadlines = deadlines
        self._transport: Any = None
        self.paused_for = _NOTHING
        # What is counted in the registry for input that waits.
        self.waiting_memory = 0

    def begin(self, transport: Any) -> None:
        """The connection is made, and commands come."""
        self._transport = transport
        transport.bufferSize = READ_COMMANDS

    def take_commands(self, *, by_tls: bool) -> None:
        """Read as much at once as commands need."""
        self._transport.bufferSize = READ_COMMANDS_BY_TLS if by_tls else READ_COMMANDS

    def take_message(self, *, by_tls: bool) -> None:
        """Read as much at once as a message needs."""
        self._transport.bufferSize = READ_MESSAGE_BY_TLS if by_tls else READ_MESSAGE

    def pause(self, reason: str, state: ConnectionState) -> None:
        """Read nothing until ``reason`` is gone."""
        if not self.paused_for and state is not ConnectionState.LOST:
            self._deadlines.stop_reading(self._registry.seconds())
            self._transport.pauseProducing()
        self.paused_for |= {reason}

    def resume(self, reason: str, state: ConnectionState) -> None:
        """Read again, unless there is another reason not to."""
        self.paused_for = (self.paused_for - {reason}) or _NOTHING
        if not self.paused_for and state not in ENDING:
            self._deadlines.hold(self._registry.seconds(), reading=True)
            self._transport.resumeProducing()

    def is_too_much(self, octets: int) -> bool:
        """Whether so much input may not wait: none may while the waiting input of all is too much."""
        return octets > (0 if self._registry.waiting_input.crowded else MOST_WAITING_INPUT)

    def count_waiting(self, octets: int) -> None:
        """Count the memory of the input that waits, in place of what was counted before."""
        self._registry.waiting_input.taken += octets - self.waiting_memory
        self.waiting_memory = octets
