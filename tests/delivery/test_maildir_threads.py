"""A file system that hangs costs the mail for its Maildirs a deadline, and no other mail anything."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elemta.delivery import maildir as module
from elemta.delivery.maildir import STUCK, Errors, MaildirDelivery, MaildirJob
from elemta.delivery.maildir_threads import MaildirThreads
from elemta.delivery.settings import DeliverySettings

SETTINGS = DeliverySettings("me.example")
DEADLINE = SETTINGS.maildir_deadline


class Pool:
    """Threads that do their work when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def call(self, work: Callable[..., Any], *args: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.waiting.append(lambda: done.callback(work(*args)))
        return done

    def go_on(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


class Disk:
    """Maildirs below ``directory``, and a clock that goes on for long where one of them hangs."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.clock = Clock()
        self.pool = Pool()
        self.threads = MaildirThreads(self.clock, self.pool, SETTINGS)  # type: ignore[arg-type]
        self.hangs_at = ""
        for name in ("_sync_data", "_sync_directory"):
            monkeypatch.setattr(module, name, self._hanging(name, getattr(module, name)))

    def _hanging(self, name: str, real: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(target: Any) -> None:
            path = target if isinstance(target, str) else os.readlink(f"/proc/self/fd/{target}")
            if self.hangs_at == f"{name} {Path(path).relative_to(self.directory)}":
                self.pass_time()
            real(target)

        return call

    def pass_time(self) -> None:
        self.clock.pump([DEADLINE / 10] * 20)

    def write(self, *boxes: str, name: str = "1.Q1R1.h") -> list[Errors]:
        """Gives a list that gets what became of a message for these."""
        drops = [MaildirDelivery(str(self.directory / box), name, b"") for box in boxes]
        results: list[Errors] = []
        self.threads.write(MaildirJob(io.BytesIO(b"hello\r\n"), 7, drops)).addCallback(results.append)
        return results

    @property
    def files(self) -> list[str]:
        found = (path for path in self.directory.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.directory)) for path in found)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path, monkeypatch)
    for box in ("bob", "eve"):
        disk.write(box, name="first")
    disk.pool.go_on()
    for path in tmp_path.rglob("first"):
        path.unlink()
    return disk


def errors_in(results: list[Errors]) -> list[str]:
    ((*errors,),) = results
    return [str(getattr(error, "strerror", error)) for error in errors]


def test_mail_that_hangs_is_deferred_and_is_not_delivered_after_that(disk: Disk) -> None:
    disk.hangs_at = "_sync_data bob/tmp/1.Q1R1.h"
    results = disk.write("eve", "bob")
    disk.pool.go_on()
    # Of eve's nothing is known before that directory was synced, which comes last.
    assert errors_in(results) == [STUCK, STUCK]
    assert disk.files == ["eve/new/1.Q1R1.h"]
    assert not disk.threads.has_stuck_thread
    disk.hangs_at = ""
    again = disk.write("eve", "bob")
    disk.pool.go_on()
    assert errors_in(again) == ["None", "None"]
    assert disk.files == ["bob/new/1.Q1R1.h", "eve/new/1.Q1R1.h"]


def test_while_one_maildir_hangs_others_get_their_mail_and_it_gets_no_other_thread(disk: Disk) -> None:
    first = disk.write("bob", name="1")
    stuck = disk.pool.waiting.pop()
    disk.threads._writer.stuck[str(disk.directory / "bob")] = 1
    others = disk.write("bob", name="2"), disk.write("eve", name="2")
    disk.pool.go_on()
    assert [errors_in(each) for each in others] == [[STUCK], ["None"]]
    assert disk.files == ["eve/new/2"]
    del disk.threads._writer.stuck[str(disk.directory / "bob")]
    disk.pass_time()
    assert errors_in(first) == [STUCK]
    assert disk.threads.has_stuck_thread
    stuck()
    # It was given up before it began.
    assert not disk.threads.has_stuck_thread
    assert disk.files == ["eve/new/2"]


def test_a_directory_that_hangs_is_known_as_long_as_its_thread_hangs(disk: Disk) -> None:
    seen: list[dict[str, int]] = []
    stuck = disk.threads._writer.stuck
    disk.hangs_at = "_sync_data bob/tmp/1.Q1R1.h"
    disk.write("bob")
    disk.clock.callLater(DEADLINE * 1.5, lambda: seen.append(dict(stuck)))
    disk.pool.go_on()
    assert seen == [{str(disk.directory / "bob"): 1}]
    assert stuck == {}


def test_what_was_delivered_after_its_deadline_is_not_delivered_again(disk: Disk) -> None:
    disk.hangs_at = "_sync_directory bob/new"
    results = disk.write("bob")
    disk.pool.go_on()
    assert errors_in(results) == [STUCK]
    # A reader moves it.
    (disk.directory / "bob/new/1.Q1R1.h").rename(disk.directory / "bob/cur/1.Q1R1.h:2,S")
    again = disk.write("bob")
    disk.pool.go_on()
    assert errors_in(again) == ["None"]
    assert disk.files == ["bob/cur/1.Q1R1.h:2,S"]


def test_slow_is_not_stuck(disk: Disk) -> None:
    results = disk.write("bob")
    (job,) = next(iter(disk.threads._busy)).jobs
    for _ in range(10):
        job.progress.steps += 1
        disk.clock.pump([DEADLINE / 10] * 9)
    assert results == []
    disk.pool.go_on()
    assert errors_in(results) == ["None"]


def test_a_process_that_stood_still_takes_no_file_system_for_stuck(disk: Disk) -> None:
    results = disk.write("bob")
    for _ in range(5):
        disk.clock.advance(100 * DEADLINE)
    assert results == []
    disk.pool.go_on()
    assert errors_in(results) == ["None"]


def test_where_all_threads_hang_nothing_waits_for_one(disk: Disk) -> None:
    most = SETTINGS.maildir_threads + SETTINGS.stuck_threads
    results = [disk.write("bob", name=str(number)) for number in range(20)]
    for _ in range(most):
        disk.pass_time()
    assert len(disk.pool.waiting) == most
    assert [errors_in(each) for each in results] == [[STUCK]] * 20
    assert errors_in(disk.write("eve")) == [STUCK]
    disk.pool.go_on()
    assert disk.files == []
    last = disk.write("eve")
    disk.pool.go_on()
    assert errors_in(last) == ["None"]
