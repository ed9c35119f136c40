"""Writes lines to a stream whose reader may be slow, without waiting for it."""

from __future__ import annotations

import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

# POSIX: a pipe that polls as writable takes at least this much at once without blocking.
_PIPE_BUF = select.PIPE_BUF


class TextStream(Protocol):
    """A stream for lines: a standard stream, an open text file, Twisted's LogFile."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


class LogWriter:
    """Lines on their way to a stream; never raises, and never waits for the reader.

    What a full pipe does not take is kept, at most ``limit`` octets, and goes out with the lines that follow;
    lines past that are counted, and ``notice(count)`` makes the line that tells it afterwards. A reader that
    went away costs the lines. May be called from every thread, and again from within itself.
    """

    def __init__(self, stream: TextStream, notice: Callable[[int], str], limit: int = 1024 * 1024) -> None:
        self._stream = stream
        self._notice = notice
        self._limit = limit
        self._fd = _descriptor(stream)
        self._poll = select.poll()
        self._may_block = self._fd is not None and not _is_file(self._fd)
        if self._fd is not None:
            self._poll.register(self._fd, select.POLLOUT)
        self._pending: deque[bytes] = deque()
        self._held = 0
        self._lost = 0
        # Reentrant: the garbage collector may cause a log record while a line is being written.
        self._lock = threading.RLock()
        self._draining = False

    @property
    def held(self) -> int:
        """Octets that wait for a reader."""
        return self._held

    def reopen(self) -> None:
        """Go on in the file that has the stream's name now, which a rotation of logs has made another one.

        Nothing for a stream that was not opened by an absolute path, such as a standard one, whose name is
        ``<stdout>``. Raises OSError, and then goes on in the old file.
        """
        name = getattr(self._stream, "name", None)
        if self._fd is None or self._may_block or not isinstance(name, str) or not os.path.isabs(name):
            return
        mode = stat.S_IMODE(os.fstat(self._fd).st_mode)
        opened = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode)
        try:
            with self._lock:
                os.dup2(opened, self._fd, inheritable=False)
        finally:
            os.close(opened)

    def write(self, line: str) -> None:
        """Write ``line``, which ends in a newline, or keep it until the stream takes it."""
        if self._fd is None:
            self._write_to_stream(line)
            return
        data = line.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._held + len(data) > self._limit:
                self._lost += 1
            else:
                self._pending.append(data)
                self._held += len(data)
            if not self._draining:
                self._draining = True
                try:
                    self._drain(self._fd)
                finally:
                    self._draining = False

    def _write_to_stream(self, line: str) -> None:
        try:
            self._stream.write(line)
            self._stream.flush()
        except (OSError, ValueError):  # a full disk, or a file that was closed: there is nowhere to say so
            self._lost += 1

    def _drain(self, fd: int) -> None:
        try:
            while self._pending and (not self._may_block or self._poll.poll(0)):
                head = self._pending[0]
                written = os.write(fd, head[:_PIPE_BUF])
                self._held -= written
                if written == len(head):
                    self._pending.popleft()
                else:
                    self._pending[0] = head[written:]
                if self._lost and not self._pending:
                    self._report_lost()
        except BlockingIOError:  # another process made it non-blocking; the rest waits for the next line
            return
        except OSError:  # the reader is gone, or the disk is full
            self._lost += len(self._pending)
            self._pending.clear()
            self._held = 0

    def _report_lost(self) -> None:
        notice = self._notice(self._lost).encode("utf-8", "backslashreplace")
        self._lost = 0
        self._pending.append(notice)
        self._held += len(notice)


def _descriptor(stream: TextStream) -> int | None:
    fileno = getattr(stream, "fileno", None)
    if fileno is None:
        return None
    try:
        return int(fileno())
    except (OSError, ValueError):
        return None


def _is_file(fd: int) -> bool:
    """Whether writing never waits for a reader: poll(2) calls a regular file ready, always."""
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False
