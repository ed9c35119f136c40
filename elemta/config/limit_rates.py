"""Which rates a limit can have, by what it counts: in a file, in a pushed set and in an override."""

from __future__ import annotations

from elemta.config.choices import Counts
from elemta.config.values import Rate

# Every charge checks each rate, and a script call takes at most 32.
MOST_RATES = 16
"""So many rates one limit may have."""


def misfit(counts: Counts, rate: Rate) -> tuple[str, str] | None:
    """Why this can't be a rate of what is counted, and a hint; None where it can."""
    open_at_once = counts is Counts.OPEN_CONNECTIONS
    if rate.is_size and counts is not Counts.BYTES:
        return f"found a size: must be a number, for {counts}", 'sizes are for counts = "bytes"'
    if open_at_once and rate.seconds is not None:
        return f'found "{rate}": must be a plain number for open_connections', f'did you mean "{rate.limit}"?'
    if not open_at_once and rate.seconds is None:
        return f'found "{rate}": must have a window for {counts}', f'did you mean "{rate}/1m"?'
    return None
