"""What other programs use of the machine while a benchmark runs, and how much makes a figure void."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from servers import TICKS, Server, cpu_seconds, descendants, processes

MOST = 0.1
"""Of all cores. With more than that a figure is not published."""


class Others:
    """The CPU of all that is neither this benchmark nor what it measures, from now on."""

    def __init__(self, *servers: Server) -> None:
        self._servers = servers
        self._begun = time.perf_counter()
        self._busy = _busy()
        self._own = self._own_seconds()

    def share(self) -> float:
        """Their part of all cores since then, between 0 and 1."""
        seconds = (time.perf_counter() - self._begun) * (os.cpu_count() or 1)
        theirs = _busy() - self._busy - (self._own_seconds() - self._own)
        return max(0.0, min(1.0, theirs / seconds))

    def _own_seconds(self) -> float:
        """Of this process, of all that it started, of servers that have left it, and of the kernel's threads.

        Those do what others ask for: with a file for each message most of it is the disk's journal.
        """
        ours = descendants(os.getpid())
        away = [pid for server in self._servers for pid in server.pids() if pid not in ours]
        return sum(map(cpu_seconds, [os.getpid(), *away, *_kernel()]))


def _kernel() -> list[int]:
    """The process above the threads of the kernel, where this process sees it."""
    with suppress(OSError):
        if Path("/proc/2/comm").read_text().strip() == "kthreadd":
            return [2]
    return []


def at_rest(seconds: float = 3.0) -> float:
    """The share of others while this process does nothing."""
    others = Others()
    time.sleep(seconds)
    return others.share()


def _busy() -> float:
    """CPU seconds of all processes, and those that the machine did not get.

    Not the sum of /proc/stat: that counts by ticks, and many short turns are a tenth more or less in it.
    """
    steal = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
    return (sum(processes()[1].values()) + steal) / TICKS
