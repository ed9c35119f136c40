"""The states of a connection: what each change does in each state."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from elemta.net.connection_state import (
    CLOSING,
    ENDING,
    IN_HANDSHAKE,
    ConnectionChange,
    ConnectionState,
    next_state,
)

CHANGES = st.lists(st.sampled_from(ConnectionChange))


def test_only_the_end_is_for_ever() -> None:
    for state in ConnectionState:
        assert next_state(state, ConnectionChange.LOSE) is ConnectionState.LOST
    for change in ConnectionChange:
        assert next_state(ConnectionState.LOST, change) is ConnectionState.LOST


def test_nothing_opens_what_is_ending() -> None:
    for state, change in product(ENDING, ConnectionChange):
        assert next_state(state, change) in ENDING


def test_every_state_is_reached() -> None:
    reached = {ConnectionState.OPEN}
    while more := {next_state(state, change) for state in reached for change in ConnectionChange} - reached:
        reached |= more
    assert reached == set(ConnectionState)


@given(CHANGES)
def test_a_state_says_what_the_changes_so_far_say(changes: list[ConnectionChange]) -> None:
    """A handshake that began has ended or not, whether or not we close meanwhile."""
    state = ConnectionState.OPEN
    handshaking = closing = lost = False
    for change in changes:
        state = next_state(state, change)
        if change is ConnectionChange.START_TLS:
            handshaking = handshaking or not closing
        elif change is ConnectionChange.TLS_STARTED:
            handshaking = False
        elif change is ConnectionChange.CLOSE:
            closing = True
        else:
            lost = True
        if lost:
            assert state is ConnectionState.LOST
            return
        assert (state in IN_HANDSHAKE, state in CLOSING) == (handshaking, closing)
