"""Where the servers of a test run: here, or in a network that the test made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Place(Protocol):
    """A network that processes and sockets can be in."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command so that it runs there."""

    def call(self, function: Callable[[], T]) -> T:
        """Call it so that the sockets that it makes are there."""


class _Here:
    prefix = ()

    def call(self, function: Callable[[], T]) -> T:
        return function()


HERE: Place = _Here()
