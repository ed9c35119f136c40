"""The states of one client's connection, and what leads from one to the next.

docs/architecture.md has the diagram. That a client has closed its half, that the daemon drains, and that
reading is paused are no states: each of them may hold in any state.
"""

from __future__ import annotations

from elemta.fast_enum import FastEnum
from elemta.state_table import state_table


class ConnectionState(FastEnum):
    """What may be done with a connection."""

    OPEN = "open"
    HANDSHAKE = "in a TLS handshake"
    CLOSING_IN_HANDSHAKE = "closing before its TLS handshake is done"
    CLOSING = "closing"
    LOST = "lost"


class ConnectionChange(FastEnum):
    """What happens to a connection."""

    START_TLS = "start_tls"
    TLS_STARTED = "tls_started"
    CLOSE = "close"
    LOSE = "lose"


IN_HANDSHAKE = (ConnectionState.HANDSHAKE, ConnectionState.CLOSING_IN_HANDSHAKE)
"""A handshake is under way. If the connection ends now, the handshake has failed."""

CLOSING = (ConnectionState.CLOSING, ConnectionState.CLOSING_IN_HANDSHAKE)
"""We want to close, and wait for the client's close."""

ENDING = (*CLOSING, ConnectionState.LOST)
"""Nothing is read any more, and nothing new is said."""

next_state = state_table(
    {
        (ConnectionState.OPEN, ConnectionChange.START_TLS): ConnectionState.HANDSHAKE,
        (ConnectionState.OPEN, ConnectionChange.CLOSE): ConnectionState.CLOSING,
        (ConnectionState.HANDSHAKE, ConnectionChange.TLS_STARTED): ConnectionState.OPEN,
        (ConnectionState.HANDSHAKE, ConnectionChange.CLOSE): ConnectionState.CLOSING_IN_HANDSHAKE,
        (ConnectionState.CLOSING_IN_HANDSHAKE, ConnectionChange.TLS_STARTED): ConnectionState.CLOSING,
        **{(state, ConnectionChange.LOSE): ConnectionState.LOST for state in ConnectionState},
    }
)
"""The state after a change."""
