"""The states of a connection to a next hop: what each change does in each state."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from elemta.delivery.next_hop_state import (
    ContentFlow,
    FlowChange,
    TLSChange,
    TLSState,
    next_flow,
    next_tls,
)


def test_tls_that_failed_stays_so() -> None:
    for change in TLSChange:
        assert next_tls(TLSState.FAILED, change) is TLSState.FAILED
    for state in TLSState:
        assert next_tls(state, TLSChange.FAIL) is TLSState.FAILED


def test_nothing_is_protected_without_a_handshake() -> None:
    before = {state for state in TLSState if next_tls(state, TLSChange.DONE) is TLSState.PROTECTED}
    assert before == {TLSState.HANDSHAKE, TLSState.PROTECTED}


def test_every_state_is_reached() -> None:
    tls = {TLSState.CLEAR}
    while more := {next_tls(state, change) for state in tls for change in TLSChange} - tls:
        tls |= more
    assert tls == set(TLSState)
    flows = {ContentFlow.NONE}
    while new := {next_flow(flow, change) for flow in flows for change in FlowChange} - flows:
        flows |= new
    assert flows == set(ContentFlow)


@given(st.lists(st.sampled_from(FlowChange)))
def test_a_pause_outlives_the_beginning_of_the_content_and_not_its_end(changes: list[FlowChange]) -> None:
    flow = ContentFlow.NONE
    sending = paused = False
    for change in changes:
        flow = next_flow(flow, change)
        if change is FlowChange.BEGIN:
            sending = True
        elif change is FlowChange.END:
            paused, sending = paused and not sending, False
        else:
            paused = change is FlowChange.PAUSE
        assert (flow in (ContentFlow.FLOWING, ContentFlow.PAUSED)) == sending
        assert (flow in (ContentFlow.HELD_BACK, ContentFlow.PAUSED)) == paused
