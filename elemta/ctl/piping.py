"""A conversation that is handed through: standard input and output on one side, a socket on the other."""

from __future__ import annotations

import os
import select
import socket
from typing import BinaryIO, Final

from elemta.ctl.places import Place

_CHUNK: Final = 65536
# Longer than any server waits.
_SILENCE_SECONDS: Final = 660.0


def connect(place: Place, seconds: float) -> socket.socket:
    """A connection to the daemon, within so many seconds. Raises OSError."""
    connection = socket.create_connection((place.host, place.port), seconds)
    connection.settimeout(_SILENCE_SECONDS)
    return connection


def pipe(connection: socket.socket, stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Carry bytes both ways until the daemon closes, or nobody says anything for eleven minutes."""
    source = stdin.fileno()
    watched: list[socket.socket | int] = [connection, source]
    while True:
        ready, _, _ = select.select(watched, [], [], _SILENCE_SECONDS)
        if not ready:
            return
        if source in ready:
            typed = os.read(source, _CHUNK)
            if typed:
                connection.sendall(typed)
            else:
                watched = [connection]
                connection.shutdown(socket.SHUT_WR)
        if connection in ready:
            said = connection.recv(_CHUNK)
            if not said:
                return
            stdout.write(said)
            stdout.flush()
