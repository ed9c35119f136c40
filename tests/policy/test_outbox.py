"""services.outbox on a disk: what is there after each way to end, its bound, and disks that fail."""

from __future__ import annotations

import sqlite3

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from elemta.errors import BackendError
from elemta.policy.outbox import MAX_RECORD, PolicyOutbox
from elemta.policy.outbox_file import OVERHEAD, OutboxFile
from elemta.runtime.disk import Disk
from tests.support.runtime import SimulatedReactor, simulated_runtime


class FailingDisk(Disk):
    failing = False

    def connect(self, path):
        if self.failing:
            raise sqlite3.OperationalError("disk I/O error")
        return super().connect(path)


@pytest.fixture
def disk():
    return FailingDisk()


@pytest.fixture
def clock():
    return SimulatedReactor()


@pytest.fixture
def outbox(tmp_path, disk, clock):
    """Makes the outbox of one process after the other."""
    runtime = simulated_runtime(clock, disk=disk)
    return lambda: PolicyOutbox(lambda: tmp_path / "p0" / "outbox" / "hooks.db", "hooks", runtime)


@pytest.fixture
def result_of(clock):
    """What a Deferred or a coroutine comes to."""

    def wait(asked):
        done = asked if isinstance(asked, Deferred) else Deferred.fromCoroutine(asked)
        found = []
        done.addBoth(found.append)
        for _ in range(20):
            clock.advance(0)
        if isinstance(found[0], Failure):
            found[0].raiseException()
        return found[0]

    return wait


def octets(records):
    return [each.octets for each in records]


def test_records_outlive_the_process_until_they_are_removed(outbox, result_of):
    first = outbox()
    assert result_of(first.start()).records == 0
    assert result_of(first.append(b"one", b"two")) == 0
    first.append(b"three")
    assert octets(result_of(first.read())) == [b"one", b"two", b"three"]
    second = outbox()
    start = result_of(second.start())
    assert (start.records, start.complete) == (3, False)
    records = result_of(second.read(2))
    assert octets(records) == [b"one", b"two"]
    result_of(second.remove(records[-1].number))
    assert octets(result_of(outbox().read())) == [b"three"]


def test_a_run_that_ended_in_order_is_complete(outbox, result_of):
    first = outbox()
    result_of(first.start())
    first.append(b"one")
    result_of(first.finish())
    first.close()
    second = outbox()
    assert result_of(second.start()).complete
    # The next start looks where this one has not come to its end.
    assert not result_of(outbox().start()).complete


def test_the_time_of_an_earlier_run_stays_until_what_it_left_out_was_found(tmp_path):
    def again():
        return OutboxFile(tmp_path / "hooks.db", Disk())

    first = again()
    first.start(100.0)
    first.append([b"x"], 150.0)
    second = again()
    assert second.start(200.0).at == 150.0
    second.append([b"y"], 250.0)
    third = again()
    assert third.start(300.0).at == 150.0
    third.caught_up()
    third.append([b"z"], 350.0)
    assert again().start(400.0).at == 350.0


def test_a_page_has_one_record_at_least(outbox, result_of):
    kept = outbox()
    kept.append(b"a" * 1000, b"b" * 1000)
    assert octets(result_of(kept.read(100, 10))) == [b"a" * 1000]


def test_beyond_its_bound_the_oldest_go_and_are_counted(tmp_path):
    file = OutboxFile(tmp_path / "hooks.db", Disk(), most=100 * (100 + OVERHEAD))
    dropped = sum(file.append([b"%03d" % number + b"." * 97], 1.0) for number in range(250))
    left = file.read(1000, 1 << 20)
    assert len(left) + dropped == 250
    assert 80 <= len(left) <= 100
    assert left[-1].octets.startswith(b"249")
    # What was removed makes space, so nothing more is dropped for it.
    file.remove(left[-1].number)
    assert file.append([b"." * 100] * 90, 2.0) == 0


def test_the_file_does_not_grow_without_end(tmp_path):
    file = OutboxFile(tmp_path / "hooks.db", Disk(), most=256 * 1024)
    for _ in range(40):
        file.append([b"x" * 1000] * 100, 1.0)
    file.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1024 * 1024


def test_a_disk_that_fails_fails_the_append_and_is_used_again(outbox, disk, result_of):
    kept = outbox()
    disk.failing = True
    with pytest.raises(BackendError, match="disk I/O error"):
        result_of(kept.append(b"lost"))
    with pytest.raises(BackendError):
        result_of(kept.read())
    disk.failing = False
    assert result_of(kept.append(b"kept")) == 0
    assert octets(result_of(kept.read())) == [b"kept"]


def test_a_damaged_file_is_set_aside(outbox, tmp_path, result_of):
    place = tmp_path / "p0" / "outbox"
    place.mkdir(parents=True)
    (place / "hooks.db").write_bytes(b"no database at all" * 1000)
    kept = outbox()
    with pytest.raises(BackendError):
        result_of(kept.append(b"lost"))
    assert result_of(kept.append(b"kept")) == 0
    assert (place / "hooks.db.damaged").exists()
    assert octets(result_of(kept.read())) == [b"kept"]


def test_to_cancel_a_wait_loses_nothing(outbox, result_of):
    kept = outbox()
    kept.append(b"one").addErrback(lambda failure: failure.trap(CancelledError)).cancel()
    assert octets(result_of(kept.read())) == [b"one"]


def test_what_waits_for_a_write_is_written_at_the_end_and_nothing_opens_it_again(outbox, result_of):
    kept = outbox()
    first, second = kept.append(b"one"), kept.append(b"two")
    kept.close()
    assert [result_of(first), result_of(second)] == [0, 0]
    with pytest.raises(BackendError, match="closed"):
        result_of(kept.append(b"late"))
    with pytest.raises(BackendError, match="closed"):
        result_of(kept.read())
    assert octets(result_of(outbox().read())) == [b"one", b"two"]


def test_a_record_that_is_too_large_is_a_fault_of_its_caller(outbox, result_of):
    with pytest.raises(ValueError, match="at most"):
        outbox().append(b"x" * (MAX_RECORD + 1))


def test_the_file_is_for_its_owner_only(outbox, tmp_path, result_of):
    result_of(outbox().append(b"one"))
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "p0" / "outbox").iterdir()}
    assert modes == {0o600}
