"""Typed values that the policies of a session or transaction share."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")

MAX_RESULTS = 1000
"""Types of results on one session or transaction."""


class Results:
    """What policies found out, by its type.

    ``results.publish(SPFResult("pass"))`` is for every policy that is asked later;
    ``results.get(SPFResult)`` returns it, or None. Of two values of one type the later one counts. The
    results of a transaction include those of its session.
    """

    __slots__ = ("_found", "_wider")

    def __init__(self, wider: Results | None = None) -> None:
        self._found: dict[type, Any] | None = None
        self._wider = wider

    def publish(self, value: object) -> None:
        """Let every policy get ``value`` by its type, which is a class of the plugin's own."""
        kind = type(value)
        if kind.__module__ == "builtins":
            raise TypeError(f"a result has a class of its own, so that others know it: not {kind.__name__}")
        if self._found is None:
            self._found = {}
        if kind not in self._found and len(self._found) >= MAX_RESULTS:
            raise ValueError(f"more than {MAX_RESULTS} types of results")
        self._found[kind] = value

    def get(self, kind: type[T]) -> T | None:
        """What was published of this very type, else None."""
        found: T | None = None if self._found is None else self._found.get(kind)
        if found is None and self._wider is not None:
            return self._wider.get(kind)
        return found
