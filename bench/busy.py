"""What other programs use of the machine while a benchmark runs, and how much makes a figure void."""

from __future__ import annotations

import os
import time
from pathlib import Path

from servers import TICKS, Server, cpu_seconds, descendants

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
        """Of this process, of all that it started, and of servers that have left it."""
        ours = descendants(os.getpid())
        away = [pid for server in self._servers for pid in server.pids() if pid not in ours]
        return sum(map(cpu_seconds, [os.getpid(), *away]))


def at_rest(seconds: float = 3.0) -> float:
    """The share of others while this process does nothing."""
    others = Others()
    time.sleep(seconds)
    return others.share()


def _busy() -> float:
    """CPU seconds of all processes since the machine started, and those that it did not get."""
    user, nice, system, _idle, _wait, _irq, _softirq, steal = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return (user + nice + system + steal) / TICKS
