"""Encoded words of a header field's value turned into text for people (RFC 2047). It never raises.

A client chooses every octet of what comes here. Python's own decoder raises for some of them, in ways that
its documentation does not list, and it keeps every name of a charset that it was ever asked for.
"""

from __future__ import annotations

import base64
import binascii
import re
from encodings.aliases import aliases

# RFC 2047 §2; a language behind the charset is RFC 2231 §5. Blanks in the text are not allowed, but common.
_WORD = re.compile(r"=\?([!-)+->@-~]{1,60})(?:\*[!->@-~]{0,60})?\?([BbQq])\?([ !->@-~]*)\?=")
_HEX = re.compile(rb"=([0-9A-Fa-f]{2})")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
# What Python calls an encoding and is none of text.
_NO_CHARSETS = frozenset(
    {"base64_codec", "bz2_codec", "hex_codec", "mbcs", "quopri_codec", "rot_13", "uu_codec", "zlib_codec"}
)
# Two that are used in mail and have no other name.
_CHARSETS = (frozenset(aliases.values()) - _NO_CHARSETS) | {"koi8_u", "cp874"}


def decode_words(value: str) -> str:
    """The value with its encoded words decoded; a word that can't be decoded stays as it is written.

    The work is in proportion to the length of the value, which the caller bounds.
    """
    text: list[str] = []
    octets, charset = b"", ""
    end = 0
    for match in _WORD.finditer(value):
        codec = _codec(match[1])
        found = _octets(match[2], match[3])
        if codec is None or found is None:
            continue
        between = value[end : match.start()]
        # RFC 2047 §6.2: blanks between two encoded words are not shown.
        if charset and not between.strip(" \t\r\n"):
            between = ""
        if between or codec != charset:
            text += (_decoded(octets, charset), between)
            octets, charset = b"", codec
        # Joined before they are decoded: some senders part a character between two words.
        octets += found
        end = match.end()
    return "".join((*text, _decoded(octets, charset), value[end:]))


def _codec(charset: str) -> str | None:
    """Python's name for a charset of text, None for any other."""
    name = charset.lower().replace("-", "_")
    codec = aliases.get(name, name)
    return codec if codec in _CHARSETS else None


def _octets(encoding: str, text: str) -> bytes | None:
    if encoding in "Qq":
        # RFC 2047 §4.2
        quoted = text.replace("_", " ").encode("ascii")
        return _HEX.sub(lambda match: bytes.fromhex(match[1].decode("ascii")), quoted)
    letters = _NOT_BASE64.sub("", text)
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4))
    except binascii.Error:
        return None


def _decoded(octets: bytes, charset: str) -> str:
    if not octets:
        return ""
    try:
        return octets.decode(charset, "replace")
    except (LookupError, ValueError):
        # Some codecs of Python raise whatever ``errors`` says.
        return octets.decode("ascii", "replace")
