"""One question to one server, over UDP, and over TCP where the answer was cut off. Blocks: for threads.

dnspython writes and reads the messages. Its own sockets are not used, because its resolver up to 2.5 gives a
server up at the first forged packet, and because a thread that waits here has to end when the daemon does.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import cast

import dns.exception
import dns.flags
import dns.message

from elemta.dns.servers import Nameserver

# What fits through nearly every path in one piece.
PAYLOAD = 1232
_Address = tuple[str | int, ...]

_HEADER = 12
_LARGEST = 65535
_IGNORED = 100


class ServerFailed(Exception):
    """This server gave no usable answer; the text says why."""


class NoAnswer(Exception):
    """This server gave no answer in time."""


class Stopped(Exception):
    """Nobody waits any more: the resolver stops."""


class Alarm:
    """Wakes every thread that waits in an exchange, once and for good."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()

    def fileno(self) -> int:
        return self._reader.fileno()

    def ring(self) -> None:
        self._writer.close()

    def close(self) -> None:
        """When no thread waits any more."""
        self._writer.close()
        self._reader.close()


class Exchange:
    """Asks servers. ``seconds`` is a clock that only goes forward, of which ``until`` is a point."""

    def __init__(self, alarm: Alarm, seconds: Callable[[], float]) -> None:
        self._alarm = alarm
        self._seconds = seconds

    def ask(self, server: Nameserver, query: dns.message.Message, until: float) -> dns.message.QueryMessage:
        """The answer of ``server``, whatever its code.

        Raises ServerFailed, NoAnswer or Stopped.
        """
        wire = query.to_wire()
        try:
            family, address = _socket_address(server)
            answer = self._over_udp(family, address, query, wire, until)
            # RFC 7766 §5
            return self._over_tcp(family, address, query, wire, until) if answer is None else answer
        except OSError as error:
            raise ServerFailed(_words(error)) from error

    def _over_udp(
        self,
        family: socket.AddressFamily,
        address: _Address,
        query: dns.message.Message,
        wire: bytes,
        until: float,
    ) -> dns.message.QueryMessage | None:
        """The answer, or None for one that was cut off.

        Each question has a socket, and so a port, of its own, and what comes from elsewhere does not reach
        it. What does not fit the question is passed over, as anyone may have sent it (RFC 5452 §9.1).
        """
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(address)
            sock.send(wire)
            for _ in range(_IGNORED):
                self._wait(sock, select.POLLIN, until)
                try:
                    data = sock.recv(_LARGEST)
                except BlockingIOError:
                    continue
                if len(data) < _HEADER or data[:2] != wire[:2]:
                    continue
                if int.from_bytes(data[2:4], "big") & dns.flags.TC:
                    return None
                answer = _parsed(data)
                if query.is_response(answer):
                    return answer
        raise ServerFailed(f"{_IGNORED} packets that answer something else")

    def _over_tcp(
        self,
        family: socket.AddressFamily,
        address: _Address,
        query: dns.message.Message,
        wire: bytes,
        until: float,
    ) -> dns.message.QueryMessage:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            error = sock.connect_ex(address)
            if error == errno.EINPROGRESS:
                self._wait(sock, select.POLLOUT, until)
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            self._send(sock, struct.pack("!H", len(wire)) + wire, until)
            (length,) = struct.unpack("!H", self._receive(sock, 2, until))
            answer = _parsed(self._receive(sock, length, until))
        if not query.is_response(answer):
            raise ServerFailed("an answer to something else")
        return answer

    def _send(self, sock: socket.socket, data: bytes, until: float) -> None:
        while data:
            self._wait(sock, select.POLLOUT, until)
            data = data[sock.send(data) :]

    def _receive(self, sock: socket.socket, length: int, until: float) -> bytes:
        data = bytearray()
        while len(data) < length:
            self._wait(sock, select.POLLIN, until)
            piece = sock.recv(length - len(data))
            if not piece:
                raise ServerFailed("closed the connection")
            data += piece
        return bytes(data)

    def _wait(self, sock: socket.socket, event: int, until: float) -> None:
        """Until the socket is ready for ``event``, or has an error, which the next call on it raises."""
        poll = select.poll()
        poll.register(sock, event)
        poll.register(self._alarm, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(0.0, until - self._seconds()) * 1000)}
        if self._alarm.fileno() in ready:
            raise Stopped
        if not ready:
            raise NoAnswer


def _parsed(data: bytes) -> dns.message.QueryMessage:
    try:
        answer = dns.message.from_wire(data)
    except (dns.exception.DNSException, ValueError, IndexError, struct.error) as error:
        raise ServerFailed("a malformed answer") from error
    if not isinstance(answer, dns.message.QueryMessage):
        raise ServerFailed("an answer that is none to a query")
    return answer


def _socket_address(server: Nameserver) -> tuple[socket.AddressFamily, _Address]:
    # A number, so that nothing is looked up; this way a link-local address finds its interface.
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    family, _, _, _, address = socket.getaddrinfo(
        server.address, server.port, type=socket.SOCK_DGRAM, flags=flags
    )[0]
    return family, cast(_Address, address)


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
