"""Clocks that are off: libfaketime of Debian's package ``faketime``, put before a daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def skewed(seconds: float) -> dict[str, str]:
    """The environment of a process whose clock is off by so much; its steady clock is left alone."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        if os.environ.get("CI"):
            pytest.fail("faketime is not installed, and CI has to have it", pytrace=False)
        pytest.skip("faketime is not installed")
    return {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME": f"{seconds:+.3f}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "0",
    }
