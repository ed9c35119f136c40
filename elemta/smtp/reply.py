"""Replies: codes, enhanced status codes and their bytes on the wire (RFC 5321 §4.2, RFC 2034, RFC 3463)."""

from __future__ import annotations

from dataclasses import dataclass, field

from elemta.foreign_text import printable

# RFC 5321 §4.5.3.1.5: a reply line is at most 512 octets with the code and CRLF.
_LONGEST_TEXT = 480


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply to the client: ``code``, ``enhanced`` ("" where there is none, as in 354), lines of text.

    The text is what the peer reads and is generic; reasons, policies and ids belong in the log.
    """

    code: int
    enhanced: str
    lines: tuple[str, ...]
    #: What :meth:`encode` gives, once it has made it: nearly every reply is one of a few constants.
    wire: bytes = field(default=b"", repr=False, compare=False)

    @classmethod
    def of(cls, code: int, enhanced: str, *lines: str) -> Reply:
        return cls(code, enhanced, lines)

    @property
    def text(self) -> str:
        return " ".join(self.lines)

    @property
    def is_transient(self) -> bool:
        return 400 <= self.code < 500

    def with_code(self, code: int, enhanced: str) -> Reply:
        return Reply(code, enhanced, self.lines)

    def encode(self) -> bytes:
        """The reply as the client receives it. Control characters of a text never reach the wire."""
        if not self.wire:
            object.__setattr__(self, "wire", _encoded(self))
        return self.wire

    def __str__(self) -> str:
        return f"{self.code} {self.enhanced} {self.text}" if self.enhanced else f"{self.code} {self.text}"


def _encoded(reply: Reply) -> bytes:
    prefix = f"{reply.enhanced} " if reply.enhanced else ""
    lines = [prefix + printable(line)[:_LONGEST_TEXT] for line in reply.lines] or [prefix]
    out = [f"{reply.code}-{line}\r\n" for line in lines[:-1]]
    out.append(f"{reply.code} {lines[-1]}\r\n")
    # RFC 6531 §3.7.4.2: text beyond ASCII is only for clients that asked for it; ours never needs it.
    return "".join(out).encode("ascii", "replace")
