"""One call of the admin API: what was asked, and how it is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from twisted.web import http

from elemta.ops.admin_json import Json

MAX_PAGE = 1000


class AdminRefusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, error: str, hint: str = "", more: Json | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.content: Json = {"error": error, "hint": hint, **(more or {})}


@dataclass(frozen=True, slots=True)
class AdminCall:
    """One request: the variable parts of its path, and its query."""

    parts: tuple[str, ...]
    query: Mapping[str, str]

    def only(self, *names: str) -> None:
        """Refuse a query with other names: a misspelt filter must not mean "everything"."""
        for name in self.query:
            if name not in names:
                known = f"known: {', '.join(names)}" if names else "it takes none"
                raise AdminRefusal(http.BAD_REQUEST, f"unknown query parameter {name!r}", known)


Answer = Callable[[AdminCall], Awaitable[Json]]


def no_such_message() -> AdminRefusal:
    """What a call about an unknown message is answered."""
    return AdminRefusal(http.NOT_FOUND, "no message has this queue id", "it may be delivered by now")


def count_of(call: AdminCall, name: str, default: int) -> int:
    """A number of things to show, from 1 to :data:`MAX_PAGE`."""
    text = call.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_PAGE):
        raise AdminRefusal(http.BAD_REQUEST, f"{name} {text[:16]!r} is not a number from 1 to {MAX_PAGE}")
    return int(text)
