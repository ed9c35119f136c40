"""Listening sockets that several processes accept from, bound by one of them and inherited by the others.

A connection that waits in such a socket's queue goes to any process that accepts from it, so the death of one
loses none. No process may shut the socket down, or remove its path: it is the others', too.
"""

from __future__ import annotations

import os
import socket
from typing import Any, cast

from twisted.internet import tcp, unix
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorCore, IReactorSocket

from elemta.errors import ListenFailed


def shared_descriptor(port: IListeningPort, endpoint: str) -> int:
    """The descriptor of a listening socket for other processes; this one never shuts it down from now on.

    Raises ListenFailed where it has none that another process could inherit.
    """
    fileno = getattr(port, "fileno", None)
    if fileno is None:
        raise ListenFailed(f"{endpoint} is no socket that workers could accept from: set workers = 1")
    # At a stop workers accept until they hear of it: after a shutdown their accept() fails with EINVAL.
    cast(Any, port)._shouldShutdown = False
    return int(fileno())


def listen_at(descriptor: int, factory: IProtocolFactory, reactor: IReactorCore) -> IListeningPort:
    """Listen at an inherited socket, which is not read from yet. The descriptor is closed: it is copied.

    Raises OSError where it is no socket.
    """
    try:
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            family = sock.family
        os.set_inheritable(descriptor, False)
        os.set_blocking(descriptor, False)
        port: Any
        if family == socket.AF_UNIX:
            port = SharedUnixPort(socket.socket(fileno=os.dup(descriptor)), factory, reactor)
            port.startListening()
        else:
            port = IReactorSocket(reactor).adoptStreamPort(descriptor, family, cast(Any, factory))
    finally:
        os.close(descriptor)
    # Twisted begins with a hundred: one process would take what all are here for.
    port.numberAccepts = 1
    port.stopReading()
    return cast(IListeningPort, port)


class SharedUnixPort(unix.Port):
    """A Unix socket that was bound elsewhere: Twisted's own would set its mode, and in the end remove it."""

    _shouldShutdown = False

    def __init__(self, sock: socket.socket, factory: IProtocolFactory, reactor: IReactorCore) -> None:
        super().__init__(os.fsencode(sock.getsockname()), factory, reactor=reactor)
        self._shared = sock

    def startListening(self) -> None:
        """Accept from the socket, which listens already."""
        accepting: Any = self
        accepting.factory.doStart()
        accepting.socket = self._shared
        accepting.fileno = self._shared.fileno
        accepting.connected = True
        accepting.numberAccepts = 1
        accepting.startReading()

    def connectionLost(self, reason: Any) -> None:
        """Close it here, and leave it to the others."""
        tcp.Port.connectionLost(self, reason)
