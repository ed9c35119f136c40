"""Threads of the spool's own: the reactor's pool also resolves names; a stalled disk must not stall that."""

from __future__ import annotations

from elemta.runtime import Threads


class SpoolThreads:
    """One thread that commits, one that reads, and a few for the files of large bodies."""

    def __init__(self, threads: Threads, file_threads: int) -> None:
        self.commit = threads.ordered("spool-commit")
        self.read = threads.ordered("spool-read")
        self.files = threads.ordered("spool-files", file_threads)

    def stop(self) -> None:
        for worker in (self.commit, self.read, self.files):
            worker.stop()
