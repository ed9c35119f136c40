"""Listening sockets that several processes accept from; here they are several listeners of one."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any, cast

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IReactorCore
from twisted.internet.protocol import Factory, Protocol

from elemta.errors import ListenFailed
from elemta.net.listeners import Listener
from tests.support.waiting import until

REACTOR = cast(IReactorCore, reactor)


class Counting(Factory):
    """Counts its connections."""

    noisy = False

    def __init__(self) -> None:
        self.connections = 0

    def buildProtocol(self, addr: object) -> Protocol:
        self.connections += 1
        return Protocol()


async def connect(place: str) -> Any:
    return await clientFromString(cast(Any, reactor), place).connect(cast(Any, Counting()))


def listener(endpoint: str) -> tuple[Listener, Counting]:
    counting = Counting()
    return Listener("mx", endpoint, cast(Any, counting)), counting


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@ensureDeferred
async def test_the_end_of_one_leaves_the_socket_to_the_others(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    bound, at_owner = listener("tcp:0:interface=127.0.0.1" if kind == "tcp" else f"unix:{path}:mode=640")
    bound.bind(REACTOR)
    place = f"tcp:{bound.address}" if kind == "tcp" else f"unix:{path}"
    first, at_first = listener("first")
    second, at_second = listener("second")
    for each in (first, second):
        each.adopt([os.dup(descriptor) for descriptor in bound.descriptors], REACTOR)
        assert each.address == bound.address
    waiting = await connect(place)
    first.accept()
    await until(lambda: at_first.connections)
    await first.close()
    # What comes now waits for the other one.
    more = [await connect(place) for _ in range(3)]
    second.accept()
    await until(lambda: at_second.connections == 3)
    assert at_owner.connections == 0
    if kind == "unix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    for each in (waiting, *more):
        each.transport.abortConnection()
    await second.close()
    await bound.close()
    assert not path.exists()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@ensureDeferred
async def test_the_end_of_the_process_that_bound_it_shuts_the_socket_down_for_no_other(
    kind: str, tmp_path: Path
) -> None:
    bound, _ = listener("tcp:0:interface=127.0.0.1" if kind == "tcp" else f"unix:{tmp_path}/smtp.sock")
    bound.bind(REACTOR)
    with socket.socket(fileno=os.dup(bound.descriptors[0])) as inherited:
        await bound.close()
        inherited.setblocking(False)
        with pytest.raises(BlockingIOError):
            inherited.accept()


def test_what_is_no_socket_is_refused(tmp_path: Path) -> None:
    adopting, _ = listener("mx")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(ListenFailed, match="descriptor"):
        adopting.adopt([descriptor], REACTOR)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(descriptor)
