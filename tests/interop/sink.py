"""A next hop that keeps every octet, and notes whatever a strict server could take amiss."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from dataclasses import dataclass
from types import TracebackType

from tests.support.places import HERE, Place

_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
# What begins with a dot on the wire must begin with two, or be the end.
_UNSTUFFED = re.compile(rb"\r\n\.(?!\.)")
_END = b"\r\n.\r\n"


@dataclass(frozen=True)
class Taken:
    """One message as it came: the commands of its envelope, and its content without the dots of the wire."""

    mail: str
    recipients: tuple[str, ...]
    content: bytes


class Sink:
    """Listens while it is entered, on a free port of 127.0.0.1 unless a port is given; accepts everything.

    With another ``greeting`` than 220 it says that, and closes. ``refusals`` are replies to commands that
    begin so.
    """

    def __init__(
        self,
        *extensions: str,
        place: Place = HERE,
        address: tuple[str, int] = ("127.0.0.1", 0),
        greeting: str = "220 sink.test ESMTP",
        refusals: dict[str, str] | None = None,
    ) -> None:
        self.taken: list[Taken] = []
        self.faults: list[str] = []
        self.connections = 0
        self.greeting = greeting
        self.refusals = refusals or {}
        sink = self

        class Conversation(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                sink.connections += 1
                try:
                    _Session(self.request, sink, extensions).talk()
                except OSError as error:
                    sink.faults.append(f"the connection broke: {error}")

        kind = _ServerOfBoth if ":" in address[0] else _Server
        self._server = place.call(lambda: kind(address, Conversation))
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Sink:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def by_recipient(self) -> dict[str, list[Taken]]:
        found: dict[str, list[Taken]] = {}
        for message in list(self.taken):
            for recipient in message.recipients:
                found.setdefault(recipient, []).append(message)
        return found


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


class _ServerOfBoth(_Server):
    """Takes IPv4 too, where its address is ``::``."""

    address_family = socket.AF_INET6


class _Session:
    def __init__(self, sock: socket.socket, sink: Sink, extensions: tuple[str, ...]) -> None:
        sock.settimeout(60)
        self._sock = sock
        self._sink = sink
        self._extensions = extensions
        self._held = bytearray()
        self._mail = ""
        self._recipients: list[str] = []

    def talk(self) -> None:
        self._say(self._sink.greeting)
        if not self._sink.greeting.startswith("220"):
            return
        while (line := self._line()) is not None:
            verb = line[:4].upper()
            refusal = next(
                (self._sink.refusals[each] for each in self._sink.refusals if line.startswith(each)), ""
            )
            if refusal:
                self._say(*refusal.split("\r\n"))
                continue
            if verb == "EHLO":
                self._say(*(f"250-{word}" for word in ("sink.test", *self._extensions)), "250 HELP")
            elif verb == "MAIL":
                self._mail, self._recipients = line, []
                self._say("250 2.1.0 OK")
            elif verb == "RCPT":
                self._recipients.append(line.partition("<")[2].partition(">")[0])
                self._say("250 2.1.5 OK")
            elif verb == "DATA":
                self._say("354 go on")
                self._take()
                self._say("250 2.0.0 OK")
            elif verb == "QUIT":
                self._say("221 2.0.0 bye")
                return
            else:
                self._sink.faults.append(f"not a command: {line[:80]!r}")
                self._say("500 5.5.1 what?")

    def _take(self) -> None:
        """Read to CRLF.CRLF, and to nothing else."""
        wire = bytearray(b"\r\n")
        self._held, wire = bytearray(), wire + self._held
        searched = 0
        while (end := wire.find(_END, searched)) < 0:
            searched = max(0, len(wire) - len(_END))
            wire += self._receive()
        self._held = wire[end + len(_END) :]
        lines = bytes(wire[: end + 2])
        name = ",".join(self._recipients)
        if _BARE.search(lines):
            self._sink.faults.append(f"{name}: a bare CR or LF was sent")
        if _UNSTUFFED.search(lines):
            self._sink.faults.append(f"{name}: a dot at the start of a line was not doubled")
        content = lines.replace(b"\r\n.", b"\r\n")[2:]
        self._sink.taken.append(Taken(self._mail, tuple(self._recipients), content))

    def _line(self) -> str | None:
        while (end := self._held.find(b"\n")) < 0:
            data = self._sock.recv(65536)
            if not data:
                if self._held:
                    self._sink.faults.append(f"cut short: {bytes(self._held[:80])!r}")
                return None
            self._held += data
        line = bytes(self._held[: end + 1])
        del self._held[: end + 1]
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            self._sink.faults.append(f"a command that does not end in CRLF: {line[:80]!r}")
        return line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")

    def _receive(self) -> bytes:
        data = self._sock.recv(1 << 18)
        if not data:
            raise ConnectionError("closed inside a message")
        return data

    def _say(self, *lines: str) -> None:
        self._sock.sendall("".join(f"{line}\r\n" for line in lines).encode())
