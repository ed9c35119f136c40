"""Large bodies go to files, not through memory; confirmed is what has file, name and row on disk."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import gatherResults

from elemta.errors import SpoolError
from tests.spool.mail import HEADER, RecordingDisk, put, read, submission, written
from tests.support.waiting import until

KIB, MIB = 1024, 1024 * 1024


def _files(spool_directory: Path) -> list[str]:
    return sorted(path.name for path in (spool_directory / "p0" / "bodies").iterdir())


@pytest.mark.parametrize(("size", "in_file"), [(64 * KIB, False), (64 * KIB + 1, True)])
@ensureDeferred
async def test_the_limit_decides_between_the_database_and_a_file(open_spool, tmp_path, size, in_file):
    spool = await open_spool()
    body = os.urandom(size)
    envelope = await put(spool, body)
    assert await read(spool, envelope.queue_id) == HEADER + body
    assert (await spool.show(envelope.queue_id)).in_file is in_file
    assert _files(tmp_path / "spool") == ([envelope.queue_id] if in_file else [])


@ensureDeferred
async def test_a_body_is_synced_then_named_then_the_name_synced_then_its_row_committed(open_spool):
    disk = RecordingDisk()
    spool = await open_spool(disk=disk)
    disk.diary.clear()
    await put(spool, b"x" * 100_000)
    assert disk.diary == ["fdatasync tmp.", "rename tmp.", "fsync bodies", "INSERT INTO message", "COMMIT"]


@ensureDeferred
async def test_bodies_of_one_batch_share_the_sync_of_the_directory_and_of_the_database(open_spool):
    disk = RecordingDisk()
    spool = await open_spool(disk=disk)
    disk.diary.clear()
    blocker = spool.commit(written(spool, b"small"), submission())
    await gatherResults([spool.commit(written(spool, b"x" * 100_000), submission()) for _ in range(8)])
    await blocker
    assert disk.diary.count("fdatasync tmp.") == disk.diary.count("rename tmp.") == 8
    assert disk.diary.count("fsync bodies") < 8


@ensureDeferred
async def test_a_body_file_goes_only_after_the_commit_that_removes_its_row(open_spool):
    disk = RecordingDisk()
    spool = await open_spool(disk=disk)
    envelope = await put(spool, b"x" * 100_000)
    disk.diary.clear()
    await spool.delete(envelope.queue_id)
    await spool.close()
    assert disk.diary.index("COMMIT") < disk.diary.index(f"unlink {envelope.queue_id[:4]}")


@ensureDeferred
async def test_the_head_is_the_first_64_kib_however_the_body_came(open_spool):
    spool = await open_spool()
    body = os.urandom(300_000)
    for step in (1000, 65_536, 300_000):
        writer = spool.begin()
        assert writer.head == b""
        for start in range(0, len(body), step):
            writer.write(body[start : start + step])
            assert writer.head == body[: min(start + step, 64 * KIB)]
        assert writer.size == len(body)
        writer.discard()


@ensureDeferred
async def test_policies_can_read_a_body_before_it_is_committed(open_spool):
    spool = await open_spool()
    for body in (b"small", os.urandom(200_000)):
        writer = written(spool, body)
        await writer.when_drained()
        with writer.open() as file:
            assert file.read() == body
        assert await read(spool, (await spool.commit(writer, submission())).queue_id) == HEADER + body


@ensureDeferred
async def test_a_body_that_is_still_being_written_is_not_opened(open_spool):
    spool = await open_spool()
    writer = written(spool, b"x" * 100_000)
    with pytest.raises(SpoolError):
        writer.open()
    await writer.when_drained()
    writer.open().close()
    writer.discard()


@ensureDeferred
async def test_a_writer_is_congested_while_more_than_a_mib_waits_for_the_disk(open_spool):
    spool = await open_spool()
    writer = spool.begin()
    writer.write(b"x" * (MIB - 1))
    assert not writer.congested
    writer.write(b"xx")
    assert writer.congested
    await writer.when_drained()
    assert not writer.congested
    writer.discard()


@ensureDeferred
async def test_all_writers_together_keep_to_the_memory_they_may_use(open_spool):
    spool = await open_spool(memory=100 * KIB)
    first, second = written(spool, b"x" * 60_000), written(spool, b"y" * 60_000)
    # Below the limit for a file of its own, but together they are too much.
    assert not first.in_file
    assert second.in_file
    assert second.congested
    first.discard()
    await second.when_drained()
    assert not second.congested
    envelope = await spool.commit(second, submission())
    assert await read(spool, envelope.queue_id) == HEADER + b"y" * 60_000
    third = written(spool, b"z" * 60_000)
    assert not third.in_file
    third.discard()


@ensureDeferred
async def test_memory_is_given_back_however_a_message_ends(open_spool):
    spool = await open_spool()
    bodies = spool._bodies
    for body in (b"small", b"large" * 100_000):
        await put(spool, body)
        written(spool, body).discard()
        waited = written(spool, body)
        await waited.when_drained()
        waited.discard()
        refused = spool.begin()
        refused.discard()
        with pytest.raises(SpoolError):
            await spool.commit(refused, submission())
    # What a thread still writes stays counted until the thread is done with it.
    await until(lambda: bodies.in_memory == 0 and not bodies.writers, "all memory is given back")


@ensureDeferred
async def test_discarded_bodies_leave_no_file_even_in_the_middle_of_a_write(open_spool, tmp_path):
    spool = await open_spool()
    for _ in range(20):
        writer = written(spool, b"x" * 500_000)
        writer.write(b"x" * 500_000)
        writer.discard()
    drained = written(spool, b"x" * 500_000)
    await drained.when_drained()
    drained.discard()
    written(spool, b"left open" * 50_000)
    await spool.close()
    assert _files(tmp_path / "spool") == []


@ensureDeferred
async def test_content_can_be_read_in_pieces_and_again(open_spool):
    spool = await open_spool()
    for body in (b"0123456789" * 10, os.urandom(150_000)):
        envelope = await put(spool, body)
        whole = HEADER + body
        with await spool.open_content(envelope.queue_id) as content:
            assert content.size == envelope.size == len(whole)
            assert b"".join(iter(lambda: content.read(7777), b"")) == whole
            assert content.read(1) == b""
            content.seek(len(HEADER) - 3)
            assert content.read(6) == whole[len(HEADER) - 3 :][:6]
            assert content.tell() == len(HEADER) + 3
            content.seek(-4, os.SEEK_END)
            assert content.read() == whole[-4:]
            content.seek(0)
            buffer = bytearray(len(whole))
            assert content.readinto(buffer) == len(whole)
            assert bytes(buffer) == whole
            content.seek(0)
            assert content.readline() == HEADER


@ensureDeferred
async def test_content_can_be_read_while_the_message_goes(open_spool):
    spool = await open_spool()
    body = os.urandom(150_000)
    envelope = await put(spool, body)
    with await spool.open_content(envelope.queue_id) as content:
        await spool.delete(envelope.queue_id)
        await spool.in_disk_thread(lambda: None)
        assert content.read() == HEADER + body


_HUNGRY = """
import hashlib, re, sys
from pathlib import Path
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react
from elemta.runtime import Runtime
from elemta.spool import Spool, SpoolSettings
from tests.spool.mail import put, submission

SIZE, PIECE = 50 << 20, 64 << 10

def highest():
    # Not ru_maxrss: that one remembers the process that started this one.
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

async def one(spool):
    writer = spool.begin()
    for number in range(SIZE // PIECE):
        writer.write(number.to_bytes(4, "big") * (PIECE // 4))
        if writer.congested:
            await writer.when_drained()
    return await spool.commit(writer, submission())

async def main(reactor, directory, count):
    spool = await Spool.open(SpoolSettings(Path(directory), minimum_free=0), runtime=Runtime.of(reactor))
    await put(spool, b"x" * 100_000)
    before = highest()
    envelopes = await gatherResults([Deferred.fromCoroutine(one(spool)) for _ in range(int(count))])
    with await spool.open_content(envelopes[-1].queue_id) as content:
        digest = hashlib.sha256()
        while piece := content.read(PIECE):
            digest.update(piece)
    print(highest() - before, digest.hexdigest())
    await spool.close()

react(main, sys.argv[1:])
"""


@pytest.mark.parametrize(("count", "most"), [(1, 10 * KIB), (10, 32 * KIB)])
def test_messages_of_50_mib_cost_no_such_memory(tmp_path, count, most):
    root = Path(__file__).parents[2]
    printed = subprocess.run(
        [sys.executable, "-c", _HUNGRY, str(tmp_path / "spool"), str(count)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    grown, digest = printed.split()
    pieces = (number.to_bytes(4, "big") * (16 * KIB) for number in range(800))
    wanted = hashlib.sha256(HEADER)
    for piece in pieces:
        wanted.update(piece)
    assert digest.decode() == wanted.hexdigest()
    # KiB. Each may have a MiB waiting and one on its way to the disk.
    print(f"{count} at once: {int(grown)} KiB more")
    assert 0 < int(grown) < most
