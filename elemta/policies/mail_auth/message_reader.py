"""Reads a message once: the fields of its header, with their octets."""

from __future__ import annotations

import re
from typing import BinaryIO

import dkim

from elemta.policies.mail_auth.signatures import Header

MAX_HEADER = 1024 * 1024
"""Octets of a header."""

MAX_LINES = 20_000
"""Lines of a header, those that continue a field too."""


# RFC 5322 §4.5: obsolete syntax allows white space between the name and the colon.
_OBSOLETE = re.compile(rb"^([!-9;-~]+)[ \t]+:", re.MULTILINE)
_FROM = re.compile(rb"^from[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)", re.IGNORECASE | re.MULTILINE)


def read_header(stream: BinaryIO) -> Header | None:
    """The fields, the file left at the body; empty where they can't be read, None where there are too many.

    Blocks: call it in a thread.
    """
    raw = read_raw_header(stream)
    return None if raw is None else fields_of(raw)


def read_raw_header(stream: BinaryIO) -> bytes | None:
    """The octets of the header, the file left at the body; None where there are too many. Blocks."""
    raw = bytearray()
    while line := stream.readline(MAX_HEADER):
        if line == b"\r\n" or len(raw) > MAX_HEADER:
            break
        raw += line
    if len(raw) > MAX_HEADER or raw.count(b"\n") > MAX_LINES:
        return None
    return bytes(raw)


def from_values(raw: bytes) -> list[bytes]:
    """The values of all From fields, also of a header that has lines which are no fields.

    A reader passes over such a line and shows the author, so it must not hide the author from DMARC.
    """
    return [found[1] for found in _FROM.finditer(raw)]


def fields_of(raw: bytes) -> Header:
    """The fields of a header, without white space before a colon; empty where a line is none."""
    try:
        fields, _ = dkim.rfc822_parse(_OBSOLETE.sub(rb"\1:", raw))
    except (dkim.DKIMException, IndexError):
        return []  # a line that is no field: nothing in such a header can be signed
    return [(name, value) for name, value in fields]
