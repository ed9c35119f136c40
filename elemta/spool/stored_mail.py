"""Whether a spool directory has mail, asked before it is opened and without a change to any file of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from elemta.errors import SpoolError
from elemta.spool.partition import AdoptedSpools, Places, partitions_in


def may_hold_mail(root: Path) -> bool:
    """Whether there is mail in any partition, or in a spool that was adopted, or that can't be known.

    It can't after a crash: what a write-ahead log has is known once it is recovered.
    """
    try:
        partitions = [Places(root / f"p{number}") for number in partitions_in(root)]
        return bool(AdoptedSpools(root).read()) or any(map(_may_hold_mail, partitions))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, SpoolError, sqlite3.Error):
        return True


def _may_hold_mail(places: Places) -> bool:
    log = places.database.with_name(f"{places.database.name}-wal")
    if log.exists() and log.stat().st_size:
        return True
    # Immutable: else SQLite makes files beside it, with the wrong owner before privileges are given up.
    opened = sqlite3.connect(f"{places.database.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    with closing(opened) as database:
        return database.execute("SELECT 1 FROM message LIMIT 1").fetchone() is not None
