"""A disk that is full or fails: refused for now, nothing confirmed is lost, nothing unconfirmed pretends."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor as _reactor
from twisted.internet.defer import gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater

from elemta.errors import SpoolError, SpoolFull
from elemta.outcome import Status
from elemta.spool import MessageState, Spool, SpoolSettings
from tests.spool.mail import HEADER, FailingDisk, outcome, put, read, submission, written
from tests.support.runtime import runtime_of

reactor: Any = _reactor
LARGE = b"large" * 40_000


async def _until(condition):
    deadline = time.monotonic() + 45
    while not condition():
        assert time.monotonic() < deadline
        await deferLater(reactor, 0.01)


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system can't be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@ensureDeferred
async def test_a_disk_that_fills_up_refuses_what_is_new_and_keeps_what_it_has(
    open_spool, small_disk, counted
):
    spool = await open_spool(small_disk / "spool", refresh=0.05, reserve=1 << 20)
    kept = []
    refused = 0
    started = time.monotonic()
    while refused < 3:
        assert time.monotonic() < started + 60
        try:
            kept.append((await put(spool, os.urandom(20_000))).queue_id)
        except SpoolFull:
            refused += 1
    assert len(kept) > 10
    assert "full" in counted.failed
    assert spool.healthy
    for queue_id in kept:
        assert len(await read(spool, queue_id)) == len(HEADER) + 20_000
    # What is delivered still leaves, and frees space.
    for queue_id in kept:
        await spool.settle(
            queue_id, [outcome(queue_id, "bob", Status.DELIVERED)], retry_at=None, hold_reason=None
        )
    assert (await spool.stats()).total == 0
    await _until(spool.has_space)
    again = await put(spool, os.urandom(20_000))
    await spool.close()
    reopened = await open_spool(small_disk / "spool", reserve=1 << 20)
    assert [line.queue_id for line in await reopened.list()] == [again.queue_id]


@ensureDeferred
async def test_a_body_file_that_finds_no_room_costs_its_message_only(open_spool, small_disk, counted):
    spool = await open_spool(small_disk / "spool", reserve=1 << 20)
    writer = spool.begin()
    while writer.failure is None:
        writer.write(b"x" * 500_000)
        await writer.when_drained()
        assert writer.size < 10_000_000
    assert isinstance(writer.failure, SpoolFull)
    with pytest.raises(SpoolFull):
        await spool.commit(writer, submission())
    assert counted.failed == ["body"]
    assert (await put(spool, b"small")).queue_id
    await spool.close()
    assert list((small_disk / "spool" / "p0" / "bodies").iterdir()) == []


@ensureDeferred
async def test_while_the_disk_is_full_no_room_is_announced(open_spool):
    disk = FailingDisk()
    spool = await open_spool(disk=disk)
    assert spool.has_space()
    disk.fail("before commit", number=errno.ENOSPC)
    with pytest.raises(SpoolFull):
        await put(spool, b"body")
    assert not spool.has_space()


@ensureDeferred
async def test_outcomes_that_find_no_room_are_written_later(open_spool):
    disk = FailingDisk()
    spool = await open_spool(disk=disk, refresh=0.02)
    queue_id = (await put(spool, b"body")).queue_id
    disk.fail("before commit", times=2, number=errno.ENOSPC)
    with pytest.raises(SpoolFull):
        await spool.settle(
            queue_id, [outcome(queue_id, "bob", Status.DELIVERED)], retry_at=None, hold_reason=None
        )
    await _until(lambda: spool.messages[MessageState.ACTIVE] == 0)
    assert await spool.list() == []


@pytest.mark.parametrize("place", ["before commit", "after commit"])
@ensureDeferred
async def test_after_a_failed_sync_nothing_is_believed_until_the_disk_was_opened_anew(
    open_spool, counted, events, place
):
    disk = FailingDisk()
    spool = await open_spool(disk=disk, first_reopen=0.2)
    kept = await put(spool, b"kept")
    disk.fail(place)
    small = spool.commit(written(spool, b"doubtful"), submission())
    with pytest.raises(SpoolError):
        await small
    assert not spool.healthy
    # At once, without touching the disk.
    refused = spool.commit(written(spool, b"too early"), submission())
    assert refused.called
    with pytest.raises(SpoolError):
        await refused
    await _until(lambda: spool.healthy)
    assert [line.queue_id for line in await spool.list()] == [kept.queue_id]
    assert spool.messages[MessageState.ACTIVE] == 1
    later = await put(spool, b"later")
    assert counted.failed == ["disk"]
    names = [event.get("event") for event in events]
    assert names.index("spool.disk_failed") < names.index("spool.disk_trusted")
    await spool.close()
    again = await open_spool()
    assert {line.queue_id for line in await again.list()} == {kept.queue_id, later.queue_id}


@ensureDeferred
async def test_a_large_message_whose_commit_failed_leaves_no_row_and_no_file(open_spool, tmp_path):
    disk = FailingDisk()
    spool = await open_spool(disk=disk, first_reopen=0.01)
    disk.fail("after commit")
    with pytest.raises(SpoolError):
        await put(spool, LARGE)
    await _until(lambda: spool.healthy)
    assert await spool.list() == []
    assert list((tmp_path / "spool" / "p0" / "bodies").iterdir()) == []


@ensureDeferred
async def test_what_was_delivered_while_the_disk_failed_is_not_delivered_again(open_spool):
    disk = FailingDisk()
    spool = await open_spool(disk=disk, first_reopen=0.05)
    ids = [(await put(spool, b"body")).queue_id for _ in range(3)]
    disk.fail("before commit")
    for queue_id in ids[:2]:  # the first fails itself, the second finds the spool unhealthy
        with pytest.raises(SpoolError):
            await spool.settle(
                queue_id, [outcome(queue_id, "bob", Status.DELIVERED)], retry_at=None, hold_reason=None
            )
    await _until(lambda: spool.healthy and spool.messages[MessageState.ACTIVE] == 1)
    assert [line.queue_id for line in await spool.list()] == ids[2:]


@ensureDeferred
async def test_a_removal_that_was_written_though_its_sync_failed_is_no_loss(open_spool, events):
    disk = FailingDisk()
    spool = await open_spool(disk=disk, first_reopen=0.05)
    queue_id = (await put(spool, b"body")).queue_id
    disk.fail("after commit")
    with pytest.raises(SpoolError):
        await spool.delete(queue_id)
    await _until(lambda: spool.healthy)
    assert await spool.list() == []
    assert spool.messages[MessageState.ACTIVE] == 0
    assert "spool.data_lost" not in [event.get("event") for event in events]


@ensureDeferred
async def test_a_disk_that_lost_what_it_confirmed_is_told_on(open_spool, tmp_path, events):
    disk = FailingDisk()
    spool = await open_spool(disk=disk, first_reopen=0.05)
    await put(spool, b"body")
    connection = sqlite3.connect(tmp_path / "spool" / "p0" / "queue.db")
    connection.executescript("DELETE FROM message; DELETE FROM body")
    connection.close()
    disk.fail("before commit")
    with pytest.raises(SpoolError):
        await put(spool, b"body")
    await _until(lambda: spool.healthy)
    assert "spool.data_lost" in [event.get("event") for event in events]


@ensureDeferred
async def test_a_disk_without_room_for_the_reserve_lets_the_queue_empty_and_takes_nothing_in(
    open_spool, small_disk
):
    spool = await open_spool(small_disk / "spool", reserve=1 << 20)
    queue_id = (await put(spool, b"body")).queue_id
    await spool.close()
    (small_disk / "spool" / "p0" / "reserve").unlink()
    with (small_disk / "other").open("wb") as other:
        other.write(b"x" * (5 << 20))
    again = await open_spool(small_disk / "spool", reserve=1 << 20, refresh=0.05)
    assert not again.has_space()
    with pytest.raises(SpoolFull):
        await put(again, b"body")
    assert await read(again, queue_id) == HEADER + b"body"
    await again.delete(queue_id)
    (small_disk / "other").unlink()
    await _until(again.has_space)
    assert (await put(again, b"body")).queue_id


@ensureDeferred
async def test_a_disk_that_keeps_failing_is_tried_again_and_again(open_spool):
    disk = FailingDisk()
    spool = await open_spool(disk=disk, first_reopen=0.01, longest_reopen=0.02)
    kept = await put(spool, b"kept")
    disk.fail("before commit", times=5)
    with pytest.raises(SpoolError):
        await put(spool, b"refused")
    await _until(lambda: spool.healthy)
    assert disk.times == 0
    assert [line.queue_id for line in await spool.list()] == [kept.queue_id]


class ReopenDelays:
    """The reactor, and after which delays the spool opened its store anew."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    def callLater(self, delay: float, call: Callable[..., Any], *args: object) -> IDelayedCall:
        if getattr(call, "__name__", "") == "_reopen":
            self.delays.append(delay)
        return reactor.callLater(delay, call, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


@ensureDeferred
async def test_each_outage_of_the_disk_begins_with_the_shortest_pause(tmp_path):
    disk, delays = FailingDisk(), ReopenDelays()
    settings = SpoolSettings(tmp_path / "spool", minimum_free=0, first_reopen=0.01, longest_reopen=0.04)
    spool = await Spool.open(settings, runtime=runtime_of(delays, disk=disk))
    try:
        for outage in range(2):
            # The commit fails, and then all attempts to open the store anew but the last one.
            disk.fail("before commit", times=5)
            with pytest.raises(SpoolError):
                await put(spool, b"refused")
            await _until(lambda: spool.healthy)
            assert delays.delays == [0.01, 0.02, 0.04, 0.04, 0.04] * (outage + 1)
    finally:
        await spool.close()


@ensureDeferred
async def test_a_failing_checkpoint_is_a_failing_disk(open_spool):
    disk = FailingDisk()
    spool = await open_spool(disk=disk, refresh=0.02, first_reopen=0.01)
    kept = await put(spool, b"kept")
    disk.fail("checkpoint", times=2)
    await _until(lambda: not disk.times and spool.healthy)
    assert [line.queue_id for line in await spool.list()] == [kept.queue_id]
    assert (await put(spool, b"later")).queue_id


@pytest.mark.parametrize("place", ["write", "fdatasync", "rename", "fsync"])
@ensureDeferred
async def test_a_body_file_that_fails_is_given_up_and_never_synced_again(open_spool, tmp_path, place):
    disk = FailingDisk()
    spool = await open_spool(disk=disk)
    disk.fail(place)
    with pytest.raises(SpoolError) as refused:
        await put(spool, LARGE)
    assert not isinstance(refused.value, SpoolFull)
    assert spool.healthy
    assert await spool.list() == []
    kept = await put(spool, LARGE)
    await spool.close()
    assert [path.name for path in (tmp_path / "spool" / "p0" / "bodies").iterdir()] == [kept.queue_id]


@ensureDeferred
async def test_closing_with_a_failed_disk_ends(open_spool):
    disk = FailingDisk()
    spool = await open_spool(disk=disk, first_reopen=60.0)
    await put(spool, b"kept")
    disk.fail("before commit", times=1000)
    refused = [spool.commit(written(spool, b"refused"), submission()) for _ in range(3)]
    for deferred in refused:
        deferred.addErrback(lambda failure: failure.trap(SpoolError))
    await gatherResults(refused)
    await spool.close()
    assert len(await (await open_spool()).list()) == 1
