"""Reads a message once: the fields of its header, with their octets."""

from __future__ import annotations

from typing import BinaryIO

import dkim

from elemta.policies.mail_auth.signatures import Header

MAX_HEADER = 1024 * 1024
"""Octets of a header."""

MAX_LINES = 20_000
"""Lines of a header, those that continue a field too."""


def read_header(stream: BinaryIO) -> Header | None:
    """The fields, the file left at the body; empty where they can't be read, None where there are too many.

    Blocks: call it in a thread.
    """
    raw = bytearray()
    while line := stream.readline(MAX_HEADER):
        if line == b"\r\n" or len(raw) > MAX_HEADER:
            break
        raw += line
    if len(raw) > MAX_HEADER or raw.count(b"\n") > MAX_LINES:
        return None
    try:
        fields, _ = dkim.rfc822_parse(bytes(raw))
    except (dkim.DKIMException, IndexError):
        return []  # a line that is no field: nothing in such a header can be signed
    return [(name, value) for name, value in fields]
