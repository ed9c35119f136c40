"""The states of the group commit: what each change does in each state."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from elemta.spool.commit_state import (
    IN_BATCH,
    IN_REOPENING,
    TRUSTED,
    CommitChange,
    CommitState,
    next_state,
)

CHANGES = st.lists(st.sampled_from(CommitChange))


def test_every_state_is_reached() -> None:
    reached = {CommitState.IDLE}
    while more := {next_state(state, change) for state in reached for change in CommitChange} - reached:
        reached |= more
    assert reached == set(CommitState)


def test_only_a_proof_behind_a_reopening_brings_trust_back() -> None:
    for state in set(CommitState) - set(TRUSTED):
        for change in CommitChange:
            trusted = next_state(state, change) in TRUSTED
            assert trusted == (state in IN_REOPENING and change is CommitChange.TRUST)


@given(CHANGES)
def test_a_state_says_what_the_changes_so_far_say(changes: list[CommitChange]) -> None:
    """Trust and the batch do not change each other."""
    state = CommitState.IDLE
    trusted, reopening, in_batch = True, False, False
    for change in changes:
        state = next_state(state, change)
        if change in (CommitChange.BEGIN, CommitChange.END):
            in_batch = change is CommitChange.BEGIN
        elif change is CommitChange.FAIL:
            trusted = reopening = False
        elif change is CommitChange.REOPEN:
            reopening = not trusted
        elif reopening:
            trusted, reopening = True, False
        assert (state in TRUSTED, state in IN_REOPENING, state in IN_BATCH) == (trusted, reopening, in_batch)
