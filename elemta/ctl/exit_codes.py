"""The exit codes of ``elemtactl``, from sysexits.h where it has one."""

from __future__ import annotations

from collections.abc import Sequence

from elemta.errors import Fault

EX_OK = 0
EX_FAILED = 1
EX_USAGE = 2
EX_UNAVAILABLE = 69
EX_NOPERM = 77
EX_CONFIG = 78
# 128 + SIGINT, as a shell has it
EX_INTERRUPTED = 130


class CommandFailed(Exception):
    """A command that failed: its exit code, what happened, and what to do about it."""

    def __init__(self, code: int, problem: str, hint: str = "", faults: Sequence[Fault] = ()) -> None:
        super().__init__(problem)
        self.code = code
        self.problem = problem
        self.hint = hint
        self.faults = tuple(faults)
