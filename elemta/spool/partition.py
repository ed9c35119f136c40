"""One partition of the spool on disk: its places, its modes, its name, and the lock of its owner.

:class:`AdoptedSpools` is the record of the spools that this one's node has adopted, kept beside its own
partitions.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from elemta.errors import SpoolError, SpoolLocked
from elemta.runtime import Runtime
from elemta.runtime.disk import Disk
from elemta.spool.record_file import TEMPORARY, RecordFile

_DIRECTORY = re.compile(r"p(0|[1-9][0-9]{0,3})")
_ID = re.compile(r"[0-9a-f]{32}")
_LONGEST_LOCK = 512
# random(4): a name for this run of the kernel
_KERNEL = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Places:
    """Where the parts of a partition are: ``DIR/pN/{lock,id,queue.db,reserve,bodies/}``."""

    directory: Path

    @property
    def history(self) -> Path:
        """The directory of what became of messages, made with the first of it."""
        return self.directory / "history"

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def id(self) -> Path:
        return self.directory / "id"

    @property
    def database(self) -> Path:
        return self.directory / "queue.db"

    @property
    def reserve(self) -> Path:
        return self.directory / "reserve"

    @property
    def bodies(self) -> Path:
        return self.directory / "bodies"

    def body(self, queue_id: str) -> Path:
        return self.bodies / queue_id

    def unfinished_body(self, queue_id: str) -> Path:
        return self.bodies / (TEMPORARY + queue_id)


def partitions_in(root: Path) -> tuple[int, ...]:
    """The numbers of the partitions that a spool directory has. OSError."""
    found = (_DIRECTORY.fullmatch(name) for name in os.listdir(root))
    numbers = sorted(int(match[1]) for match in found if match is not None)
    return tuple(number for number in numbers if Places(root / f"p{number}").database.exists())


class Partition:
    """A partition that this process owns from `claim` to `leave`.

    ``node`` and ``how`` are for nodes that ask whose it is: this node's name, and how it came to it.
    ``id`` names the partition wherever it is moved, and ``place`` its lock: two claims of one ``place`` were
    ruled by the same lock. ``last_node`` is the node that had it before. All are there once it is claimed;
    ``place`` is empty where the system does not tell it.
    """

    def __init__(self, root: Path, number: int, runtime: Runtime, *, node: str = "", how: str = "") -> None:
        self.places = Places(root / f"p{number}")
        self.id = ""
        self.place = ""
        self.last_node = ""
        self._root = root
        self._disk = runtime.disk
        self._runtime = runtime
        self._node = node
        self._how = how
        self._lock: int | None = None

    def claim(self) -> None:
        """Create what is missing, synced, and take the lock.

        SpoolLocked: another process owns it. SpoolError: the directory can't be made or used.
        """
        places = self.places
        try:
            missing = [path for path in (places.bodies, *places.bodies.parents) if not path.exists()]
            for path in reversed(missing):
                path.mkdir(0o700, exist_ok=True)
            self._lock = self._take_lock()
            self.place = _place_of(self._lock)
            self._touch(places.database)
            self.id = self._read_id() or self._give_id()
            for path in sorted({path.parent for path in missing} | {self._root, places.directory}):
                self._disk.sync_directory(path)
        except OSError as error:
            self.leave()
            raise SpoolError(f"the spool directory {self._root} can't be used: {error}") from error

    def leave(self) -> None:
        """Give the partition up; the kernel does the same when the process dies."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _touch(self, path: Path) -> None:
        # SQLite gives its side files the mode of the database, so the database gets the right one first.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _read_id(self) -> str | None:
        try:
            text = self.places.id.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None
        # One that was damaged is as good as none.
        return text if _ID.fullmatch(text) else None

    def _give_id(self) -> str:
        given = self._runtime.token(16)
        unfinished = self.places.directory / (TEMPORARY + "id")
        unfinished.unlink(missing_ok=True)
        descriptor = self._disk.create(unfinished)
        try:
            self._disk.write(descriptor, [f"{given}\n".encode("ascii")])
            self._disk.sync_file(descriptor)
        finally:
            self._disk.close(descriptor)
        self._disk.rename(unfinished, self.places.id)
        return given

    def _take_lock(self) -> int:
        descriptor = os.open(self.places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = os.read(descriptor, _LONGEST_LOCK)
            os.close(descriptor)
            raise _owned_by(said, self.places.directory) from None
        except OSError:
            os.close(descriptor)
            raise
        self.last_node = _words(os.pread(descriptor, _LONGEST_LOCK, 0))[1]
        os.ftruncate(descriptor, 0)
        words = f"{os.getpid()}\n{self._node}\n{self._how}\n".encode("utf-8", "replace")
        os.pwrite(descriptor, words[:_LONGEST_LOCK], 0)
        return descriptor


def _words(said: bytes) -> tuple[str, str, str]:
    """What a lock's owner wrote into it: its process id, its node, how it came to it; each on a line."""
    pid, node, how, *_ = (*said.decode("utf-8", "replace").splitlines(), "", "", "")
    return pid, node, how


def _owned_by(said: bytes, directory: Path) -> SpoolLocked:
    pid, node, how = _words(said)
    who = f"process {pid}" if pid.isascii() and pid.isdigit() else "another process"
    if node:
        who += f" of node {node}"
    if how:
        who += f", {how},"
    return SpoolLocked(f"{who} owns the spool partition {directory}", node=node)


def _place_of(descriptor: int) -> str:
    # Not as ASCII: that codec would be looked for now, privileges gone, and with them perhaps the way.
    try:
        kernel = _KERNEL.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    status = os.fstat(descriptor)
    return f"{kernel}:{status.st_dev:x}:{status.st_ino:x}"


class AdoptedSpools:
    """``DIR/adopted``: a JSON list of directories. Its calls block; SpoolError where the disk fails."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self._record = RecordFile(root, "adopted", disk)

    def read(self) -> tuple[Path, ...]:
        """The directories that were written last; none where there is no record."""
        return tuple(map(Path, self._record.read()))

    def write(self, directories: Iterable[Path]) -> None:
        """Replace the record, whole or not at all; it is durable when this returns."""
        self._record.write(map(str, directories))
