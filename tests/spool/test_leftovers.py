"""The file of a large body goes as soon as no message needs it, whatever ended its message."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import DeferredList
from twisted.internet.task import deferLater

from elemta.errors import SpoolError
from elemta.outcome import Status
from elemta.spool import Disk, MessageState, Spool
from elemta.spool.leftovers import Leftovers
from tests.spool.mail import FailingDisk, outcome, put, submission, written

LARGE = b"large" * 40_000
MANY = 40
End = Callable[[Spool, FailingDisk], Awaitable[None]]


async def given_up_while_it_came(spool: Spool, disk: FailingDisk) -> None:
    writer = written(spool, LARGE)
    writer.write(LARGE)
    writer.discard()


async def given_up_when_it_was_there(spool: Spool, disk: FailingDisk) -> None:
    writer = written(spool, LARGE)
    await writer.when_drained()
    writer.discard()


async def delivered(spool: Spool, disk: FailingDisk) -> None:
    queue_id = (await put(spool, LARGE)).queue_id
    await spool.settle(
        queue_id, [outcome(queue_id, "bob", Status.DELIVERED)], retry_at=None, hold_reason=None
    )


async def deleted(spool: Spool, disk: FailingDisk) -> None:
    await spool.delete((await put(spool, LARGE)).queue_id)


def a_failure_of(place: str, number: int = errno.EIO) -> End:
    async def end(spool: Spool, disk: FailingDisk) -> None:
        disk.fail(place, number=number)
        with pytest.raises(SpoolError):
            await put(spool, LARGE)
        disk.times = 0

    return end


async def many_at_a_failed_commit(spool: Spool, disk: FailingDisk) -> None:
    """Some are in the transaction, some wait for the next one, some come when the disk is not trusted."""
    disk.fail("before commit", times=3)
    done = [spool.commit(written(spool, LARGE), submission()) for _ in range(MANY)]
    results = await DeferredList(done, consumeErrors=True)
    assert not any(success for success, _ in results)


async def synced_when_the_disk_is_not_trusted_any_more(spool: Spool, disk: FailingDisk) -> None:
    late = spool.commit(written(spool, LARGE), submission())
    spool._commits.distrust(OSError(errno.EIO, "another message found out"))
    with pytest.raises(SpoolError):
        await late


ENDS: dict[str, End] = {
    "given up while it came": given_up_while_it_came,
    "given up when it was there": given_up_when_it_was_there,
    "delivered": delivered,
    "deleted": deleted,
    "write": a_failure_of("write"),
    "write, no room": a_failure_of("write", errno.ENOSPC),
    "sync": a_failure_of("fdatasync"),
    "close": a_failure_of("close"),
    "rename": a_failure_of("rename"),
    "sync of the directory": a_failure_of("fsync"),
    "commit": a_failure_of("before commit"),
    "commit, no room": a_failure_of("before commit", errno.ENOSPC),
    "after the commit": a_failure_of("after commit"),
    "many at a failed commit": many_at_a_failed_commit,
    "synced too late": synced_when_the_disk_is_not_trusted_any_more,
}
ANY_END = pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())


async def until_gone(bodies: Path, *kept: str) -> None:
    from twisted.internet import reactor

    for _ in range(2000):
        if not {path.name for path in bodies.iterdir()} - set(kept):
            return
        await deferLater(reactor, 0.005)
    raise AssertionError(f"left: {[path.name for path in bodies.iterdir()]}")


@ANY_END
@ensureDeferred
async def test_no_end_leaves_a_file(open_spool, tmp_path, end):
    disk = FailingDisk()
    # Nothing looks again within this test: each goes by what ended it.
    spool = await open_spool(disk=disk, refresh=3600.0, first_reopen=0.02)
    await end(spool, disk)
    await until_gone(tmp_path / "spool" / "p0" / "bodies")
    assert spool._leftovers.waiting == 0


@ANY_END
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES])
@ensureDeferred
async def test_what_the_disk_does_not_let_go_is_removed_when_it_answers_again(
    open_spool, tmp_path, end, number
):
    from twisted.internet import reactor

    bodies = tmp_path / "spool" / "p0" / "bodies"
    disk = FailingDisk()
    spool = await open_spool(disk=disk, refresh=0.05, first_reopen=0.02)
    disk.broken.add("unlink")
    await end(spool, disk)
    disk.number = number
    for _ in range(400):
        if spool.healthy and spool._leftovers.waiting:
            break
        await deferLater(reactor, 0.005)
    assert list(bodies.iterdir())
    disk.broken.clear()
    await until_gone(bodies)
    # And nothing else suffers from it.
    kept = (await put(spool, LARGE)).queue_id
    assert [path.name for path in bodies.iterdir()] == [kept]
    assert spool.messages[MessageState.ACTIVE] >= 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM])
@ensureDeferred
async def test_a_start_does_not_fail_over_a_body_that_the_disk_does_not_let_go(
    open_spool, tmp_path, events, number
):
    bodies = tmp_path / "spool" / "p0" / "bodies"
    spool = await open_spool()
    kept = (await put(spool, LARGE)).queue_id
    unknown = (await put(spool, b"small")).queue_id
    await spool.close()
    names = {"tmp.1", unknown}
    for name in names:
        (bodies / name).write_bytes(LARGE)
    disk = FailingDisk()
    disk.number = number
    disk.broken.add("unlink")
    again = await open_spool(disk=disk, refresh=0.05)
    assert again.messages[MessageState.ACTIVE] == 2
    assert {path.name for path in bodies.iterdir()} == {kept, *names}
    assert {event["file"] for event in events if event.get("event") == "spool.orphan_body"} == names
    assert not [event for event in events if event.get("event") == "spool.orphan_body_removed"]
    disk.broken.clear()
    await until_gone(bodies, kept)


def test_a_file_that_stays_does_not_keep_the_others(tmp_path):
    stuck = tmp_path / "0"

    class StickyDisk(Disk):
        broken = True

        def unlink(self, path: Path) -> None:
            if self.broken or path == stuck:
                raise PermissionError(errno.EPERM, "it is immutable")
            super().unlink(path)

    disk = StickyDisk()
    paths = [tmp_path / str(number) for number in range(9)]
    for path in paths:
        path.touch()
    leftovers = Leftovers(disk)
    assert not leftovers.remove(paths)
    disk.broken = False
    leftovers.retry()
    leftovers.retry()
    assert (list(tmp_path.iterdir()), leftovers.waiting) == ([stuck], 1)
