"""Nodes that left or died: what each last said of itself, for a week, and what the others log of it.

- ``{prefix}nodes_past``: a sorted set of the names of all nodes of the last week.
- ``{prefix}nodepast:NODE_ID``: what the node last said of itself, as in ``{prefix}node:NODE_ID``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from twisted.logger import Logger

from elemta.valkey import Script

_log = Logger()

KEPT_SECONDS = 7 * 86400.0
"""Seconds after its last sign of life in which a node that is gone is listed."""

INDEX_INTERVAL = 60.0
"""Every so many seconds a node writes its name into the index."""

MOST_LISTED = 1000

REGISTER = Script.of_package("elemta.limits", "scripts/register.lua")


class NodeKeys(Protocol):
    """The keys of nodes, and the commands on them."""

    def index_key(self) -> bytes: ...

    def past_key(self, node_id: str) -> bytes: ...

    async def ask(self, verb: str, key: bytes, *words: str | int) -> Any: ...

    async def register(self, key: bytes, milliseconds: int, member: str) -> Sequence[bytes]: ...


class PastNodes:
    """What this node knows of others that are gone, and which of them it has logged.

    ``seconds`` is a steady clock. ``node_id`` is this node.
    """

    def __init__(self, keys: NodeKeys, node_id: str, seconds: Callable[[], float]) -> None:
        self._keys = keys
        self._node_id = node_id
        self._seconds = seconds
        self._next_entry = float("-inf")
        self._known: dict[str, None] | None = None
        self._gone: dict[str, None] = {}

    async def note_own(self) -> None:
        """Keep this node's name in the index. Fails with StoreUnavailable."""
        if self._seconds() >= self._next_entry:
            kept = int(KEPT_SECONDS * 1000)
            await self._keys.register(self._keys.index_key(), kept, self._node_id)
            self._next_entry = self._seconds() + INDEX_INTERVAL

    async def watch(self, live: Iterable[str], *, settled: bool) -> None:
        """Log which nodes came and went since the last call. Fails with StoreUnavailable.

        A list that is not ``settled`` may lack nodes that live.
        """
        now = dict.fromkeys(live)
        before = self._known
        if before is None:
            self._known = now
            return
        for name in now:
            if name not in before:
                self._came(name)
        missing = [name for name in before if name not in now and name != self._node_id]
        self._known = now if settled else {**before, **now}
        for name in missing if settled else ():
            self._gone[name] = None
            if len(self._gone) > MOST_LISTED:
                del self._gone[next(iter(self._gone))]
            _log_end(name, await self.last_words(name))

    def _came(self, name: str) -> None:
        if name in self._gone:
            del self._gone[name]
            _log.info("a node is back", event="nodes.returned", name=name)
        else:
            _log.info("a node has joined", event="nodes.joined", name=name)

    async def names(self) -> Sequence[str]:
        """All nodes of the last week, those that live too. Fails with StoreUnavailable."""
        found = await self._keys.ask("ZRANGE", self._keys.index_key(), 0, MOST_LISTED - 1, "REV")
        return [name.decode("utf-8", "replace") for name in found]

    async def last_words(self, name: str) -> Mapping[bytes, bytes]:
        """The fields that a node wrote last; none where that is over. Fails with StoreUnavailable."""
        flat = await self._keys.ask("HGETALL", self._keys.past_key(name))
        return dict(zip(flat[::2], flat[1::2], strict=True))


def _log_end(name: str, fields: Mapping[bytes, bytes]) -> None:
    queued, sessions = _whole(fields.get(b"queue")), _whole(fields.get(b"sessions"))
    if fields.get(b"left"):
        _log.info("a node has left", event="nodes.left", name=name, queued=queued, sessions=sessions)
    else:
        _log.warn(
            "a node is gone without a word", event="nodes.lost", name=name, queued=queued, sessions=sessions
        )


def _whole(text: bytes | None) -> int:
    """0 for what no node of this version would write."""
    return int(text) if text is not None and text.isdigit() and len(text) < 16 else 0
