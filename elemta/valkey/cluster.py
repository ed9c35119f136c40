"""A cluster: the map of its slots, and the connections to its primaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elemta.config.valkey_url import ValkeyURL
from elemta.errors import ValkeyError, ValkeyFailure
from elemta.valkey.address import ServerAddress
from elemta.valkey.pool import ConnectionOptions, ServerPool
from elemta.valkey.resp import SLOTS, Move, SlotRange, pack, slot_of, slot_ranges
from elemta.valkey.topology import Topology

if TYPE_CHECKING:
    from elemta.valkey.connection import Connection

_log = Logger()

_LOOK_SECONDS = 0.25
_STEADY_SECONDS = 5.0
_SPARE_SECONDS = 10.0
_HASTE_SECONDS = 0.1
_MAP_SECONDS = 0.5
_MAP = pack(["CLUSTER", "SLOTS"])


class Cluster(Topology):
    """Knows the primary of every slot, and asks for the map again whenever something does not fit it.

    It is asked for every few seconds, four times a second while a primary is away, and as soon as a node
    sends us elsewhere. Nodes that are in no map get no connections after a while, so that those to nodes that
    were only heard of in a redirection live as long as they are needed.
    """

    clustered = True

    def __init__(self, url: ValkeyURL, dialling: ConnectionOptions, review: Callable[[], None]) -> None:
        super().__init__(dialling, review)
        self._seeds = tuple(ServerAddress(*host) for host in url.hosts)
        self._pools: dict[ServerAddress, ServerPool] = {}
        self._slots: list[ServerPool | None] = [None] * SLOTS
        self._primaries: tuple[ServerPool, ...] = ()
        self._complete = False
        self._needed_at: dict[ServerAddress, float] = {}
        self._asked: _MapReply | None = None
        self._asked_at = 0.0
        self._turn = 0
        self._stale = True
        self._refusal: ValkeyError | None = None
        self._leaving: list[Deferred[None]] = []
        self._looking = LoopingCall(self._look)
        self._looking.clock = dialling.reactor

    @property
    def up(self) -> bool:
        return self._complete and all(pool.connection is not None for pool in self._primaries)

    @property
    def primaries(self) -> Sequence[ServerPool]:
        return self._primaries

    @property
    def trouble(self) -> ValkeyError:
        for pool in self._primaries or self._pools.values():
            if pool.connection is None:
                return pool.trouble
        if self._refusal is not None:
            return ValkeyError(self._refusal.kind, f"no map of the cluster: {self._refusal}")
        return ValkeyError(ValkeyFailure.REDIRECTED, "no node of the cluster has the slot")

    def connection(self, key: bytes | None) -> Connection | None:
        if key is None:
            return next((pool.connection for pool in self._primaries if pool.connection is not None), None)
        pool = self._slots[slot_of(key)]
        return None if pool is None else pool.connection

    def start(self) -> None:
        self._looking.start(_LOOK_SECONDS)

    def stop(self) -> Iterable[Deferred[None]]:
        if self._looking.running:
            self._looking.stop()
        for address in tuple(self._pools):
            self._drop(address)
        self._slots = [None] * SLOTS
        self._primaries = ()
        self._complete = False
        return self._leaving

    def watch(self) -> None:
        for pool in tuple(self._pools.values()):
            pool.watch()

    def distrust(self, connection: Connection, words: str) -> None:
        super().distrust(connection, words)
        self.doubt()

    def doubt(self) -> None:
        self._stale = True
        if self._dialling.reactor.seconds() - self._asked_at > _HASTE_SECONDS:
            self._ask()

    def redirected(self, move: Move, said_by: Connection, *, for_good: bool) -> Connection | None:
        if not self._looking.running:
            return None
        address = ServerAddress(move.host if move.host not in ("", "?") else said_by.address.host, move.port)
        pool = self._pool(address)
        self._needed_at[address] = self._dialling.reactor.seconds()
        if for_good:
            self._slots[move.slot] = pool
            self.doubt()
        return pool.connection

    # The map.

    def _look(self) -> None:
        """Four times a second: ask for the map when it is time to."""
        age = self._dialling.reactor.seconds() - self._asked_at
        if self._stale or not self.up or age >= _STEADY_SECONDS:
            if not any(pool.connection is not None for pool in self._pools.values()):
                # Perhaps they all have new addresses, so begin at the beginning.
                for seed in self._seeds:
                    self._pool(seed)
            self._ask()

    def _ask(self) -> None:
        now = self._dialling.reactor.seconds()
        busy = self._asked is not None and now - self._asked_at < _MAP_SECONDS
        if busy or not self._looking.running:
            return
        # Another one each time: what one node believes may be old.
        ready = [pool for pool in self._pools.values() if pool.connection is not None]
        if not ready:
            return
        self._turn += 1
        pool = ready[self._turn % len(ready)]
        self._asked, self._asked_at = _MapReply(self, pool.address.host), now
        self._stale = False
        assert pool.connection is not None  # noqa: S101  # it is ready
        pool.connection.send(_MAP, self._asked)

    def answered(self, answer: _MapReply, reply: Any) -> None:
        """What a node says about the slots."""
        if answer is not self._asked or not self._looking.running:
            return  # too late: another was asked since
        self._asked = None
        if isinstance(reply, Exception):
            self._stale = True
            self._refused(reply)
            return
        try:
            ranges = slot_ranges(reply, answer.host)
        except ValueError:
            self._stale = True
            return
        if ranges:
            self._learn(ranges)

    def _refused(self, error: Exception) -> None:
        """A node gave no map."""
        connection = next((pool.connection for pool in self._pools.values() if pool.connection), None)
        if connection is not None and not connection.is_lost(error):
            self._refusal = connection.trouble(error)

    def _learn(self, ranges: Iterable[SlotRange]) -> None:
        slots: list[ServerPool | None] = [None] * SLOTS
        pools: dict[ServerAddress, ServerPool] = {}
        for each in ranges:
            address = ServerAddress(each.host, each.port)
            pools[address] = pool = self._pool(address)
            slots[each.first : each.last + 1] = [pool] * (each.last + 1 - each.first)
        before = {pool.address for pool in self._primaries}
        self._slots = slots
        self._refusal = None
        self._primaries = tuple(pools.values())
        self._complete = None not in slots
        if pools.keys() != before:
            names = [str(address) for address in pools]
            _log.info("the primaries of the cluster", event="valkey.primaries_found", addresses=names)
        self._drop_others(pools)
        self._review()

    # Pools.

    def _pool(self, address: ServerAddress) -> ServerPool:
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = ServerPool(address, self._dialling, self._pool_changed)
            self._needed_at[address] = self._dialling.reactor.seconds()
            pool.start()
        return pool

    def _pool_changed(self, pool: ServerPool) -> None:
        # When one comes, the map is needed first; when one goes, its successor.
        if pool in self._primaries and pool.connection is None:
            self.doubt()
        elif not self._complete:
            self._ask()
        self._review()

    def _drop_others(self, primaries: Iterable[ServerAddress]) -> None:
        now = self._dialling.reactor.seconds()
        spare = self._pools.keys() - set(primaries)
        for address in [each for each in self._pools if each in spare]:
            if now - self._needed_at[address] > _SPARE_SECONDS and self.up:
                self._drop(address)

    def _drop(self, address: ServerAddress) -> None:
        self._leaving = [over for over in self._leaving if not over.called]
        self._leaving.extend(self._pools.pop(address).stop())
        self._needed_at.pop(address, None)


class _MapReply:
    """Waits for a node's map."""

    __slots__ = ("_asker", "host")

    def __init__(self, asker: Cluster, host: str) -> None:
        self._asker, self.host = asker, host

    def replied(self, reply: Any) -> None:
        self._asker.answered(self, reply)
