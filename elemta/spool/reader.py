"""The connection that reads the queue database, used by the reading thread alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from twisted.logger import Logger

from elemta.errors import SpoolError
from elemta.runtime.disk import Disk
from elemta.spool.partition import Places

_log = Logger()


class Reader:
    """Asks the database; opens its connection when it needs one, and anew after a failure."""

    def __init__(self, places: Places, disk: Disk) -> None:
        self.places = places
        self._disk = disk
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):  # it only read
                connection.close()

    def one(self, statement: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """The first row of the answer, None for an empty one. SpoolError."""
        rows = self.all(statement, values)
        return rows[0] if rows else None

    def all(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of the answer. SpoolError."""
        try:
            if self._connection is None:
                self._connection = self._disk.connect(self.places.database)
                self._connection.execute("PRAGMA query_only = ON")
            return self._connection.execute(statement, tuple(values)).fetchall()
        except sqlite3.Error as error:
            self.close()
            _log.error("the queue could not be read", event="spool.read_failed", reason=str(error))
            raise SpoolError(f"the queue could not be read: {error}") from error
