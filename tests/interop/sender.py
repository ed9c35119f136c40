"""A sender that puts exactly the octets of a message on the wire, in the pieces that the test gives."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum

from tests.support.wire import Wire


class Way(Enum):
    DATA = "DATA"
    BDAT = "BDAT"


class Sender:
    """One connection that messages go over, one after the other."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        # So that pieces leave one by one.
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert wire.reply().startswith("220")
        assert "CHUNKING" in wire.command("EHLO sender.test")

    def send(
        self, content: bytes, recipients: Sequence[str], way: Way, sizes: Iterable[int] | None = None
    ) -> str:
        """Send the message; the last reply.

        ``sizes`` are those of the pieces: of the writes with DATA, of the chunks with BDAT, where an empty
        chunk is the last then; the last size repeats.
        """
        wire = self._wire
        envelope = [f"MAIL FROM:<sender@client.test> BODY=8BITMIME SIZE={len(content)}"]
        envelope += [f"RCPT TO:<{recipient}>" for recipient in recipients]
        wire.send("".join(f"{line}\r\n" for line in envelope).encode())
        for line in envelope:
            reply = wire.reply()
            assert reply.startswith("250"), (line, reply)
        pieces = _cut(content if way is Way.BDAT else _on_the_wire(content), sizes)
        if way is Way.BDAT and sizes is None:
            wire.send(b"BDAT %d LAST\r\n" % len(content) + content)
            return wire.reply()
        if way is Way.BDAT:
            return self._send_chunks(pieces)
        reply = wire.command("DATA")
        assert reply.startswith("354"), reply
        for piece in pieces:
            wire.send(piece)
        return wire.reply()

    def _send_chunks(self, pieces: Iterator[bytes]) -> str:
        count = 0
        for piece in pieces:
            self._wire.send(b"BDAT %d\r\n" % len(piece) + piece)
            count += 1
        self._wire.send(b"BDAT 0 LAST\r\n")
        for _ in range(count):
            reply = self._wire.reply()
            assert reply.startswith("250"), reply
        return self._wire.reply()

    def quit(self) -> None:
        assert self._wire.command("QUIT").startswith("221")


def _on_the_wire(content: bytes) -> bytes:
    # RFC 5321 §4.5.2, written apart from the daemon's own.
    if not content:
        return b".\r\n"
    assert content.endswith(b"\r\n")
    lines = content[:-2].split(b"\r\n")
    return b"\r\n".join(b"." + line if line[:1] == b"." else line for line in lines) + b"\r\n.\r\n"


def _cut(content: bytes, sizes: Iterable[int] | None) -> Iterator[bytes]:
    sizes = iter(sizes if sizes is not None else (len(content) or 1,))
    size = next(sizes)
    start = 0
    while start < len(content):
        yield content[start : start + size]
        start += size
        size = next(sizes, size)


def repeated(*sizes: int) -> Iterator[int]:
    """These sizes, again and again."""
    return itertools.cycle(sizes)
