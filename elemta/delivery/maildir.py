"""Final delivery to Maildirs: synced before it counts, under names that no client can choose.

:class:`Mailboxes` says which Maildirs exist. It asks the file system in threads, with a deadline, and
remembers the answer for a moment.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.address import Address
from elemta.bounded_map import BoundedMap
from elemta.delivery.routes import MaildirRoute, Placeholder
from elemta.domains import canonical_domain
from elemta.errors import MailboxUnknown, NoMailbox, SpoolError
from elemta.runtime import Runtime, WorkerPool

_log = Logger()

_CHUNK = 64 * 1024
_LONGEST_PART = 200
_REMEMBERED = 10_000
_MOST_LATE = 10_000
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-+=@.")
#: The text of the error for a Maildir in which a thread hangs.
STUCK = "its file system does not answer"
_sync_data = getattr(os, "fdatasync", os.fsync)


@dataclass(frozen=True, slots=True)
class MaildirDelivery:
    """One file to be made: in the Maildir ``directory``, called ``name``, beginning with ``prefix``.

    ``make``: the Maildir is made where it is missing. ``root`` is a directory that has something in it
    whenever the file system with the Maildirs is there.
    """

    directory: str
    name: str
    prefix: bytes
    make: bool = True
    root: str = ""

    @property
    def file(self) -> str:
        """Where the message is once it was delivered, until a reader moves it."""
        return f"{self.directory}/new/{self.name}"


def path_part(text: str) -> str:
    """Text of an address as one safe part of a path.

    ASCII letters become lower case. What is neither letter, digit nor one of ``_-+=@.`` is written as
    the ``%XX`` of its UTF-8 octets, and so is a dot at the start; a long text ends in its hash. Texts
    that differ in more than the case of ASCII letters never get the same part.
    """
    lowered = re.sub("[A-Z]+", lambda match: match[0].lower(), text)
    safe = "".join(char if char in _SAFE else _percent(char) for char in lowered)
    if safe.startswith("."):
        safe = "%2E" + safe[1:]
    if 0 < len(safe) <= _LONGEST_PART:
        return safe
    # "%Z" never begins a percent-encoded octet, so that no other text leads here.
    digest = hashlib.sha256(lowered.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{safe[: _LONGEST_PART - 70]}%Z{digest}"


def maildir_path(template: Sequence[str | Placeholder], mailbox: Address) -> str:
    """The Maildir of a mailbox (:meth:`elemta.delivery.routes.MaildirRoute.mailbox`)."""
    parts = {Placeholder.DOMAIN: canonical_domain(mailbox.domain), Placeholder.LOCAL: mailbox.local}
    return "".join(part if isinstance(part, str) else path_part(parts[part]) for part in template)


def file_name(queue_id: str, recipient: Address, received_at: float, hostname: str) -> str:
    """The unique name of a message for a recipient: the same at every attempt.

    So a delivery that was repeated after a crash takes the place of the first one as long as no reader
    has moved that, instead of standing beside it.
    """
    who = hashlib.blake2s(str(recipient).encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    host = re.sub("[^A-Za-z0-9.-]", "_", hostname) or "localhost"
    return f"{int(received_at)}.Q{queue_id}R{who}.{host}"


@dataclass(slots=True)
class MaildirProgress:
    """What a thread does about a message; the reactor reads it.

    ``steps`` grows as the file system answers, and ``directory`` is the Maildir that is worked on. Once it is
    ``given_up``, nothing more is to be delivered.
    """

    steps: int = 0
    directory: str = ""
    given_up: bool = False

    def begin(self, directory: str) -> None:
        """Go on with this Maildir; empty: with none."""
        self.steps += 1
        self.directory = directory


@dataclass(frozen=True, slots=True)
class MaildirJob:
    """One message to be dropped; ``content`` must have ``size`` octets, and is closed when it was written.

    ``done`` gets the place of each drop that is on stable storage, the moment it is. ``queue_id`` is for the
    log.
    """

    content: BinaryIO
    size: int
    deliveries: Sequence[MaildirDelivery]
    done: set[int] = field(default_factory=set, compare=False)
    queue_id: str = ""
    progress: MaildirProgress = field(default_factory=MaildirProgress, compare=False)


Errors = list[OSError | SpoolError | NoMailbox | None]


class MaildirWriter:
    """Writes messages into Maildirs. Blocks: to be called in a thread, from any number of them.

    ``stuck`` has the Maildirs in which another thread hangs: nothing is tried there. ``late`` has the files
    that a thread made after its message was given up. Threads only look into both.
    """

    def __init__(self) -> None:
        self.stuck: dict[str, int] = {}
        self.late: BoundedMap[str, None] = BoundedMap(_MOST_LATE)
        self._known: set[str] = set()

    def write(self, jobs: Sequence[MaildirJob]) -> list[Errors]:
        """Make every drop of every job; for each the error, or None once it is on stable storage.

        The jobs share one sync of each directory that they write to.
        """
        results: list[Errors] = []
        written: dict[str, list[tuple[MaildirJob, Errors, int]]] = {}
        for job in jobs:
            results.append(self._write_job(job, written))
        for directory, places in written.items():
            for job, _, _ in places:
                job.progress.begin(directory)
            try:
                _sync_directory(f"{directory}/new")
            except OSError as error:
                for _, errors, place in places:
                    errors[place] = error
            else:
                for job, _, place in places:
                    job.done.add(place)
            for job, _, _ in places:
                job.progress.begin("")
        return results

    def _write_job(self, job: MaildirJob, written: dict[str, list[tuple[MaildirJob, Errors, int]]]) -> Errors:
        errors: Errors = []
        for drop in job.deliveries:
            if drop.file in self.late:
                job.done.add(len(errors))
                errors.append(None)
                continue
            job.progress.begin(drop.directory)
            try:
                self._deliver(job, drop)
            except (OSError, SpoolError, NoMailbox) as error:
                errors.append(error)
            except Exception as error:
                # A fault with one drop is no trouble of the others in this thread.
                _log.failure(
                    "writing into a Maildir failed",
                    event="maildir.internal_error",
                    queue_id=job.queue_id,
                    directory=drop.directory,
                )
                errors.append(SpoolError(f"a fault inside Elemta: {error!r}"))
            else:
                written.setdefault(drop.directory, []).append((job, errors, len(errors)))
                errors.append(None)
        job.progress.begin("")
        with contextlib.suppress(OSError):  # it was only read
            job.content.close()
        return errors

    def _deliver(self, job: MaildirJob, drop: MaildirDelivery) -> None:
        _check_wanted(job)
        if drop.directory in self.stuck:
            raise OSError(errno.ETIMEDOUT, STUCK)
        if drop.directory not in self._known:
            self._provide(drop)
        try:
            self._place(job, drop)
        except FileNotFoundError:
            # The Maildir was removed since it was last seen.
            self._known.discard(drop.directory)
            self._provide(drop)
            self._place(job, drop)

    def _provide(self, drop: MaildirDelivery) -> None:
        """Make what is missing of the Maildir. NoMailbox where that may not be."""
        if not drop.make and not _is_there(drop.directory):
            check_root(drop.root)
            raise NoMailbox("there is no such mailbox")
        self._make(drop.directory)

    def _place(self, job: MaildirJob, drop: MaildirDelivery) -> None:
        temporary = f"{drop.directory}/tmp/{drop.name}"  # noqa: S108 - a part of every Maildir
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        job.content.seek(0)
        descriptor = os.open(temporary, flags, 0o600)
        try:
            try:
                _copy(job, drop.prefix, descriptor)
                # The data first, then the name: a name in new/ never stands for half a message.
                _sync_data(descriptor)
            finally:
                os.close(descriptor)
            _check_wanted(job)
            os.rename(temporary, drop.file)
        except (OSError, SpoolError):
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _make(self, directory: str) -> None:
        """Make the Maildir and every directory above it that is missing, durably."""
        for name in ("tmp", "new", "cur"):
            _make_directory(f"{directory}/{name}")
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known.add(directory)


def _percent(char: str) -> str:
    return "".join(f"%{octet:02X}" for octet in char.encode("utf-8", "surrogatepass"))


def _is_there(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def check_root(root: str) -> None:
    """OSError where the root of all Maildirs is missing or empty, as while its file system is not mounted."""
    if not root:
        return
    with os.scandir(root) as entries:
        if next(entries, None) is None:
            raise FileNotFoundError(errno.ENOENT, f"there is no Maildir at all in {root}")


def _make_directory(path: str) -> None:
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_directory(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    # Also where another process made it, its name must be on the disk before anything in it counts.
    _sync_directory(parent)


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_wanted(job: MaildirJob) -> None:
    if job.progress.given_up:
        raise OSError(errno.ETIMEDOUT, STUCK)


def _copy(job: MaildirJob, prefix: bytes, descriptor: int) -> None:
    copied = -len(prefix)
    chunk = prefix + job.content.read(_CHUNK)
    while chunk:
        _write(descriptor, chunk)
        job.progress.steps += 1
        copied += len(chunk)
        chunk = job.content.read(_CHUNK)
    if copied != job.size:
        raise SpoolError(f"the stored message has {copied} octets of {job.size}")


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


#: Seconds.
DEADLINE = 5.0
REMEMBER_FOUND = 30.0
REMEMBER_MISSING = 1.0

THREADS = 2
MOST_WAITING = 1000
MOST_REMEMBERED = 10_000

# Such a name can't be a mailbox.
_NO_NAME = frozenset({errno.ENOENT, errno.ENAMETOOLONG})


class Mailboxes:
    """Tells whether a recipient's Maildir exists. The reactor never waits for the disk."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pool: WorkerPool | None = None
        self._remembered: BoundedMap[tuple[str, Address], tuple[float, bool]] = BoundedMap(MOST_REMEMBERED)
        self._asked: dict[str, list[Deferred[bool]]] = {}

    def exists(self, route: MaildirRoute, recipient: Address) -> bool | Deferred[bool]:
        """Whether the directory of a recipient's Maildir is there.

        The Deferred fails with :class:`~elemta.errors.MailboxUnknown` where the file system gives no
        answer, or none in :data:`DEADLINE` seconds; so does the call where too many wait already.
        """
        mailbox = route.mailbox(recipient)
        key = (route.target, mailbox)
        until, found = self._remembered.get(key, (0.0, False))
        if self._runtime.monotonic() < until:
            return found
        if len(self._asked) >= MOST_WAITING:
            raise MailboxUnknown(f"{len(self._asked)} Maildirs are being looked for already")
        answer: Deferred[bool] = Deferred()
        answer.addTimeout(DEADLINE, self._runtime.reactor)
        answer.addCallbacks(self._remember, _in_words, callbackArgs=(key,))
        self._ask(maildir_path(route.template, mailbox), route.root, answer)
        return answer

    def forget(self) -> None:
        """Ask anew about every Maildir."""
        self._remembered.clear()

    def stop(self) -> None:
        """End the threads; one that hangs in the file system is left to the end of the process."""
        pool, self._pool = self._pool, None
        if pool is not None and not self._asked:
            pool.stop()

    def _ask(self, directory: str, root: str, answer: Deferred[bool]) -> None:
        waiting = self._asked.setdefault(directory, [])
        waiting.append(answer)
        if len(waiting) > 1:
            return
        if self._pool is None:
            # A disk that does not answer must not keep the process from ending.
            self._pool = self._runtime.threads.pool("elemta-mailboxes", THREADS, daemon=True)
            self._pool.start()
        self._pool.call(_look, directory, root).addBoth(self._answer, directory)

    def _answer(self, outcome: bool | Failure, directory: str) -> None:
        for waiting in self._asked.pop(directory):
            # One whose time was up has its answer; Twisted drops this one.
            waiting.callback(outcome)

    def _remember(self, found: bool, key: tuple[str, Address]) -> bool:
        seconds = REMEMBER_FOUND if found else REMEMBER_MISSING
        self._remembered.keep(key, (self._runtime.monotonic() + seconds, found))
        return found


def _look(directory: str, root: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(directory).st_mode)
    except OSError as error:
        if error.errno not in _NO_NAME:
            raise
        # Without the file system that has all of them, that says nothing of any.
        check_root(root)
        return False


def _in_words(failure: Failure) -> Failure:
    if failure.check(DeferredTimeout, CancelledError) is not None:
        return Failure(MailboxUnknown(f"the file system gave no answer within {DEADLINE:g} s"))
    return Failure(MailboxUnknown(f"the file system gave no answer: {failure.getErrorMessage()}"))
