"""The states of the group commit, and what leads from one to the next.

docs/architecture.md has the diagram. That the spool is closing is no state: it may hold in any state.
"""

from __future__ import annotations

from elemta.fast_enum import FastEnum
from elemta.state_table import state_table


class CommitState(FastEnum):
    """Whether the disk is trusted, and whether the commit thread has a batch."""

    IDLE = "idle"
    COMMITTING = "committing"
    DISTRUSTED = "distrusted"
    DISTRUSTED_IN_BATCH = "distrusted before its batch is over"
    REOPENING = "reopening"
    REOPENING_IN_BATCH = "to be reopened when its batch is over"


class CommitChange(FastEnum):
    """What happens to the group commit."""

    BEGIN = "a batch goes to the thread"
    END = "the batch is over"
    FAIL = "the disk failed"
    REOPEN = "the store is opened anew"
    TRUST = "the disk proved that it works"


TRUSTED = (CommitState.IDLE, CommitState.COMMITTING)
"""Operations are taken."""

IN_BATCH = (CommitState.COMMITTING, CommitState.DISTRUSTED_IN_BATCH, CommitState.REOPENING_IN_BATCH)
"""The commit thread has a batch."""

IN_REOPENING = (CommitState.REOPENING, CommitState.REOPENING_IN_BATCH)
"""The commit thread opens the store anew, or will do so behind its batch."""

next_state = state_table(
    {
        (CommitState.IDLE, CommitChange.BEGIN): CommitState.COMMITTING,
        (CommitState.IDLE, CommitChange.FAIL): CommitState.DISTRUSTED,
        (CommitState.COMMITTING, CommitChange.END): CommitState.IDLE,
        (CommitState.COMMITTING, CommitChange.FAIL): CommitState.DISTRUSTED_IN_BATCH,
        (CommitState.DISTRUSTED, CommitChange.BEGIN): CommitState.DISTRUSTED_IN_BATCH,
        (CommitState.DISTRUSTED, CommitChange.REOPEN): CommitState.REOPENING,
        (CommitState.DISTRUSTED_IN_BATCH, CommitChange.END): CommitState.DISTRUSTED,
        (CommitState.DISTRUSTED_IN_BATCH, CommitChange.REOPEN): CommitState.REOPENING_IN_BATCH,
        (CommitState.REOPENING, CommitChange.BEGIN): CommitState.REOPENING_IN_BATCH,
        (CommitState.REOPENING, CommitChange.FAIL): CommitState.DISTRUSTED,
        (CommitState.REOPENING, CommitChange.TRUST): CommitState.IDLE,
        (CommitState.REOPENING_IN_BATCH, CommitChange.END): CommitState.REOPENING,
        (CommitState.REOPENING_IN_BATCH, CommitChange.FAIL): CommitState.DISTRUSTED_IN_BATCH,
        (CommitState.REOPENING_IN_BATCH, CommitChange.TRUST): CommitState.COMMITTING,
    }
)
"""The state after a change."""
