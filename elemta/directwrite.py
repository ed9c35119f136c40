"""Commands and replies that go to the socket at once, where Twisted would wait for the reactor's next turn.

``transport.write`` keeps what it is given, asks the reactor to watch for space in the socket, sends in the
next turn, and has the reactor stop watching: two system calls and a turn of the reactor for a reply that
nearly always fits. In SMTP without pipelining every command pays that.
"""

from __future__ import annotations

from typing import cast

from twisted.internet import tcp, unix
from twisted.internet.interfaces import ITransport

_PLAIN = (tcp.Server, tcp.Client, unix.Server, unix.Client)
# So many pieces of data may wait in the transport before they are joined.
_MOST_PIECES = 16


def write_at_once(transport: ITransport, data: bytes) -> None:
    """Write like ``transport.write``, but send now what the socket takes now.

    Only on a plain connection, TCP or Unix, with nothing waiting to be sent: over TLS, behind data that
    waits, and while the connection closes, this is ``transport.write``. So is it for the rest of what the
    socket does not take, which keeps the order and tells producers as ever. A lost connection is found by the
    reactor afterwards, never in here.
    """
    if type(transport) not in _PLAIN:
        transport.write(data)
        return
    connection: tcp.Connection = transport  # type: ignore[assignment]  # a cast is a call
    # Nothing waits to be sent, and the connection is open and has no TLS. `_tempDataBuffer` is not public,
    # and as old as Twisted: it is what `write` was given since the last time the reactor sent something.
    if (
        connection.connected
        and not connection.TLS
        and not connection.dataBuffer
        and not connection._tempDataBuffer
        and not connection.disconnecting
    ):
        try:
            sent = connection.socket.send(data)
        except OSError:
            # The socket is full, or the connection is lost.
            sent = 0
        if sent == len(data):
            return
        data = data[sent:]
    connection.write(data)
    _join_waiting(connection)


def _join_waiting(connection: tcp.Connection) -> None:
    """Join what waits in pieces for a client that does not read.

    A reply of 14 octets that is an object of its own takes 60. Beneath TLS these are its records.
    """
    if len(connection._tempDataBuffer) > _MOST_PIECES:
        connection._tempDataBuffer = [b"".join(connection._tempDataBuffer)]


def unsent_memory(transport: ITransport) -> int:
    """The octets of memory that data in the transport take that the socket did not take yet."""
    if type(transport) not in _PLAIN:
        return 0
    connection = cast(tcp.Connection, transport)
    pieces = connection._tempDataBuffer
    return connection.dataBuffer.__sizeof__() + sum(piece.__sizeof__() + 8 for piece in pieces)
