"""A daemon for each test that wants one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes daemons that are killed when the test ends; they are not started yet."""
    made: list[Daemon] = []

    def make(tables: str = "", *, name: str = "node", **options: Any) -> Daemon:
        daemon = Daemon(tmp_path / name, tables, **options)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        daemon.kill()


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    """One daemon with defaults, started."""
    return make_daemon().start()
