"""Spools of a daemon, for tests of operations on them."""

from __future__ import annotations

from collections.abc import Sequence

from elemta.daemon.adoption import SpoolStatus
from elemta.errors import NoSpool, SpoolError, SpoolLocked
from elemta.spool import MessageState

OWN = SpoolStatus.of(
    "/var/spool/elemta",
    "own",
    states={MessageState.ACTIVE: 1, MessageState.DEFERRED: 2, MessageState.HOLD: 0},
)
WAITS = SpoolStatus.of("/shared/mx4", "waiting", "there is no spool in /shared/mx4")


class Adopted:
    """Adopts /shared/mx1; mx2 owns /shared/mx2, /shared/mx3 can't be had, and elsewhere there is nothing."""

    def __init__(self) -> None:
        self.adopted: list[SpoolStatus] = [WAITS]

    def all(self) -> Sequence[SpoolStatus]:
        return [OWN, *self.adopted]

    async def adopt(self, directory: str) -> SpoolStatus:
        if directory == "/shared/mx2":
            words = "process 7 of node mx2 owns the spool partition /shared/mx2/p0"
            raise SpoolLocked(words, node="mx2")
        if directory == "/shared/mx3":
            raise SpoolError("Valkey can't confirm the owner of /shared/mx3/p0: no answer")
        if directory != "/shared/mx1":
            raise NoSpool(f"there is no spool in {directory}")
        messages = {MessageState.ACTIVE: 1, MessageState.DEFERRED: 0, MessageState.HOLD: 0}
        status = SpoolStatus.of(directory, "delivering", states=messages, left=("/shared/mx0",))
        self.adopted.append(status)
        return status

    async def give_back(self, directory: str) -> SpoolStatus:
        for status in self.adopted:
            if status.directory == directory:
                self.adopted.remove(status)
                return SpoolStatus.of(directory, "given back", states=status.states)
        raise NoSpool(f"this node has not adopted {directory}")
