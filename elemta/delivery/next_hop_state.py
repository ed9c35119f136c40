"""The states of a connection to a next hop beside those of its session, and what leads from one to the next.

docs/architecture.md has the diagrams.
"""

from __future__ import annotations

from elemta.fast_enum import FastEnum
from elemta.state_table import state_table


class TLSState(FastEnum):
    """What has come of TLS with this server."""

    CLEAR = "in the clear"
    HANDSHAKE = "in a handshake"
    PROTECTED = "protected"
    FAILED = "failed"


class TLSChange(FastEnum):
    """What happens to TLS."""

    START = "start"
    DONE = "done"
    FAIL = "fail"


class ContentFlow(FastEnum):
    """Whether the transport takes content now."""

    NONE = "no content is sent"
    HELD_BACK = "paused before the content begins"
    FLOWING = "flowing"
    PAUSED = "paused by the transport"


class FlowChange(FastEnum):
    """What happens to the content."""

    BEGIN = "begin"
    PAUSE = "pause"
    RESUME = "resume"
    END = "end"


next_tls = state_table(
    {
        (TLSState.CLEAR, TLSChange.START): TLSState.HANDSHAKE,
        (TLSState.HANDSHAKE, TLSChange.DONE): TLSState.PROTECTED,
        # Also without a handshake: a server that ends at STARTTLS has no TLS that works.
        **{(state, TLSChange.FAIL): TLSState.FAILED for state in TLSState},
    }
)
"""What has come of TLS after a change."""

next_flow = state_table(
    {
        (ContentFlow.NONE, FlowChange.BEGIN): ContentFlow.FLOWING,
        (ContentFlow.NONE, FlowChange.PAUSE): ContentFlow.HELD_BACK,
        (ContentFlow.HELD_BACK, FlowChange.RESUME): ContentFlow.NONE,
        (ContentFlow.HELD_BACK, FlowChange.BEGIN): ContentFlow.PAUSED,
        (ContentFlow.FLOWING, FlowChange.PAUSE): ContentFlow.PAUSED,
        (ContentFlow.FLOWING, FlowChange.END): ContentFlow.NONE,
        (ContentFlow.PAUSED, FlowChange.RESUME): ContentFlow.FLOWING,
        (ContentFlow.PAUSED, FlowChange.END): ContentFlow.NONE,
    }
)
"""The flow after a change."""
