"""The nodes of a cluster: how many live, what they are, and what one tells all others.

Each node writes down every three seconds that it lives, and is forgotten ten seconds after its last word.
All ages are by the clock of Valkey; the clocks of two nodes are never compared.

- ``{prefix}nodes``: a sorted set with one member ``NODE_ID/BOOT`` for each process.
- ``{prefix}node:NODE_ID``: a hash of what it says of itself.
- ``{prefix}nodes_past``, ``{prefix}nodepast:NODE_ID``: kept for a week (:mod:`elemta.limits.past_nodes`).
- ``{prefix}resets``: a sorted set of the resets of the last minute, which every node looks through.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.errors import StoreUnavailable
from elemta.limits.past_nodes import KEPT_SECONDS, REGISTER, PastNodes
from elemta.limits.refusals import RememberedRefusal
from elemta.runtime import Runtime
from elemta.valkey import Script
from elemta.valkey.client import ValkeyCommands

_log = Logger()

HEARTBEAT = 3.0
"""Seconds between two signs of life."""

TIME_TO_LIVE = 10.0
"""Seconds after its last sign of life in which a node still counts."""

RESETS_KEPT = 60.0
"""Seconds in which a node that was cut off still hears of a reset."""

MAX_PUBLISHED = 100
"""So many refusals a node tells the others of."""

_DEADLINE = 1.0
_DUPLICATE_LOG_INTERVAL = 600.0
_BEAT = Script.of_package("elemta.limits", "scripts/beat.lua")
_LEAVE = Script.of_package("elemta.limits", "scripts/leave.lua")
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class About:
    """What a node says of itself once. ``started_at`` is seconds since the epoch."""

    version: str
    hostname: str
    address: str
    started_at: float


@dataclass(frozen=True, slots=True)
class NodeState:
    """What a heartbeat says; ``queue`` counts messages, ``refused`` has the identities refused now.

    ``draining``: the node takes no new session. ``limits_version`` is that of the pushed limits in force
    there; 0 where its own configuration's are.
    """

    sessions: int = 0
    queue: int = 0
    mode: str = ""
    refused: tuple[RememberedRefusal, ...] = ()
    draining: bool = False
    limits_version: int = 0


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node as it described itself ``age`` seconds ago. ``this`` is the one that was asked.

    One that is ``gone`` gives no sign of life any more; it ``left`` where it stopped in order.
    """

    node_id: str
    about: About
    state: NodeState
    age: float
    this: bool = False
    gone: bool = False
    left: bool = False


class Nodes:
    """This node among the others. Without Valkey everything is as it was last known.

    ``state`` is asked at each sign of life.
    """

    def __init__(
        self,
        runtime: Runtime,
        valkey: ValkeyCommands,
        *,
        prefix: str,
        node_id: str,
        about: About,
        state: Callable[[], NodeState],
    ) -> None:
        self._clock: IReactorTime = runtime.reactor
        self._valkey = valkey
        self._prefix = prefix
        self.node_id = node_id
        self._about = about
        self._state = state
        self._boot = runtime.token(4)
        self._live = 1
        self._callbacks: list[Callable[[str, str], object]] = []
        self._heard_until: str | None = None
        self._announced = 0
        self._written = False
        self._next_duplicate_log = 0.0
        self._settled_at = 0.0
        self._heartbeats = LoopingCall(self._heartbeat)
        self._heartbeats.clock = self._clock
        self._heartbeat_due: Deferred[None] | None = None
        self._past = PastNodes(self, node_id, self._clock.seconds)

    @property
    def live(self) -> int:
        """How many nodes were alive when Valkey last said so; at least this one."""
        return self._live

    def start(self) -> None:
        """Tell of this node from now on, as soon as there is a connection."""
        self._valkey.on_change(self._link_changed)
        self._heartbeats.start(HEARTBEAT)

    async def stop(self) -> None:
        """Tell the others that this node is gone, so that their shares grow at once."""
        if self._heartbeats.running:
            self._heartbeats.stop()
        if self._heartbeat_due is not None:
            self._heartbeat_due.cancel()
        try:
            # In this order: another node that misses this one looks for why.
            await self._valkey.run(_LEAVE, self._own_keys(), [self._boot], deadline=_DEADLINE)
            await self._valkey.command(
                "ZREM", self._key("nodes"), self._member, key=self._key("nodes"), deadline=_DEADLINE
            )
        except StoreUnavailable:
            _log.debug(
                "this node could not leave the list of nodes; its entry expires by itself",
                event="nodes.not_left",
            )

    async def list(self) -> tuple[NodeInfo, ...]:
        """The nodes that live, by name. Raises StoreUnavailable."""
        index = self._key("nodes")
        since = f"({_before(await self._server_time(index), TIME_TO_LIVE)}"
        members = await self.ask("ZRANGEBYSCORE", index, since, "+inf", "LIMIT", 0, 1000)
        found = []
        for node_id in _names_of(members):
            key = self._node_key(node_id)
            now = await self._server_time(key)
            flat = await self.ask("HGETALL", key)
            if flat:
                found.append(_node(node_id, dict(zip(flat[::2], flat[1::2], strict=True)), now, self.node_id))
        return tuple(found)

    async def list_gone(self, live: Collection[str]) -> tuple[NodeInfo, ...]:
        """The nodes of the last week that are not among the ``live`` ones, by name. StoreUnavailable."""
        found = []
        for node_id in sorted(await self._past.names()):
            if node_id in live:
                continue
            now = await self._server_time(self.past_key(node_id))
            fields = await self._past.last_words(node_id)
            if fields:
                found.append(replace(_node(node_id, fields, now, self.node_id), gone=True))
        return tuple(found)

    def on_reset(self, callback: Callable[[str, str], object]) -> None:
        """Have it called with a limit's name and an identity that another node has reset."""
        self._callbacks.append(callback)

    def announce_reset(self, limit: str, identity: str) -> Deferred[None]:
        """Tell the other nodes; they know within :data:`HEARTBEAT`. Fails with StoreUnavailable."""
        self._announced += 1
        entry = f"{self._boot}/{self._announced} {limit}:{identity}"
        kept = int(RESETS_KEPT * 1000)
        return self._valkey.run(
            REGISTER, [self._key("resets")], [kept, entry], deadline=_DEADLINE
        ).addCallback(lambda _: None)

    # Signs of life

    def _link_changed(self, up: bool) -> None:
        if up and self._heartbeats.running:
            if self._written:
                self._settled_at = self._clock.seconds() + TIME_TO_LIVE
            self._heartbeats.reset()
            self._heartbeat()

    def _heartbeat(self) -> None:
        """Never waited for: a slow one is as good as none, and the next comes at its time."""
        if self._heartbeat_due is None and self._valkey.up:
            self._heartbeat_due = ensureDeferred(self._tell())
            self._heartbeat_due.addBoth(self._heartbeat_ended)

    def _heartbeat_ended(self, result: object) -> None:
        self._heartbeat_due = None
        if isinstance(result, Failure) and result.check(CancelledError) is None:
            _log.failure("a heartbeat failed with an internal error", result, event="nodes.internal_error")

    async def _tell(self) -> None:
        try:
            ttl = int(TIME_TO_LIVE * 1000)
            now, *members = await self._valkey.run(
                REGISTER, [self._key("nodes")], [ttl, self._member], deadline=_DEADLINE
            )
            settled = self._count(len(members))
            kept = int(KEPT_SECONDS * 1000)
            fields: list[str | int | bytes] = [ttl, kept, self._boot, *_fields(self._about, self._state())]
            before = await self._valkey.run(_BEAT, self._own_keys(), fields, deadline=_DEADLINE)
            self._check_name(before)
            await self._hear_resets(now.decode())
            await self._past.note_own()
            await self._past.watch(_names_of(members), settled=settled)
        except StoreUnavailable:
            _log.debug("a heartbeat could not be written", event="nodes.heartbeat_failed")

    def _count(self, found: int) -> bool:
        """A Valkey that came back empty does not know all yet: fewer are believed when they had the time.

        Returns whether they had it.
        """
        settled = self._clock.seconds() >= self._settled_at
        self._live = max(1, found) if settled else max(self._live, found)
        return settled

    def _check_name(self, before: bytes | None) -> None:
        """Log it when another daemon writes under this node's name, but not this node's own past."""
        alone = before is None or before.decode() == self._boot or not self._written
        self._written = True
        now = self._clock.seconds()
        if alone or now < self._next_duplicate_log:
            return
        self._next_duplicate_log = now + _DUPLICATE_LOG_INTERVAL
        _log.error(
            "another daemon has the same node_id; each node of a fleet needs its own",
            event="nodes.duplicate_found",
            name=self.node_id,
        )

    async def _hear_resets(self, now: str) -> None:
        if self._heard_until is None:
            # What was reset before this node began it does not remember.
            self._heard_until = now
            return
        flat = await self.ask(
            "ZRANGEBYSCORE",
            self._key("resets"),
            f"({self._heard_until}",
            "+inf",
            "WITHSCORES",
            "LIMIT",
            0,
            1000,
        )
        # A new primary's clock may be behind the old one's.
        self._heard_until = flat[-1].decode() if flat else min(self._heard_until, now, key=int)
        for entry in flat[::2]:
            origin, _, what = entry.decode().partition(" ")
            limit, _, identity = what.partition(":")
            if not origin.startswith(f"{self._boot}/"):
                for callback in self._callbacks:
                    callback(limit, identity)

    # Keys and commands

    @property
    def _member(self) -> str:
        return f"{self.node_id}/{self._boot}"

    def _key(self, name: str) -> bytes:
        return f"{self._prefix}{name}".encode()

    def _node_key(self, node_id: str) -> bytes:
        return self._key(f"node:{{{node_id}}}" if self._valkey.clustered else f"node:{node_id}")

    def _own_keys(self) -> Sequence[bytes]:
        return self._node_key(self.node_id), self.past_key(self.node_id)

    def index_key(self) -> bytes:
        """The names of the nodes of the last week."""
        return self._key("nodes_past")

    def past_key(self, node_id: str) -> bytes:
        """What a node last said of itself; on Valkey Cluster beside what it says now."""
        return self._key(f"nodepast:{{{node_id}}}" if self._valkey.clustered else f"nodepast:{node_id}")

    async def register(self, key: bytes, milliseconds: int, member: str) -> Sequence[bytes]:
        """Write a member into a sorted set by time; returns all that are good now. StoreUnavailable."""
        reply = await self._valkey.run(REGISTER, [key], [milliseconds, member], deadline=_DEADLINE)
        members: Sequence[bytes] = reply[1:]
        return members

    async def _server_time(self, key: bytes) -> int:
        seconds, micros = await self._valkey.command("TIME", key=key, deadline=_DEADLINE)
        return int(seconds) * _MICROSECONDS + int(micros)

    async def ask(self, verb: str, key: bytes, *words: str | int) -> Any:
        """The answer to a command on one key. StoreUnavailable."""
        return await self._valkey.command(verb, key, *words, key=key, deadline=_DEADLINE)


def _before(now: int, seconds: float) -> int:
    return now - int(seconds * _MICROSECONDS)


def _names_of(members: Iterable[bytes]) -> list[str]:
    """The names of the nodes whose processes these are, in order."""
    return sorted({member.decode("utf-8", "replace").rpartition("/")[0] for member in members})


def _fields(about: About, state: NodeState) -> list[str]:
    refused = [[one.limit, one.identity, round(one.seconds, 3)] for one in state.refused[:MAX_PUBLISHED]]
    fields = {
        "version": about.version,
        "hostname": about.hostname,
        "address": about.address,
        "started_at": f"{about.started_at:.3f}",
        "sessions": str(state.sessions),
        "queue": str(state.queue),
        "mode": state.mode,
        "draining": "1" if state.draining else "",
        "limits_version": str(state.limits_version),
        "refused": json.dumps(refused),
    }
    return [word for pair in fields.items() for word in pair]


def _node(node_id: str, fields: Mapping[bytes, bytes], now: int, asked: str) -> NodeInfo:
    """What a hash says; whatever another version does not write is empty."""

    def text(name: str, default: str = "") -> str:
        return fields.get(name.encode(), default.encode()).decode("utf-8", "replace")

    age = max(0.0, (now - _number(text("seen"))) / _MICROSECONDS)
    about = About(text("version"), text("hostname"), text("address"), _number(text("started_at")))
    refused = tuple(_refused(text("refused", "[]"), age))
    state = NodeState(
        int(_number(text("sessions"))),
        int(_number(text("queue"))),
        text("mode"),
        refused,
        draining=bool(text("draining")),
        limits_version=int(_number(text("limits_version"))),
    )
    return NodeInfo(node_id, about, state, age, node_id == asked, left=bool(text("left")))


def _number(text: str) -> float:
    """0 for what no node of this version would write: one that is strange must not hide the others."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if isfinite(number) else 0.0


def _refused(text: str, age: float) -> Iterator[RememberedRefusal]:
    """The refusals that still hold; none where another version writes them in another way."""
    try:
        entries = [(str(limit), str(identity), float(wait)) for limit, identity, wait in json.loads(text)]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return
    for limit, identity, wait in entries:
        if wait > age:
            yield RememberedRefusal(limit, identity, wait - age)
