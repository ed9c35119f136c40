"""Relays a session between standard input and output and a socket."""

from __future__ import annotations

import os
import select
import socket
from typing import BinaryIO, Final

from elemta.ctl.discover import ServerEndpoint

_CHUNK: Final = 65536
# Longer than any server waits.
_SILENCE_SECONDS: Final = 660.0
# For answers, when the caller has no more to say, and said no QUIT.
_LINGER_SECONDS: Final = 30.0


def connect(place: ServerEndpoint, seconds: float) -> socket.socket:
    """A connection to the daemon, within so many seconds. Raises OSError."""
    connection = socket.create_connection((place.host, place.port), seconds)
    connection.settimeout(_SILENCE_SECONDS)
    return connection


def pipe(connection: socket.socket, stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Carry bytes both ways until the daemon closes, or both sides are silent for long."""
    source = stdin.fileno()
    # RFC 5321 §4.3.1: input before the greeting is refused, and a pipe is full before we connect.
    watched: list[socket.socket | int] = [connection]
    greeted, silence = False, _SILENCE_SECONDS
    while True:
        ready, _, _ = select.select(watched, [], [], silence)
        if not ready:
            return
        if source in ready:
            typed = os.read(source, _CHUNK)
            connection.sendall(typed)
            if not typed:
                # Closing our half could cost the answers that are on their way.
                watched, silence = [connection], _LINGER_SECONDS
        if connection in ready:
            said = connection.recv(_CHUNK)
            if not said:
                return
            stdout.write(said)
            stdout.flush()
            if not greeted:
                greeted, watched = True, [connection, source]
