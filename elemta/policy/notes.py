"""What one policy remembers of a session or transaction."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

MAX_NOTES = 1000
"""More notes than this can't be kept by one policy on one session or transaction, nor be published on it."""


class Notes(MutableMapping[str, Any]):
    """What one policy remembers of a session or transaction; other policies see only what is published.

    ``notes["key"] = value`` is private. ``notes.publish("key", value)`` is for every policy, under this
    policy's name; ``notes.published("greylist", "key")`` reads what another policy published. Notes live as
    long as their session or transaction and are not stored.
    """

    __slots__ = ("_board", "_policy", "_private")

    def __init__(self, policy: str, board: dict[tuple[str, str], Any]) -> None:
        self._policy = policy
        self._board = board
        self._private: dict[str, Any] = {}

    def publish(self, key: str, value: Any) -> None:
        """Let every policy read ``value`` as ``published(THIS_POLICY, key)``."""
        place = (self._policy, key)
        if place not in self._board and len(self._board) >= MAX_NOTES:
            raise ValueError(f"more than {MAX_NOTES} published notes")
        self._board[place] = value

    def published(self, policy: str, key: str, default: Any = None) -> Any:
        """What ``policy`` published under ``key`` on the same session or transaction, else ``default``."""
        return self._board.get((policy, key), default)

    def __getitem__(self, key: str) -> Any:
        return self._private[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The note under ``key``, else ``default``."""
        return self._private.get(key, default)

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self._private and len(self._private) >= MAX_NOTES:
            raise ValueError(f"more than {MAX_NOTES} notes")
        self._private[key] = value

    def __delitem__(self, key: str) -> None:
        del self._private[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._private)

    def __len__(self) -> int:
        return len(self._private)
