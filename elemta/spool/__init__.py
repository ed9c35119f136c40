"""The durable queue: what it confirmed is on stable storage, whatever happens next."""

from elemta.runtime.disk import Disk
from elemta.spool.bodies import MessageWriter
from elemta.spool.content import Content
from elemta.spool.records import (
    ArrivalPage,
    DestinationDue,
    HeldPart,
    HoldCause,
    MessageRecord,
    MessageState,
    MessageSummary,
    PlannedPart,
    QueuedMessage,
    RecipientRecord,
    SpoolSettings,
    SpoolStats,
    Submission,
)
from elemta.spool.spool import Spool

__all__ = [
    "ArrivalPage",
    "Content",
    "DestinationDue",
    "Disk",
    "HeldPart",
    "HoldCause",
    "MessageRecord",
    "MessageState",
    "MessageSummary",
    "MessageWriter",
    "PlannedPart",
    "QueuedMessage",
    "RecipientRecord",
    "Spool",
    "SpoolSettings",
    "SpoolStats",
    "Submission",
]
