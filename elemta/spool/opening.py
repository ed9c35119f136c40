"""Taking a partition up: the lock first, then whoever else has a say, then what is in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from elemta.spool.disk import Disk, Room
from elemta.spool.operations import Ledger
from elemta.spool.partition import Partition
from elemta.spool.store import Store
from elemta.spool.threads import SpoolThreads

Permit = Callable[[Partition], Awaitable[None]]
"""Asked once the lock is held, and before anything in the partition is touched. SpoolLocked, SpoolError."""


async def take_up(
    partition: Partition,
    store: Store,
    threads: SpoolThreads,
    permit: Permit | None,
    *,
    disk: Disk,
    root: Path,
) -> tuple[Ledger, Room]:
    """Take the partition, upgrade its format, clean up after a crash, and count. SpoolError."""

    def prepare() -> tuple[Ledger, Room]:
        try:
            return store.open(), disk.room(root)
        except BaseException:
            store.close()
            raise

    await threads.commit.call(partition.claim)
    try:
        if permit is not None:
            await permit(partition)
        return await threads.commit.call(prepare)
    except BaseException:
        partition.leave()
        raise
