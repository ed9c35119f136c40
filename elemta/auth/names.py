"""User names and passwords in the one form in which they are compared.

A person types ``Anna``, a phone ``anna``, a laptop a decomposed ``é``: all of them are one user, and
a limit per user must count them as one.
"""

from __future__ import annotations

import unicodedata

# RFC 4616 §2: an authcid is at most 255 octets.
MAX_NAME_OCTETS = 255
MAX_PASSWORD_OCTETS = 1024


class UnusableName(ValueError):
    """A user name that no user can have; the text says why."""


def canonical_name(name: str) -> str:
    """The form of ``name`` that is compared, logged and counted: half width, lower case, NFC.

    Raises :class:`UnusableName` for an empty or overlong name and for one with a space, a control
    character or a colon, which separates the fields of a users file.
    """
    # RFC 8265 §3.3.2: width mapping, then lower case, then NFC
    folded = unicodedata.normalize("NFC", "".join(map(_half_width, name)).lower())
    if not folded:
        raise UnusableName("the user name is empty")
    if len(folded.encode("utf-8", "replace")) > MAX_NAME_OCTETS:
        raise UnusableName(f"the user name is longer than {MAX_NAME_OCTETS} octets")
    for char in folded:
        # RFC 8264 §9: no controls, no spaces, nothing unassigned or for private use
        if unicodedata.category(char)[0] in "CZ":
            raise UnusableName(f"the user name contains {_code_point(char)}, a space or a control character")
        if char == ":":
            raise UnusableName("the user name contains a colon, which ends the name in the file")
    if folded.startswith("#"):
        raise UnusableName("the user name starts with #, which starts a comment in the file")
    return folded


def counted_name(name: str) -> str:
    """The name under which failed logins are counted: whatever may be the same user to a checker is one name.

    The canonical form, and of a name that has none its folded form without spaces and control characters,
    cut to :data:`MAX_NAME_OCTETS` characters. Never raises.
    """
    try:
        return canonical_name(name)
    except UnusableName:
        folded = unicodedata.normalize("NFC", "".join(map(_half_width, name[:MAX_NAME_OCTETS])).lower())
        return "".join(char for char in folded if unicodedata.category(char)[0] not in "CZ")


def canonical_password(password: bytes) -> bytes:
    """The octets that are hashed: NFC with plain spaces where ``password`` is UTF-8, else unchanged."""
    try:
        text = password.decode("utf-8")
    except UnicodeDecodeError:
        return password
    # RFC 8265 §4.2.2: other spaces become SPACE, then NFC
    spaced = "".join(" " if unicodedata.category(char) == "Zs" else char for char in text)
    return unicodedata.normalize("NFC", spaced).encode("utf-8")


def _half_width(char: str) -> str:
    kind, _, points = unicodedata.decomposition(char).partition(" ")
    if kind not in ("<wide>", "<narrow>"):
        return char
    return "".join(chr(int(point, 16)) for point in points.split())


def _code_point(char: str) -> str:
    return f"U+{ord(char):04X}"
