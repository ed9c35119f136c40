"""Load that smtp-source can't make: pipelined commands, TLS, logins, and sessions that only stay open.

One thread and one epoll serve all sessions, in a process of its own. It ends at the first refusal, as
smtp-source does.
"""

from __future__ import annotations

import argparse
import base64
import json
import selectors
import socket
import ssl
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache

PATIENCE = 120.0
PASSWORD = "correct horse"
TLS = b"<tls>"
# What a conversation sends, and how many replies it waits for then.
Conversation = Generator[tuple[bytes, int], None, None]


class Refused(Exception):
    """A server said no, or nothing."""


@dataclass
class Plan:
    """What all sessions do; ``left`` messages are still to be sent."""

    left: int
    content: bytes
    sender: str
    recipient: str
    reuse: bool
    pipelined: bool
    tls: bool
    login: bool

    def conversation(self) -> Conversation:
        """One connection, which takes its first message at once: no other is opened for that."""
        self.left -= 1
        yield b"", 1
        yield b"EHLO client.test\r\n", 1
        if self.tls:
            yield b"STARTTLS\r\n", 1
            yield TLS, 0
            yield b"EHLO client.test\r\n", 1
        if self.login:
            secret = base64.b64encode(f"\0{self.sender}\0{PASSWORD}".encode())
            yield b"AUTH PLAIN " + secret + b"\r\n", 1
        mail = f"MAIL FROM:<{self.sender}>\r\n".encode()
        recipient = f"RCPT TO:<{self.recipient}>\r\n".encode()
        while True:
            if self.pipelined:
                # RFC 2920 §3.1: DATA may be the last of a group.
                yield mail + recipient + b"DATA\r\n", 3
            else:
                for command in (mail, recipient, b"DATA\r\n"):
                    yield command, 1
            yield self.content, 1
            if not self.reuse or self.left <= 0:
                break
            self.left -= 1
        yield b"QUIT\r\n", 1


class Session:
    """One connection, which follows a conversation."""

    def __init__(self, sock: socket.socket, conversation: Conversation) -> None:
        self.socket = sock
        self._conversation = conversation
        self._unsent = b""
        self._heard = b""
        self._replies = 0
        self._handshake = False
        self.ended = False
        self._go_on()

    def advance(self) -> int:
        """Do what is possible now; the events to wait for."""
        try:
            while not self.ended:
                if self._handshake:
                    self.socket.do_handshake()  # type: ignore[attr-defined]
                    self._handshake = False
                    self._go_on()
                elif self._unsent:
                    self._unsent = self._unsent[self.socket.send(self._unsent) :]
                elif self._replies:
                    self._hear(self.socket.recv(65536))
                else:
                    self._go_on()
        except (ssl.SSLWantReadError, BlockingIOError):
            return selectors.EVENT_WRITE if self._unsent and not self._handshake else selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            return selectors.EVENT_WRITE
        return 0

    def _hear(self, octets: bytes) -> None:
        if not octets:
            raise Refused("the server hung up")
        *lines, self._heard = (self._heard + octets).split(b"\r\n")
        for line in lines:
            if line[:1] not in b"23":
                raise Refused(line.decode("latin-1"))
            if line[3:4] != b"-":
                self._replies -= 1

    def _go_on(self) -> None:
        step = next(self._conversation, None)
        if step is None:
            self.ended = True
        elif step[0] is TLS:
            self.socket = _tls().wrap_socket(
                self.socket, server_hostname="bench.test", do_handshake_on_connect=False
            )
            self._handshake = True
        else:
            self._unsent, self._replies = step


@cache
def _tls() -> ssl.SSLContext:
    """Made once, without the system's authorities: to read those takes longer than a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def connected(port: int, number: int = 0) -> socket.socket:
    """A connection; so many of them that one client address would have too few ports."""
    sock = socket.create_connection(
        ("127.0.0.1", port), timeout=PATIENCE, source_address=(f"127.0.1.{1 + number // 10000}", 0)
    )
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


def run(plan: Plan, port: int, sessions: int) -> float:
    """Send all; seconds that it took."""
    selector = selectors.DefaultSelector()
    begun = time.perf_counter()

    def begin() -> None:
        session = Session(connected(port), plan.conversation())
        selector.register(session.socket, selectors.EVENT_READ, session)

    try:
        for _ in range(min(sessions, plan.left)):
            begin()
        while selector.get_map():
            ready = selector.select(PATIENCE)
            if not ready:
                raise Refused("the server does not answer")
            for key, _ in ready:
                session = key.data
                before = session.socket
                events = session.advance()
                if session.ended:
                    selector.unregister(before)
                    session.socket.close()
                    if plan.left > 0:
                        begin()
                elif session.socket is not before:
                    # TLS: the old socket has given its descriptor away.
                    selector.unregister(before)
                    selector.register(session.socket, events, session)
                elif events != key.events:
                    selector.modify(session.socket, events, session)
    finally:
        for key in list(selector.get_map().values()):
            key.data.socket.close()
        selector.close()
    return time.perf_counter() - begun


def stay(port: int, sessions: int) -> float:
    """Open so many sessions and say EHLO in each; seconds that it took. They stay until this process ends."""
    begun = time.perf_counter()
    kept = []
    for first in range(0, sessions, 100):
        some = [connected(port, number) for number in range(first, min(first + 100, sessions))]
        for words in (b"", b"EHLO client.test\r\n"):
            for sock in some:
                sock.settimeout(PATIENCE)
                sock.sendall(words)
                heard = b""
                while not (heard.endswith(b"\r\n") and heard.splitlines()[-1][3:4] == b" "):
                    octets = sock.recv(4096)
                    if not octets or octets[:1] not in b"2":
                        raise Refused(octets.decode("latin-1") or "the server hung up")
                    heard += octets
        kept += some
    _KEPT.extend(kept)
    return time.perf_counter() - begun


_KEPT: list[socket.socket] = []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--messages", type=int, default=0)
    parser.add_argument("--octets", type=int, default=1024)
    parser.add_argument("--sender", default="sender@bench.test")
    parser.add_argument("--recipient", default="someone@bench.test")
    for name in ("reuse", "pipelined", "tls", "login", "stay"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    try:
        if options.stay:
            print(json.dumps(stay(options.port, options.sessions)), flush=True)
            sys.stdin.read()  # until the benchmark has looked
            return 0
        head = f"From: <{options.sender}>\r\nSubject: load\r\n\r\n".encode()
        lines = b"x" * 62 + b"\r\n"
        body = lines * max(1, (options.octets - len(head)) // len(lines))
        plan = Plan(
            options.messages, head + body + b".\r\n", options.sender, options.recipient,
            options.reuse, options.pipelined, options.tls, options.login,
        )  # fmt: skip
        print(json.dumps(run(plan, options.port, options.sessions)))
    except (Refused, OSError) as error:
        print(f"bench/load.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
