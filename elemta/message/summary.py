"""What names a message for people: its Message-ID and its Subject, out of the first octets of it.

Both are the sender's words. They are found and turned into text without parsing anything else, in time in
proportion to what is read, and nothing here raises.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from elemta.message.encoded_words import decode_words

LONGEST_SUBJECT = 100
"""Characters of a Subject that are kept."""

LONGEST_MESSAGE_ID = 256
"""Characters of a Message-ID that are kept; one that is longer names nothing that a person searches for."""

# Octets of a field that are read: a word of ten characters may take a hundred octets of an encoded word.
_MOST_READ = 2000
_END_OF_HEADER = b"\r\n\r\n"
# RFC 5322 §4.5: obsolete syntax allows white space before the colon. §2.2.3: a line that begins with white
# space continues the field.
_VALUE = re.compile(rb"[ \t]{0,100}+:([^\n]*+(?:\n[ \t][^\n]*+){0,100})")
_ID = re.compile(r"<[^<>]*>")
_PLAIN_ID = re.compile(rb"[ \t\r\n]*+(<[!-;=?-~]{1,200}+>)[ \t\r\n]*+")
_NAMES = (b"\nmessage-id", b"\nsubject")


class HeaderSummary(NamedTuple):
    """The Message-ID as text, and the Subject as it came, which `subject_text` makes text of; both may be
    empty."""

    message_id: str
    subject: bytes


NO_SUMMARY = HeaderSummary("", b"")


def read_summary(head: bytes, block: bytes = b"") -> HeaderSummary:
    """The summary of a message: ``block`` are fields in front of it, ``head`` are its first octets."""
    end = 0 if head.startswith(b"\r\n") else head.find(_END_OF_HEADER)
    header = head if end < 0 else head[:end]
    # A line feed more in front: the place of one in it is the place of the line behind it in the header.
    lowered = b"\n" + header.lower()
    found = []
    for name in _NAMES:
        start = lowered.find(name)
        # Nearly always the first that begins so is the field.
        value = _VALUE.match(header, start + len(name) - 1) if start >= 0 else None
        if value is not None:
            found.append(value[1][:_MOST_READ])
        else:
            found.append(_other_value(header, lowered, name, start, block))
    plain = _PLAIN_ID.fullmatch(found[0])
    if plain is not None:
        return HeaderSummary(plain[1].decode("ascii"), found[1])
    return HeaderSummary(message_id_text(found[0]) if found[0] else "", found[1])


def _other_value(header: bytes, lowered: bytes, name: bytes, start: int, block: bytes) -> bytes:
    """The value of a field that is not where it mostly is: further down, or in front of the message."""
    found = _later_value(header, lowered, name, start) if start >= 0 else b""
    if found or not block:
        return found
    lowered = b"\n" + block.lower()
    start = lowered.find(name)
    return _later_value(block, lowered, name, start) if start >= 0 else b""


def _later_value(header: bytes, lowered: bytes, name: bytes, start: int) -> bytes:
    """The value of the first field of this name from a place on; empty where there is none."""
    while start >= 0:
        found = _VALUE.match(header, start + len(name) - 1)
        if found is not None:
            return found[1][:_MOST_READ]
        start = lowered.find(name, start + 1)
    return b""


def message_id_text(raw: bytes) -> str:
    """A Message-ID with its angle brackets, where it has them (RFC 5322 §3.6.4); "" where there is none."""
    text = " ".join(raw.decode("utf-8", "replace").split())
    if not text:
        return ""
    found = _ID.search(text)
    return (found[0] if found else text)[:LONGEST_MESSAGE_ID]


def subject_text(raw: bytes) -> str:
    """The beginning of a Subject as text on one line, encoded words decoded."""
    text = raw.decode("utf-8", "replace")
    if "=?" in text:
        text = decode_words(text)
    # Also a line end or a tab that an encoded word hid. Other controls are for the place that shows it.
    text = " ".join(text.split())[:LONGEST_SUBJECT]
    # Half of a surrogate pair, as UTF-7 may give, can't be stored.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
