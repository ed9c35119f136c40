"""One server: commands, scripts, deadlines, and every way in which the server goes away and comes back."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import gatherResults

from elemta.errors import StoreUnavailable
from elemta.valkey import Script, ValkeyError, ValkeyFailure
from elemta.valkey.client import IN_FLIGHT, Valkey
from tests.support.valkey import ValkeyServer
from tests.support.waiting import failure_of, pause, until

ECHO = Script("echo", "return {KEYS[1], ARGV[1], 7, false}")
COUNT = Script("count", "return server.call('INCRBY', KEYS[1], ARGV[1])")


async def kind_of(call: Any) -> ValkeyFailure:
    error = await failure_of(call)
    assert isinstance(error, ValkeyError), error
    assert isinstance(error, StoreUnavailable)
    return error.kind


@ensureDeferred
async def test_replies_are_bytes_and_numbers_as_the_server_sent_them(
    server: ValkeyServer, connect: Any
) -> None:
    valkey = await connect(server.url)
    assert not valkey.clustered
    assert await valkey.command("SET", b"k\xff\r\n", "1_000 ü") == b"OK"
    assert await valkey.command("GET", b"k\xff\r\n") == "1_000 ü".encode()
    assert await valkey.command("INCRBY", "n", 12) == 12
    assert await valkey.command("GET", "n") == b"12"
    assert await valkey.command("GET", "nothing") is None
    assert await valkey.run(ECHO, [b"007"], [b"1\n"]) == [b"007", b"1\n", 7, None]


@ensureDeferred
async def test_replies_of_pipelined_commands_come_in_order_whatever_their_size(
    server: ValkeyServer, connect: Any
) -> None:
    valkey = await connect(server.url)
    sent = [b"%d" % n * (1 + (n * 7919) % 3000) for n in range(900)]
    assert await gatherResults([valkey.command("ECHO", each) for each in sent]) == sent


@ensureDeferred
async def test_an_error_reply_fails_one_command_and_not_its_neighbours(
    server: ValkeyServer, connect: Any
) -> None:
    valkey = await connect(server.url)
    calls = [valkey.command("PING"), valkey.command("INCRBY", "k", "x"), valkey.command("PING")]
    assert await calls[0] == await calls[2] == b"PONG"
    assert await kind_of(calls[1]) is ValkeyFailure.OTHER


@ensureDeferred
async def test_a_script_is_loaded_when_the_server_does_not_know_it(
    server: ValkeyServer, connect: Any
) -> None:
    valkey = await connect(server.url)
    assert await gatherResults([valkey.run(COUNT, [b"n"], [1]) for _ in range(50)]) == list(range(1, 51))
    assert server.calls("script|load") == 1
    server.command("SCRIPT", "FLUSH")
    assert await gatherResults([valkey.run(COUNT, [b"n"], [1]) for _ in range(50)]) == list(range(51, 101))


@ensureDeferred
async def test_a_new_connection_brings_its_scripts_along(server: ValkeyServer, connect: Any) -> None:
    valkey = await connect(server.url)
    await valkey.run(COUNT, [b"n"], [1])
    changes: list[bool] = []
    valkey.on_change(changes.append)
    server.restart_empty()
    await until(lambda: changes[:2] == [False, True])
    assert await valkey.run(COUNT, [b"n"], [1]) == 1
    assert server.calls("evalsha") == 1


@ensureDeferred
async def test_a_command_has_a_deadline_and_what_follows_is_not_out_of_step(
    server: ValkeyServer, connect: Any
) -> None:
    valkey = await connect(server.url)
    server.pause()
    late = valkey.command("ECHO", "late", deadline=0.05)
    error = await failure_of(late)
    assert isinstance(error, ValkeyError)
    assert error.kind is ValkeyFailure.DEADLINE
    assert error.maybe_done
    patient = valkey.command("ECHO", "patient")
    server.resume()
    assert await patient == b"patient"
    assert await valkey.command("ECHO", "next") == b"next"


@ensureDeferred
async def test_too_much_under_way_fails_at_once(server: ValkeyServer, connect: Any) -> None:
    valkey = await connect(server.url)
    server.pause()
    # The connection's own sign of life may be one of those under way.
    calls = [valkey.command("PING") for _ in range(IN_FLIGHT - 1)]
    last, refused = valkey.command("PING"), valkey.command("PING")
    last.addErrback(lambda failure: failure.trap(ValkeyError))
    assert await kind_of(refused) is ValkeyFailure.OVERLOADED
    server.resume()
    assert await gatherResults(calls) == [b"PONG"] * (IN_FLIGHT - 1)


@ensureDeferred
async def test_a_server_that_hangs_is_noticed_and_used_again_when_it_goes_on(
    server: ValkeyServer, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elemta.valkey.connection._SILENT_SECONDS", 1)
    valkey = await connect(server.url)
    changes: list[bool] = []
    valkey.on_change(changes.append)
    server.pause()
    call = valkey.command("PING", deadline=30)
    assert await kind_of(call) is ValkeyFailure.DISCONNECTED  # the watchdog hung up
    await until(lambda: not valkey.up)
    assert await kind_of(valkey.command("PING")) is ValkeyFailure.DISCONNECTED
    server.resume()
    await until(lambda: valkey.up)
    assert await valkey.command("PING") == b"PONG"
    assert changes == [False, True]


@ensureDeferred
async def test_without_a_server_commands_fail_at_once_and_leave_nothing_behind(connect: Any) -> None:
    server = ValkeyServer()
    try:
        valkey: Valkey = await connect(server.url, up=False)
        for _ in range(1000):
            assert await kind_of(valkey.command("PING")) is ValkeyFailure.DISCONNECTED
        assert not valkey.up
        server.start()
        await until(lambda: valkey.up)
        assert await valkey.command("PING") == b"PONG"
        assert server.calls("ping") < 10  # nothing was kept and replayed
    finally:
        server.stop()


@ensureDeferred
async def test_what_is_under_way_when_the_server_dies_may_have_been_done(
    server: ValkeyServer, connect: Any
) -> None:
    valkey = await connect(server.url)
    server.pause()
    call = valkey.command("PING")
    server.kill()
    error = await failure_of(call)
    assert isinstance(error, ValkeyError)
    assert (error.kind, error.maybe_done) == (ValkeyFailure.DISCONNECTED, True)
    await until(lambda: not valkey.up)
    error = await failure_of(valkey.command("PING"))
    assert isinstance(error, ValkeyError)
    assert (error.kind, error.maybe_done) == (ValkeyFailure.DISCONNECTED, False)


@ensureDeferred
async def test_one_broken_connection_leaves_the_other_to_be_used(server: ValkeyServer, connect: Any) -> None:
    valkey = await connect(server.url)

    def clients() -> list[bytes]:
        lines = server.command("CLIENT", "LIST").splitlines()
        return [line for line in lines if b"name=test" in line]

    await until(lambda: len(clients()) == 2)
    used = await valkey.command("CLIENT", "ID")
    server.command("CLIENT", "KILL", "ID", used)
    await until(lambda: valkey.up and len(clients()) == 2)
    assert await valkey.command("CLIENT", "ID") != used
    assert valkey.up


@ensureDeferred
async def test_a_listener_that_fails_does_not_keep_the_others_from_hearing(
    server: ValkeyServer, connect: Any
) -> None:
    valkey = await connect(server.url)
    changes: list[bool] = []
    valkey.on_change(lambda up: changes[99])
    valkey.on_change(changes.append)
    server.restart_empty()
    await until(lambda: changes == [False, True])
    assert await valkey.command("PING") == b"PONG"


def test_nothing_installs_the_reactor_before_a_connection_is_opened() -> None:
    code = "import sys, elemta.valkey; sys.exit('twisted.internet.reactor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@ensureDeferred
async def test_stopping_lets_what_is_under_way_finish(server: ValkeyServer, connect: Any) -> None:
    valkey = await connect(server.url)
    calls = [valkey.command("ECHO", n) for n in range(20)]
    over = valkey.stop()
    assert await kind_of(valkey.command("PING")) is ValkeyFailure.DISCONNECTED
    await over
    assert await gatherResults(calls) == [b"%d" % n for n in range(20)]


@ensureDeferred
async def test_stopping_does_not_wait_for_a_server_that_hangs(server: ValkeyServer, connect: Any) -> None:
    valkey = await connect(server.url)
    server.pause()
    call = valkey.command("PING")
    await valkey.stop()
    assert await kind_of(call) is ValkeyFailure.DISCONNECTED
    await pause(0)
