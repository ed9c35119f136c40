"""The durable queue: what it confirmed is on stable storage, whatever happens next."""

from elemta.spool.bodies import MessageWriter
from elemta.spool.content import Content
from elemta.spool.disk import Disk
from elemta.spool.records import (
    AttemptRecord,
    HeldPart,
    HoldCause,
    LaneDue,
    MessageRecord,
    MessageSummary,
    Page,
    PlannedPart,
    QueuedMessage,
    RecipientRecord,
    SpoolObserver,
    SpoolSettings,
    SpoolStats,
    State,
    Submission,
)
from elemta.spool.spool import Spool

__all__ = [
    "AttemptRecord",
    "Content",
    "Disk",
    "HeldPart",
    "HoldCause",
    "LaneDue",
    "MessageRecord",
    "MessageSummary",
    "MessageWriter",
    "Page",
    "PlannedPart",
    "QueuedMessage",
    "RecipientRecord",
    "Spool",
    "SpoolObserver",
    "SpoolSettings",
    "SpoolStats",
    "State",
    "Submission",
]
