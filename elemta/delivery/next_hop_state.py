"""The states of a connection to a next hop beside those of its session, and what leads from one to the next.

docs/architecture.md has the diagrams. A change that a state does not know leaves it as it is.
"""

from __future__ import annotations

import enum


class TLSState(enum.Enum):
    """What has come of TLS with this server."""

    CLEAR = "in the clear"
    HANDSHAKE = "in a handshake"
    PROTECTED = "protected"
    FAILED = "failed"


class TLSChange(enum.Enum):
    """What happens to TLS."""

    START = "start"
    DONE = "done"
    FAIL = "fail"


class ContentFlow(enum.Enum):
    """Whether the transport takes content now."""

    # It is looked up for every message, and the hash of Enum is a function in Python.
    __hash__ = object.__hash__

    NONE = "no content is sent"
    HELD_BACK = "paused before the content begins"
    FLOWING = "flowing"
    PAUSED = "paused by the transport"


class FlowChange(enum.Enum):
    """What happens to the content."""

    # It is looked up for every message, and the hash of Enum is a function in Python.
    __hash__ = object.__hash__

    BEGIN = "begin"
    PAUSE = "pause"
    RESUME = "resume"
    END = "end"


_NEXT_TLS = {
    (TLSState.CLEAR, TLSChange.START): TLSState.HANDSHAKE,
    (TLSState.HANDSHAKE, TLSChange.DONE): TLSState.PROTECTED,
    # Also without a handshake: a server that ends at STARTTLS has no TLS that works.
    **{(state, TLSChange.FAIL): TLSState.FAILED for state in TLSState},
}

_NEXT_FLOW = {
    (ContentFlow.NONE, FlowChange.BEGIN): ContentFlow.FLOWING,
    (ContentFlow.NONE, FlowChange.PAUSE): ContentFlow.HELD_BACK,
    (ContentFlow.HELD_BACK, FlowChange.RESUME): ContentFlow.NONE,
    (ContentFlow.HELD_BACK, FlowChange.BEGIN): ContentFlow.PAUSED,
    (ContentFlow.FLOWING, FlowChange.PAUSE): ContentFlow.PAUSED,
    (ContentFlow.FLOWING, FlowChange.END): ContentFlow.NONE,
    (ContentFlow.PAUSED, FlowChange.RESUME): ContentFlow.FLOWING,
    (ContentFlow.PAUSED, FlowChange.END): ContentFlow.NONE,
}


def next_tls(state: TLSState, change: TLSChange) -> TLSState:
    """What has come of TLS after ``change``."""
    return _NEXT_TLS.get((state, change), state)


def next_flow(flow: ContentFlow, change: FlowChange) -> ContentFlow:
    """The flow after ``change``."""
    return _NEXT_FLOW.get((flow, change), flow)
