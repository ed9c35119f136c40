"""What an outbox holds, and what an earlier run of the daemon left in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutboxRecord:
    """A record of an outbox. Numbers ascend; none is used twice."""

    number: int
    octets: bytes


@dataclass(frozen=True, slots=True)
class OutboxStart:
    """What an earlier run of the daemon left in an outbox.

    ``complete``: it ended in order, or there was none, so nothing is missing. Where it did not, what it
    appended last may be missing: ``at`` is when it appended something that is there, in seconds since the
    epoch.
    """

    records: int
    complete: bool
    at: float
