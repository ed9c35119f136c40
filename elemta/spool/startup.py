"""Opening a partition: the lock first, then the owner's lease, then what is in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from elemta.runtime.disk import Disk, FreeSpace
from elemta.spool.disk import space_for_mail
from elemta.spool.operations import QueueCounts
from elemta.spool.partition import Partition
from elemta.spool.threads import SpoolThreads
from elemta.spool.writer import QueueWriter

Permit = Callable[[Partition], Awaitable[None]]
"""Asked once the lock is held, and before anything in the partition is touched. SpoolLocked, SpoolError."""


async def take_up(
    partition: Partition,
    store: QueueWriter,
    threads: SpoolThreads,
    permit: Permit | None,
    *,
    disk: Disk,
) -> tuple[QueueCounts, FreeSpace]:
    """Take the partition, upgrade its format, clean up after a crash, and count. SpoolError."""

    def prepare() -> tuple[QueueCounts, FreeSpace]:
        try:
            return store.open(), space_for_mail(disk, partition.places)
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
