"""Reading a message's header: bounded, tolerant, and never deeper than one field.

Only what a mail server itself needs to know is read here. Nothing of MIME or of the grammar inside
a field is parsed, so that a message made to break a parser has nothing to break.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from elemta.message.header_reader import header_size

# A header of more octets, fields or octets a field is read only so far; the rest of it is ignored.
MAX_HEADER = 64 * 1024
MAX_FIELDS = 1000
MAX_FIELD = 32 * 1024

_WSP = (b" ", b"\t")


@dataclass(frozen=True, slots=True)
class Headers:
    """The fields of one header in their order, names as written, values unfolded and decoded.

    ``complete`` is false where the header was longer than the limits or had no end within what was
    given, so that fields may exist which are not here.
    """

    fields: tuple[tuple[str, str], ...] = ()
    complete: bool = True

    def get(self, name: str) -> str | None:
        """The value of the first field called ``name`` in any case; None where there is none."""
        wanted = name.lower()
        return next((value for field, value in self.fields if field.lower() == wanted), None)

    def get_all(self, name: str) -> list[str]:
        """The values of all fields called ``name`` in any case, from the top down."""
        wanted = name.lower()
        return [value for field, value in self.fields if field.lower() == wanted]

    def items(self) -> tuple[tuple[str, str], ...]:
        """Every field as name and value, from the top down."""
        return self.fields

    def count(self, name: str) -> int:
        """How many fields are called ``name`` in any case (``Received``: the hops so far)."""
        wanted = name.lower()
        return sum(field.lower() == wanted for field, _ in self.fields)


def read_headers(head: bytes) -> Headers:
    """Read the header out of the first bytes of a message.

    ``head`` may be any part of the message from its start on, ending anywhere. The header ends where
    :func:`~elemta.message.header_reader.header_size` says; lines may end in CRLF or LF; a line that is no
    field is passed over. Octets that are not UTF-8 are read as U+FFFD. Garbage gives fewer fields, never an
    error.
    """
    fields: list[tuple[str, str]] = []
    head = head[:MAX_HEADER]
    end = header_size(head)
    field: list[bytes] = []
    size = 0
    for line in _lines(head[:end]):
        if line.startswith(_WSP):
            # RFC 5322 §2.2.3: unfolding takes away the line end and leaves the white space.
            if field and size < MAX_FIELD:
                field.append(line)
                size += len(line)
            continue
        _keep(fields, field)
        if len(fields) >= MAX_FIELDS:
            return Headers(tuple(fields), complete=False)
        field, size = [line], len(line)
    _keep(fields, field)
    return Headers(tuple(fields), complete=end is not None)


def _lines(text: bytes) -> Iterator[bytes]:
    """Each line without its end."""
    start = 0
    while start < len(text):
        end = text.find(b"\n", start)
        if end < 0:
            yield text[start:]
            return
        yield text[start : end - 1 if end > start and text[end - 1] == 0x0D else end]
        start = end + 1


def _keep(fields: list[tuple[str, str]], lines: list[bytes]) -> None:
    name, colon, value = b"".join(lines)[:MAX_FIELD].partition(b":")
    # RFC 5322 §4.5: obsolete syntax allows white space between the name and the colon.
    name = name.rstrip(b" \t")
    if colon and name and all(0x21 <= octet <= 0x7E for octet in name):
        fields.append((name.decode("ascii"), value.decode("utf-8", "replace").strip(" \t")))
