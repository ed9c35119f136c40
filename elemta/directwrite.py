"""Commands and replies that go to the socket at once, where Twisted would wait for the reactor's next turn.

``transport.write`` keeps what it is given, asks the reactor to watch for room in the socket, sends in the
next turn, and has the reactor stop watching: two system calls and a turn of the reactor for a reply that
nearly always fits. In SMTP without pipelining every command pays that.
"""

from __future__ import annotations

from typing import cast

from twisted.internet import tcp
from twisted.internet.interfaces import ITransport


def write_at_once(transport: ITransport, data: bytes) -> None:
    """Write like ``transport.write``, but send now what the socket takes now.

    Only on a plain TCP connection with nothing waiting to be sent: over TLS, behind data that waits, and
    while the connection closes, this is ``transport.write``. So is it for the rest of what the socket
    does not take, which keeps the order and tells producers as ever. A lost connection is found by the
    reactor afterwards, never in here.
    """
    if type(transport) in (tcp.Server, tcp.Client) and _has_nothing_to_send(cast(tcp.Connection, transport)):
        sent = cast(tcp.Connection, transport).writeSomeData(data)
        if isinstance(sent, int) and sent > 0:
            if sent == len(data):
                return
            data = data[sent:]
    transport.write(data)


def _has_nothing_to_send(connection: tcp.Connection) -> bool:
    # `_tempDataBuffer` is not public, and has been there for as long as there is Twisted: it is what
    # `write` was given since the last time the reactor sent something.
    return (
        not connection.TLS
        and bool(connection.connected)
        and not connection.disconnecting
        and not connection.dataBuffer
        and not connection._tempDataBuffer
    )
