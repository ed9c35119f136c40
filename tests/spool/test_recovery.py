"""What a start finds, and makes of it."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred

from elemta.errors import SpoolError, SpoolFormatError, SpoolLocked
from tests.spool.mail import due, put, read

LARGE = b"large" * 40_000


@ensureDeferred
async def test_a_partition_has_one_owner_and_the_second_hears_who(open_spool):
    spool = await open_spool()
    with pytest.raises(SpoolLocked, match=f"process {os.getpid()} owns the spool partition .*p0"):
        await open_spool()
    other = await open_spool(partition=1)
    await put(other, b"body")
    assert await spool.list() == []
    await spool.close()
    await open_spool()


@ensureDeferred
async def test_a_dead_owner_owns_nothing(open_spool, tmp_path):
    spool = await open_spool()
    await spool.close()
    lock = tmp_path / "spool" / "p0" / "lock"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl,sys,time; f=open(sys.argv[1]); fcntl.flock(f,2); print(flush=True); time.sleep(60)",
            lock,
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(SpoolLocked):
        await open_spool()
    holder.kill()
    holder.communicate()
    await open_spool()


@ensureDeferred
async def test_only_the_owner_of_the_daemon_can_read_the_mail(open_spool, tmp_path):
    before = os.umask(0)
    try:
        spool = await open_spool(tmp_path / "new" / "spool")
        await put(spool, LARGE)
        await put(spool, b"small")
    finally:
        os.umask(before)
    partition = tmp_path / "new" / "spool" / "p0"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (partition, *partition.rglob("*"))}
    assert {"p0", "bodies"} == {name for name, mode in modes.items() if mode == 0o700}
    assert {"lock", "queue.db", "queue.db-wal", "reserve"} <= {
        name for name, mode in modes.items() if mode == 0o600
    }
    assert set(modes.values()) == {0o700, 0o600}


@ensureDeferred
async def test_bodies_that_no_message_needs_are_removed_and_strange_files_stay(open_spool, tmp_path):
    spool = await open_spool()
    kept = await put(spool, LARGE)
    await spool.close()
    bodies = tmp_path / "spool" / "p0" / "bodies"
    (bodies / ("tmp." + "0" * 18)).write_bytes(b"cut short")
    (bodies / ("0" * 18)).write_bytes(b"its commit never came")
    (bodies / "lost+found").write_bytes(b"not ours")
    again = await open_spool()
    assert {path.name for path in bodies.iterdir()} == {kept.queue_id, "lost+found"}
    assert await read(again, kept.queue_id)


@ensureDeferred
async def test_a_message_whose_body_is_missing_waits_and_that_is_told_loudly(open_spool, tmp_path, events):
    spool = await open_spool()
    lost, kept = await put(spool, LARGE), await put(spool, LARGE)
    await spool.close()
    (tmp_path / "spool" / "p0" / "bodies" / lost.queue_id).unlink()
    again = await open_spool()
    # The file may come back; if not, delivery gives the message up in its time, and tells its sender.
    waiting = [message.queue_id for message in await due(again, time.time(), 10)]
    assert waiting == [lost.queue_id, kept.queue_id]
    assert [event["queue_id"] for event in events if event.get("event") == "spool.body_missing"] == [
        lost.queue_id
    ]
    with pytest.raises(SpoolError, match="can't be opened"):
        await again.open_content(lost.queue_id)
    await again.delete(lost.queue_id)
    assert [line.queue_id for line in await again.list()] == [kept.queue_id]


@ensureDeferred
async def test_a_body_that_became_shorter_is_an_error_not_a_shorter_message(open_spool, tmp_path):
    spool = await open_spool()
    envelope = await put(spool, LARGE)
    os.truncate(tmp_path / "spool" / "p0" / "bodies" / envelope.queue_id, 100)
    with await spool.open_content(envelope.queue_id) as content, pytest.raises(SpoolError, match="shorter"):
        content.read()


@ensureDeferred
async def test_every_state_and_reason_survives_a_restart(open_spool):
    spool = await open_spool()
    ids = [(await put(spool, b"body")).queue_id for _ in range(3)]
    await spool.hold(ids[1], "because")
    await spool.settle(ids[2], [], retry_at=12345.678901, hold_reason=None)
    before = [await spool.show(queue_id) for queue_id in ids]
    await spool.close()
    again = await open_spool()
    assert [await again.show(queue_id) for queue_id in ids] == before


@ensureDeferred
async def test_what_is_not_a_spool_is_refused_and_left_alone(open_spool, tmp_path):
    partition = tmp_path / "spool" / "p0"
    partition.mkdir(parents=True)
    database = partition / "queue.db"
    database.write_bytes(b"Dear diary, " * 1000)
    with pytest.raises(SpoolFormatError):
        await open_spool()
    assert database.read_bytes() == b"Dear diary, " * 1000

    database.unlink()
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE recipes (name)")
    connection.commit()
    connection.close()
    content = database.read_bytes()
    with pytest.raises(SpoolFormatError, match="not of Elemta's spool"):
        await open_spool()
    assert database.read_bytes() == content


@ensureDeferred
async def test_a_directory_that_cannot_be_used_says_why(open_spool, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="can't be used"):
        await open_spool(tmp_path / "file" / "spool")


@ensureDeferred
async def test_a_failed_open_gives_the_partition_up(open_spool, tmp_path):
    partition = tmp_path / "spool" / "p0"
    partition.mkdir(parents=True)
    (partition / "queue.db").write_bytes(b"garbage" * 1000)
    for _ in range(2):
        with pytest.raises(SpoolFormatError):
            await open_spool()
    Path(partition / "queue.db").unlink()
    await open_spool()
