"""Clients that keep a daemon busy with pipelined envelopes, and the next hop that takes part of the mail."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

from tests.durability.ledger import Ledger, Message
from tests.support.wire import Wire

LOCAL = "example.test"
REMOTE = "sink.test"
_SIZES = (300, 1000, 4000, 20_000, 70_000, 300_000)
_WEIGHTS = (40, 30, 15, 7, 6, 2)
_NAMES = itertools.count(1)
S = TypeVar("S", bound="Sink")


class Gone(Exception):
    """The connection ended before the reply did."""


class Clients:
    """Several threads, each with a connection of its own to whatever port is the daemon's at the moment."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        threads: int = 4,
        remote: float = 0.3,
        pause: float = 0.02,
        weights: tuple[int, ...] = _WEIGHTS,
    ) -> None:
        self.ledger = ledger
        self.trouble: list[BaseException] = []
        self._remote = remote
        self._pause = pause
        self._weights = weights
        self._port: int | None = None
        self._open = threading.Event()
        self._ended = False
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads = [
            threading.Thread(target=self._run, args=(number % 2 == 0,), daemon=True)
            for number in range(threads)
        ]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._open.set()
        self.cut()
        for thread in self._threads:
            thread.join(timeout=30)

    def aim(self, port: int) -> None:
        """Send to this port from now on."""
        self._port = port
        self._open.set()

    def rest(self) -> None:
        """Begin no new connection and no new batch; what is under way is read to its end."""
        self._open.clear()

    def cut(self) -> None:
        """Close all connections, whatever is under way on them."""
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def wait_until_idle(self, seconds: float = 90.0) -> None:
        """Wait until the clients that have to rest have read all their answers."""
        deadline = time.monotonic() + seconds
        while self._sockets and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not self._sockets, "a client waits for an answer that does not come"

    def _run(self, chunking: bool) -> None:
        while not self._ended:
            self._open.wait()
            try:
                self._converse(chunking)
            except (OSError, Gone):
                time.sleep(0.01)  # the daemon was killed: look for the next
            except BaseException as error:
                self.trouble.append(error)
                raise

    def _converse(self, chunking: bool) -> None:
        if self._ended or self._port is None:
            return
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets.add(sock)
        try:
            with Wire(sock) as wire:
                self._greet(wire)
                while self._open.is_set() and not self._ended:
                    if chunking:
                        self._send_in_chunks(wire)
                    else:
                        self._send_with_data(wire)
                    time.sleep(random.uniform(0, self._pause))
        finally:
            with self._lock:
                self._sockets.discard(sock)

    def _greet(self, wire: Wire) -> None:
        if not _read(wire).startswith("220"):
            raise Gone
        wire.send(b"EHLO client.test\r\n")
        if not _read(wire).startswith("250"):
            raise Gone

    def _send_in_chunks(self, wire: Wire) -> None:
        """Whole messages one behind the other in one write, before the first answer is read."""
        batch = [self.next_message() for _ in range(random.randint(1, 6))]
        for message in batch:
            self.ledger.sending(message)
        wire.send(b"".join(_envelope(m) + b"BDAT %d LAST\r\n" % len(m.content) + m.content for m in batch))
        for message in batch:
            refusal = self._read_envelope(wire, message)
            self.ledger.answered(message, refusal or _read(wire))
            if refusal:
                _read(wire)

    def _send_with_data(self, wire: Wire) -> None:
        """The next envelope right behind the end of a message, in the same write."""
        batch = [self.next_message() for _ in range(random.randint(1, 4))]
        for message in batch:
            self.ledger.sending(message)
        wire.send(_envelope(batch[0]) + b"DATA\r\n")
        for message, following in itertools.zip_longest(batch, batch[1:]):
            behind = b"" if following is None else _envelope(following) + b"DATA\r\n"
            refusal = self._read_envelope(wire, message)
            go_ahead = _read(wire)
            if not go_ahead.startswith("354"):
                self.ledger.answered(message, refusal or go_ahead)
                wire.send(behind)
                continue
            stuffed = message.content.replace(b"\r\n.", b"\r\n..")
            wire.send(stuffed + b".\r\n" + behind)
            self.ledger.answered(message, _read(wire))

    def _read_envelope(self, wire: Wire, message: Message) -> str:
        """The first refusal among the replies to MAIL and every RCPT, or nothing."""
        replies = [_read(wire) for _ in range(1 + len(message.recipients))]
        return next((reply for reply in replies if not reply.startswith("250")), "")

    def next_message(self) -> Message:
        """What a client sends next."""
        recipients = [f"u{random.randrange(8)}@{LOCAL}"]
        if random.random() < self._remote:
            recipients[random.randrange(2) :] = [f"s{random.randrange(8)}@{REMOTE}"]
        elif random.random() < 0.2:
            recipients.append(f"v{random.randrange(8)}@{LOCAL}")
        return self.make_message(*recipients)

    def make_message(self, *recipients: str) -> Message:
        """A new message, of a size by chance."""
        octets = random.choices(_SIZES, self._weights)[0]
        return Message.make(f"m{next(_NAMES)}", octets + random.randrange(200), recipients)


def _envelope(message: Message) -> bytes:
    lines = ["MAIL FROM:<sender@client.test>", *(f"RCPT TO:<{name}>" for name in message.recipients)]
    return "".join(line + "\r\n" for line in lines).encode()


def _read(wire: Wire) -> str:
    reply = wire.reply()
    if not reply or reply.startswith("421"):
        raise Gone
    return reply


class _Hop(socketserver.StreamRequestHandler):
    timeout = 30

    def handle(self) -> None:
        server = self.server
        assert isinstance(server, Sink)
        with server.conversation(), contextlib.suppress(OSError):
            self._say("220 sink.test ESMTP")
            sender, recipients = "", list[str]()
            while line := self.rfile.readline(2000):
                verb = line[:4].upper()
                if verb == b"EHLO":
                    self._say("250-sink.test\r\n250-PIPELINING\r\n250 8BITMIME")
                elif verb == b"MAIL":
                    sender, recipients = _path(line), []
                    self._say("250 OK")
                elif verb == b"RCPT":
                    reply = server.reply_to(_path(line))
                    recipients += [_path(line)] if reply.startswith("250") else []
                    self._say(reply)
                elif verb == b"DATA" and not recipients:
                    self._say("554 5.5.1 for nobody")
                elif verb == b"DATA":
                    self._say("354 go on")
                    self._take(server, sender, recipients)
                elif verb == b"QUIT":
                    self._say("221 bye")
                    return
                else:
                    self._say("250 OK")

    def _say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")

    def _take(self, server: Sink, sender: str, recipients: list[str]) -> None:
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            if not line:
                return  # cut off: not ours
            lines.append(line[1:] if line.startswith(b".") else line)
        server.take(sender, recipients, b"".join(lines))
        # Time for a kill between what we took and what the sender knows of it.
        time.sleep(random.uniform(0, server.delay))
        self._say("250 taken")


def _path(line: bytes) -> str:
    return line.partition(b"<")[2].partition(b">")[0].decode()


class Sink(socketserver.ThreadingTCPServer):
    """A next hop that enters what it takes into the ledger before it says so."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 100

    def __init__(self, ledger: Ledger, *, port: int = 0, delay: float = 0.02) -> None:
        self.ledger = ledger
        self.delay = delay
        self.conversations = 0
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Hop)

    def reply_to(self, recipient: str) -> str:
        """What is said to a RCPT."""
        return "250 OK"

    def take(self, sender: str, recipients: list[str], content: bytes) -> None:
        """A message came to its end, and will be said to be taken."""
        for recipient in recipients:
            self.ledger.delivered(recipient, content)

    @contextlib.contextmanager
    def conversation(self) -> Iterator[None]:
        """Counts the clients that talk."""
        with self._lock:
            self.conversations += 1
        try:
            yield
        finally:
            with self._lock:
                self.conversations -= 1

    @property
    def port(self) -> int:
        return int(self.server_address[1])


@contextlib.contextmanager
def sink(ledger: Ledger, *, port: int = 0, delay: float = 0.02) -> Iterator[Sink]:
    """A sink that runs in threads."""
    with serving(Sink(ledger, port=port, delay=delay)) as server:
        yield server


@contextlib.contextmanager
def serving(server: S) -> Iterator[S]:
    """Let a sink run in threads."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(timeout=10)
