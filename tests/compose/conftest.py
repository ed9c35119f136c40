"""Collected only by `make compose-test`, which makes the images and the namespace that these tests run in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.compose.engine import Engine
from tests.support.showing import pytest_terminal_summary, show

__all__ = ["pytest_terminal_summary", "show"]

collect_ignore_glob = [] if "ELEMTA_COMPOSE" in os.environ else ["test_*.py"]


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine(Path(os.environ["ELEMTA_COMPOSE"]))


@pytest.fixture(scope="session", autouse=True)
def _addresses() -> None:
    """The clients': of a network for documentation, in the namespace of this test and nowhere else."""
    for last in range(1, 100):
        subprocess.run(["ip", "address", "add", f"198.51.100.{last}/32", "dev", "lo"], check=True)
