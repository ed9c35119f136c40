"""The destinations that an operator paused, kept in the spool directory from one start to the next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from elemta.errors import SpoolError
from elemta.runtime.disk import Disk
from elemta.spool.record_file import RecordFile

_log = Logger()

RECORD = "paused-destinations"


class DestinationPauses:
    """The names of the destinations, and their record. A change counts once it is on stable storage.

    ``in_thread`` does work that blocks.
    """

    def __init__(
        self, root: Path, disk: Disk, in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]
    ) -> None:
        self._record = RecordFile(root, RECORD, disk)
        self._in_thread = in_thread
        self._writing = DeferredLock()
        self._names: dict[str, None] = {}

    @property
    def names(self) -> Collection[str]:
        """The destinations that are paused, in the order of their pauses."""
        return tuple(self._names)

    def read(self) -> None:
        """Take up what was paused before the start. A record that can't be read is logged, and no pause."""
        try:
            self._names = dict.fromkeys(self._record.read())
        except SpoolError as error:
            _log.critical(
                "the record of paused destinations can't be read; none is paused",
                event="destination.record_failed",
                reason=str(error),
            )

    async def add(self, name: str) -> None:
        """Pause a destination. SpoolError: it is not recorded, and not paused."""
        await self._change(lambda names: {**names, name: None})

    async def remove(self, name: str) -> None:
        """End a pause. SpoolError: it goes on."""
        await self._change(lambda names: {each: None for each in names if each != name})

    async def _change(self, change: Callable[[dict[str, None]], dict[str, None]]) -> None:
        await self._writing.acquire()
        try:
            names = change(self._names)
            if names != self._names:
                await self._in_thread(lambda: self._record.write(names))
            self._names = names
        finally:
            self._writing.release()
