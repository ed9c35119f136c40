"""Valkey servers that belong together: a primary that Sentinels watch, and a Cluster of six."""

from __future__ import annotations

import time
from binascii import crc_hqx
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from tests.support.valkey import ServerError, ValkeyServer, eventually, valkey_server

SLOTS = 16384


def slot_of(key: str) -> int:
    """The slot of a key, by its hash tag where it has one."""
    _, opened, rest = key.partition("{")
    tag, closed, _ = rest.partition("}")
    return crc_hqx((tag if opened and closed and tag else key).encode(), 0) % SLOTS


def ask(server: ValkeyServer, *words: Any) -> Any:
    """The reply of a server that may have hung up since, as one does whose role changes."""
    try:
        return server.command(*words)
    except OSError:
        return server.command(*words)


def _fields(reply: list[bytes]) -> dict[bytes, bytes]:
    """What a Sentinel says of a server."""
    return dict(zip(reply[::2], reply[1::2], strict=True))


class _Group:
    """Servers that start and stop together."""

    def __init__(self) -> None:
        self.servers: list[ValkeyServer] = []

    def start(self) -> Self:
        raise NotImplementedError

    def stop(self) -> None:
        for server in reversed(self.servers):
            server.stop()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Replicated(_Group):
    """A primary, its replica, and three Sentinels that call it dead after ``down_after`` milliseconds."""

    name = "limits"

    def __init__(self, down_after: int = 1000) -> None:
        super().__init__()
        self.primary = ValkeyServer(repl_ping_replica_period=1)
        self.replica = ValkeyServer(repl_ping_replica_period=1, replicaof=f"127.0.0.1 {self.primary.port}")
        watched: dict[str, Any] = {
            f"sentinel monitor {self.name}": f"127.0.0.1 {self.primary.port} 2",
            f"sentinel down-after-milliseconds {self.name}": down_after,
            f"sentinel failover-timeout {self.name}": 10_000,
        }
        self.sentinels = [ValkeyServer("--sentinel", **watched) for _ in range(3)]
        self.servers = [self.primary, self.replica, *self.sentinels]

    @property
    def url(self) -> str:
        hosts = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"valkey+sentinel://{hosts}/{self.name}/0"

    def start(self) -> Self:
        for server in self.servers:
            server.start()
        eventually(self._complete, "three Sentinels that know each other and a replica in step")
        return self

    def primary_by_sentinels(self) -> int:
        """The port of the primary that most Sentinels name."""
        named = []
        for sentinel in self.sentinels:
            reply = ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
            named.append(int(reply[1]) if reply else 0)
        return max(named, key=named.count)

    def change_places(self) -> None:
        """After a promotion: what was the primary begins again as the replica of the one that is it now."""
        self.primary, self.replica = self.replica, self.primary
        self.replica.restart_as_replica_of(self.primary)
        eventually(self._complete, "three Sentinels that know the new primary and a replica in step")

    def _complete(self) -> bool:
        if ask(self.replica, "ROLE")[3] != b"connected":
            return False
        for sentinel in self.sentinels:
            known = _fields(ask(sentinel, "SENTINEL", "MASTER", self.name))
            if known[b"num-other-sentinels"] != b"2" or known[b"num-slaves"] != b"1":
                return False
            replicas = [_fields(each) for each in ask(sentinel, "SENTINEL", "REPLICAS", self.name)]
            if [one[b"flags"] for one in replicas] != [b"slave"]:
                return False
        return True


class Cluster(_Group):
    """Three primaries with a replica each; servers[3 + n] is at first the replica of servers[n]."""

    def __init__(self, node_timeout: int = 1000) -> None:
        super().__init__()
        for _ in range(6):
            self.servers.append(
                ValkeyServer(
                    cluster_enabled="yes",
                    cluster_node_timeout=node_timeout,
                    cluster_replica_validity_factor=0,
                    repl_ping_replica_period=1,
                )
            )

    @property
    def url(self) -> str:
        return f"valkey+cluster://{','.join(server.address for server in self.servers[:3])}"

    def start(self) -> Self:
        for server in self.servers:
            server.start()
        first = self.servers[0]
        bounds = [0, SLOTS // 3, 2 * SLOTS // 3, SLOTS]
        for number, server in enumerate(self.servers):
            ask(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < 3:
                ask(server, "CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            if number:
                ask(server, "CLUSTER", "MEET", "127.0.0.1", first.port, first.cluster_port)
        eventually(lambda: all(self._known(server) == 6 for server in self.servers), "six nodes that met")
        for primary, replica in zip(self.servers[:3], self.servers[3:], strict=True):
            eventually(lambda: self._follow(replica, primary), "a replica")  # noqa: B023  # called at once
        eventually(self._complete, "a cluster with all slots and replicas in step")
        return self

    def command(self, key: str, *words: Any) -> Any:
        """Ask the server that has the key now; the key is not among the words by itself."""
        server = self.owner(slot_of(key))
        for _ in range(5):
            try:
                return ask(server, *words)
            except ServerError as error:
                kind, _, where = str(error).partition(" ")
                if kind not in ("MOVED", "ASK"):
                    raise
                server = self.at(int(where.rpartition(":")[2]))
                if kind == "ASK":
                    ask(server, "ASKING")
        raise ServerError("too many redirections")

    def at(self, port: int) -> ValkeyServer:
        return next(server for server in self.servers if server.port == port)

    def owner(self, slot: int) -> ValkeyServer:
        """The primary of a slot, by the first server that is there."""
        for server in self.alive():
            for first, last, primary, *_ in ask(server, "CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    return self.at(int(primary[1]))
        raise ServerError(f"nobody serves slot {slot}")

    def alive(self) -> Iterator[ValkeyServer]:
        for server in self.servers:
            if server.running and not server.paused:
                yield server

    def is_primary(self, server: ValkeyServer) -> bool:
        return bool(ask(server, "ROLE")[0] == b"master")

    def primaries(self) -> list[ValkeyServer]:
        return [server for server in self.alive() if self.is_primary(server)]

    def move_with_ask(self, slot: int, target: ValkeyServer, *, pause: float = 0.0) -> None:
        """Move a slot the long way, with a pause after each step.

        Clients get TRYAGAIN, a missing key, ASK, or MOVED, as the case may be.
        """
        source = self.owner(slot)
        names = {server: ask(server, "CLUSTER", "MYID") for server in (source, target)}
        ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
        ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
        time.sleep(pause)
        while keys := ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 1000):
            ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "REPLACE", "KEYS", *keys)
        time.sleep(pause)
        for server in (target, source, *self.primaries()):
            ask(server, "CLUSTER", "SETSLOT", slot, "NODE", names[target])

    def move(self, slot: int, target: ValkeyServer) -> None:
        """Move a slot the way that Valkey 9 has: at one moment, with all that is in it."""
        source = self.owner(slot)
        name = ask(target, "CLUSTER", "MYID")
        ask(source, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", name)
        eventually(lambda: self.owner(slot) is target, f"slot {slot} at {target.address}")

    def _known(self, server: ValkeyServer) -> int:
        return len(ask(server, "CLUSTER", "NODES").splitlines())

    def _follow(self, replica: ValkeyServer, primary: ValkeyServer) -> bool:
        try:
            return bool(ask(replica, "CLUSTER", "REPLICATE", ask(primary, "CLUSTER", "MYID")) == b"OK")
        except ServerError:  # it has not heard of it yet
            return False

    def _complete(self) -> bool:
        for server in self.servers:
            state = ask(server, "CLUSTER", "INFO").decode()
            if "cluster_state:ok" not in state or "cluster_slots_ok:16384" not in state:
                return False
        roles = [ask(server, "ROLE") for server in self.servers]
        return all(len(role[2]) == 1 for role in roles[:3]) and all(
            role[3] == b"connected" for role in roles[3:]
        )


@contextmanager
def kind_of_valkey(kind: str) -> Iterator[tuple[str, list[ValkeyServer]]]:
    """The URL of a set-up ("single", "sentinel" or "cluster"), and the servers that have its keys.

    No other server takes the place of one that stands still.
    """
    if kind == "single":
        with valkey_server() as server:
            yield server.url, [server]
    elif kind == "sentinel":
        with Replicated(down_after=600_000) as group:
            yield group.url, [group.primary]
    else:
        with Cluster(node_timeout=600_000) as group:
            yield group.url, group.servers[:3]
