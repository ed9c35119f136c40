"""The client of an explanation, and the message that it would send."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus

from elemta.ip import IPAddress
from elemta.ops.admin_errors import AdminRefusal

MAX_MESSAGE = 1024 * 1024
"""Octets of a message that is explained."""

MAX_RECIPIENTS = 1000

_CONTROL = re.compile("[\x00-\x1f\x7f]")
_DOT = re.compile(rb"(?:\A|(?<=\r\n))\.")


@dataclass(frozen=True, slots=True)
class SupposedClient:
    """The client of an explanation, what it says, and the message that it sends.

    ``sender`` and ``message`` are None where it goes no further. A client with a ``user`` has logged in.
    """

    ip: IPAddress
    helo: str = ""
    user: str | None = None
    sender: str | None = None
    recipients: tuple[str, ...] = ()
    message: bytes | None = None

    def __post_init__(self) -> None:
        for text in (self.helo, self.user or "", self.sender or "", *self.recipients):
            if _CONTROL.search(text):
                # Behind a line's end there would be another command.
                raise AdminRefusal(HTTPStatus.BAD_REQUEST, "a control character is in no command")

    @property
    def hello(self) -> str:
        """The argument of its EHLO."""
        if self.helo:
            return self.helo
        # RFC 5321 §4.1.3: a client without a name says its address.
        return f"[{'IPv6:' if self.ip.version == 6 else ''}{self.ip}]"

    @property
    def mail(self) -> str:
        """Its MAIL command."""
        words = [f"MAIL FROM:{path_of(self.sender or '')}"]
        if self.message is not None:
            words.append(f"SIZE={len(self.message)}")
            if not self.message.isascii():
                words.append("BODY=8BITMIME")
        if not all(each.isascii() for each in (self.sender or "", *self.recipients)):
            words.append("SMTPUTF8")
        return " ".join(words)

    def content(self) -> Iterator[bytes]:
        """The message as it goes over the wire, and the end of data."""
        message = self.message or b""
        # RFC 5321 §4.5.2; a bare LF ends no line.
        yield _DOT.sub(b"..", message)
        yield b".\r\n"


def as_sent(content: bytes) -> bytes:
    """A file as a client sends it: every line ends in CRLF where LF ends them all.

    One with CRLF in it is what goes over the wire: a bare LF is one there, too.
    """
    lines = content if b"\r\n" in content else content.replace(b"\n", b"\r\n")
    return lines if lines.endswith(b"\r\n") or not lines else lines + b"\r\n"


def path_of(address: str) -> str:
    return address if address.startswith("<") and address.endswith(">") else f"<{address}>"
