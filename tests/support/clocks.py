"""Setting the time of day of one daemon while it runs: libfaketime of Debian's package ``faketime``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class WallClock:
    """The time of day of a process that is started with ``environ``; its monotonic clock is left alone."""

    def __init__(self, directory: Path) -> None:
        # The plain library waits for a condition by the time that it fakes; this one is for threads.
        libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not libraries:
            if os.environ.get("CI"):
                pytest.fail("faketime is not installed, and CI has to have it", pytrace=False)
            pytest.skip("faketime is not installed")
        self._file = directory / "faketime"
        self.set(0)
        self.environ = {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: float) -> None:
        """Let it be off by so much from now on."""
        # Never half written: the library reads it at every call.
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+.3f}\n")
        fresh.replace(self._file)
