"""A server that is there and can't be used: loading, a replica, full, busy, without space, or no Valkey."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import Factory, Protocol

from elemta.valkey import Script, ValkeyError, ValkeyFailure
from elemta.valkey.calls import ValkeyCall
from elemta.valkey.client import IN_FLIGHT, Valkey
from tests.support.valkey import ValkeyServer
from tests.support.waiting import eventually, failure_of, pause, until

WRITE = Script("write", "return redis.call('SET', KEYS[1], ARGV[1])")


async def kind_of(call: Any) -> ValkeyFailure:
    error = await failure_of(call)
    assert isinstance(error, ValkeyError), error
    return error.kind


async def until_trouble(valkey: Valkey, kind: ValkeyFailure) -> None:
    async def so() -> bool:
        try:
            await valkey.run(WRITE, [b"k"], [b"v"])
        except ValkeyError as trouble:
            return trouble.kind is kind
        return False

    await eventually(so)


@ensureDeferred
async def test_a_server_that_was_made_a_replica_is_not_used_until_it_is_primary_again(
    server: ValkeyServer, connect: Any
) -> None:
    with ValkeyServer() as other:
        valkey = await connect(server.url)
        server.command("REPLICAOF", "127.0.0.1", other.port)
        await until_trouble(valkey, ValkeyFailure.READONLY)
        await until(lambda: not valkey.up)
        # It says that it is a replica before anything is asked of it.
        assert await kind_of(valkey.command("PING")) in (ValkeyFailure.READONLY, ValkeyFailure.DISCONNECTED)
        server.command("REPLICAOF", "NO", "ONE")
        await until(lambda: valkey.up)
        assert await valkey.run(WRITE, [b"k"], [b"v"]) == b"OK"


@ensureDeferred
async def test_a_server_that_loads_its_data_is_used_when_it_has_them(connect: Any) -> None:
    with ValkeyServer(
        enable_debug_command="yes", key_load_delay=300, loading_process_events_interval_bytes=1024
    ) as server:
        valkey = await connect(server.url)
        for n in range(2000):
            server.command("SET", f"key{n}", "x" * 100)
        server.command("SAVE")
        reloading = server.talk()
        reloading.send("DEBUG", "RELOAD", "NOSAVE")
        try:
            await until_trouble(valkey, ValkeyFailure.LOADING)
            await until(lambda: not valkey.up)
        finally:
            reloading.close()
        await until(lambda: valkey.up)
        assert await valkey.run(WRITE, [b"k"], [b"v"]) == b"OK"


@ensureDeferred
async def test_a_full_memory_is_told_apart_and_ends_by_itself(connect: Any) -> None:
    with ValkeyServer(maxmemory="4mb") as server:
        valkey = await connect(server.url)
        server.command("CONFIG", "SET", "maxmemory", "1mb")
        assert await kind_of(valkey.run(WRITE, [b"k"], [b"v"])) is ValkeyFailure.OOM
        assert valkey.up
        assert await valkey.command("GET", "k") is None
        server.command("CONFIG", "SET", "maxmemory", "64mb")
        assert await valkey.run(WRITE, [b"k"], [b"v"]) == b"OK"


@ensureDeferred
async def test_a_foreign_script_that_does_not_end_is_told_apart(connect: Any) -> None:
    with ValkeyServer(busy_reply_threshold=20) as server:
        valkey = await connect(server.url)
        spinning = server.talk()
        spinning.send("EVAL", "while true do end", 0)
        try:
            await until_trouble(valkey, ValkeyFailure.BUSY)
            server.command("SCRIPT", "KILL")
        finally:
            spinning.close()

        async def used() -> bool:
            try:
                return bool(await valkey.run(WRITE, [b"k"], [b"v"]) == b"OK")
            except ValkeyError:  # the script ends some time after the kill is answered
                return False

        await eventually(used)


@ensureDeferred
async def test_too_few_replicas_are_told_apart(connect: Any) -> None:
    with ValkeyServer(min_replicas_to_write=1) as server:
        valkey = await connect(server.url)
        assert await kind_of(valkey.run(WRITE, [b"k"], [b"v"])) is ValkeyFailure.NOREPLICAS


@ensureDeferred
async def test_a_server_that_takes_no_more_clients_is_used_when_there_is_room(connect: Any) -> None:
    with ValkeyServer(maxclients=2) as server:
        guests = [server.talk(), server.talk()]
        valkey = await connect(server.url, up=False)
        await until_trouble(valkey, ValkeyFailure.OVERLOADED)
        for guest in guests:
            guest.close()
        await until(lambda: valkey.up)


@ensureDeferred
async def test_a_port_that_takes_connections_and_says_nothing_is_given_up_again_and_again(
    connect: Any,
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        valkey = await connect(f"valkey://127.0.0.1:{silent.getsockname()[1]}", up=False)

        async def said() -> bool:
            return "no answer in time" in str(await failure_of(valkey.command("PING")))

        await eventually(said)
        assert not valkey.up


class Babbler(Protocol):
    """Says what no client asked for."""

    words = b""

    def connectionMade(self) -> None:
        self.transport.write(self.words)

    def dataReceived(self, data: bytes) -> None:
        pass


@pytest.fixture
def babbler() -> Iterator[Any]:
    ports: list[Any] = []

    def listen(words: bytes) -> int:
        factory = Factory.forProtocol(type("Saying", (Babbler,), {"words": words}))
        factory.noisy = False
        ports.append(reactor.listenTCP(0, factory, interface="127.0.0.1"))
        return int(ports[-1].getHost().port)

    yield listen
    for port in ports:
        port.stopListening()


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"220 mx.example.test ESMTP\r\n",
        b"*99999999999999999999\r\n",
        b"+OK\r\n+PONG\r\n+OK\r\n+OK\r\n+OK\r\n",
        b"-ERR max number of clients reached\r\n",
        b"\x00\xff\x16\x03\x01",
    ],
)
@ensureDeferred
async def test_what_is_no_valkey_is_never_up(words: bytes, connect: Any, babbler: Any) -> None:
    valkey = await connect(f"valkey://127.0.0.1:{babbler(words)}", up=False)
    changes: list[bool] = []
    valkey.on_change(changes.append)

    async def said() -> bool:
        return "no connection to" in str(await failure_of(valkey.command("PING")))

    await eventually(said)
    assert changes == []


@ensureDeferred
async def test_nothing_grows_while_the_server_hangs_or_is_away(server: ValkeyServer, connect: Any) -> None:
    valkey = await connect(server.url)
    server.pause()
    kinds = {await kind_of(valkey.command("PING", deadline=0.001)) for _ in range(10)}
    assert kinds == {ValkeyFailure.DEADLINE}
    many = [kind_of(valkey.command("PING", deadline=0.001)) for _ in range(3 * IN_FLIGHT)]
    found = await gatherResults([Deferred.fromCoroutine(each) for each in many])
    assert found.count(ValkeyFailure.OVERLOADED) >= 2 * IN_FLIGHT
    server.kill()
    await until(lambda: not valkey.up)
    for _ in range(5000):
        await failure_of(valkey.command("PING", deadline=0.001))
    await pause(0.05)
    gc.collect()
    assert not [
        each for each in gc.get_objects() if isinstance(each, ValkeyCall) and each.deferred is not None
    ]
    assert len([each for each in gc.get_objects() if isinstance(each, ValkeyCall)]) < 10
