"""Mail addresses as values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox, or the null reverse-path.

    ``local`` is the local-part as it is meant: unquoted and unescaped, its case kept.
    ``domain`` is lower case without a trailing dot: a U-label or A-label name as the client wrote it,
    or an address literal in brackets (``[192.0.2.1]``, ``[IPv6:2001:db8::1]``).
    Both empty is the null reverse-path ``<>`` (RFC 5321 §4.5.5), which is false in a condition.
    ``unquoted``: the local-part was written without quotes, although its dots need them; it is sent on so.
    Quotes are no part of an address, so they make no other one.
    """

    local: str
    domain: str
    unquoted: bool = field(default=False, compare=False, repr=False)
    # As text, made once: a message on its way out is asked for it several times.
    _text: str = field(default="", init=False, compare=False, repr=False)

    def __bool__(self) -> bool:
        return bool(self.local or self.domain)

    def __str__(self) -> str:
        """The address as it stands between ``<`` and ``>``; the local-part is quoted where it must be."""
        if self._text:
            return self._text
        if not (self.local or self.domain):
            return ""
        bare = _DOTS_ANYWHERE if self.unquoted else _DOT_STRING
        local = self.local if bare.fullmatch(self.local) else _quoted(self.local)
        text = f"{local}@{self.domain}" if self.domain else local
        object.__setattr__(self, "_text", text)
        return text

    @property
    def needs_smtputf8(self) -> bool:
        """Whether the address can only travel under SMTPUTF8 (RFC 6531 §3.4)."""
        return not (self.local + self.domain).isascii()

    @classmethod
    def of_words(cls, text: str) -> Address:
        """The mailbox in what another program says, which may stand in brackets and have no domain.

        There are no quotes in it: what is before the last ``@`` is the local-part. Nothing, and ``<>``, is
        the null reverse-path.
        """
        bare = text.strip()
        if bare.startswith("<") and bare.endswith(">"):
            bare = bare[1:-1]
        local, at, domain = bare.rpartition("@")
        return cls(local, domain.lower().rstrip(".")) if at else cls(bare, "")

    @classmethod
    def of_path(cls, text: str) -> Address:
        """The same of what may stand between ``<`` and ``>``: quotes around the local-part are none of it."""
        words = cls.of_words(text)
        return cls(unquoted_local(words.local), words.domain)


NULL = Address("", "")

# RFC 5321 §4.1.2 atext as of RFC 5322 §3.2.3; RFC 6531 §3.3 adds everything beyond ASCII.
_ATOM = r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~\u0080-\U0010ffff]+"
_DOT_STRING = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_DOTS_ANYWHERE = re.compile(rf"\.*{_ATOM}(?:\.+{_ATOM})*\.*")


_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)


def unquoted_local(text: str) -> str:
    """A local-part as it is meant, of one in quotes; any other one is given back as it is."""
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        return _QUOTED_PAIR.sub(r"\1", text[1:-1])
    return text


def _quoted(text: str) -> str:
    # RFC 5321 §4.1.2 Quoted-string
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
