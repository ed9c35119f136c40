"""Room kept aside, so that a full disk does not keep the queue from emptying.

Removing a message writes, too: pages go to the log, the log moves to the database. Without a reserve a disk
that others filled would leave delivered messages in the queue, to be delivered again.
"""

from __future__ import annotations

from pathlib import Path

from twisted.logger import Logger

from elemta.spool.disk import Disk

_log = Logger()


class Reserve:
    """A file that takes up room until the room is needed. While it is spent, nothing new is taken in."""

    def __init__(self, path: Path, size: int, disk: Disk) -> None:
        self.held = False
        self._told = False
        self._path = path
        self._size = size
        self._disk = disk

    def restore(self) -> None:
        """Put the room aside again, if the disk has it."""
        if self.held:
            return
        try:
            self._disk.allocate(self._path, self._size)
        except OSError as error:
            self._remove()
            if not self._told:
                self._told = True
                _log.warn(
                    "no room can be kept aside; nothing new is accepted",
                    event="spool.no_reserve",
                    reason=str(error),
                )
            return
        self.held = True
        if self._told:
            self._told = False
            _log.info("there is room on the spool's disk again", event="spool.room_again")

    def spend(self) -> None:
        """Make the room free for what empties the queue."""
        if self.held:
            self.held = False
            self._told = True
            _log.warn("the spool's disk is full; nothing new is accepted", event="spool.disk_full")
        self._remove()

    def _remove(self) -> None:
        try:
            self._disk.unlink(self._path)
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.error("the room kept aside can't be freed", event="spool.reserve_stuck", reason=str(error))
