"""Files of the configuration with addresses in them: their lines, comments and addresses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from elemta.address import Address
from elemta.config.names import check_domain
from elemta.errors import ConfigError, Fault

_MAX_LOCAL_PART = 256
_MAX_DOMAIN = 255
# A quoted string, or anything but blanks, commas and quotes
_WORD = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s,"])+')
_COMMENT = re.compile(r"(?:^|(?<=\s))#")
_UNQUOTED = re.compile(r'[^\s()<>\[\]:;@\\,"]+')


def read_lines(path: str, key: str) -> Iterator[tuple[int, str]]:
    """The lines of a file that say something, with their numbers; ``#`` begins a comment.

    The ``#`` of a comment stands at the start of a line or behind a blank. ConfigError: the file can't be
    read, or is not UTF-8; it names ``key``, the setting that has the path.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ConfigError([Fault(path, key, "is not UTF-8")]) from None
    except OSError as error:
        raise ConfigError([Fault(path, key, f"can't be read: {error.strerror or error}")]) from error
    for number, line in enumerate(lines, start=1):
        text = _without_comment(line).strip()
        if text:
            yield number, text


def _without_comment(line: str) -> str:
    for found in _COMMENT.finditer(line):
        before = line[: found.start()]
        # A # inside of quotes is a letter of a local-part.
        if len(re.findall(r'(?<!\\)"', before)) % 2 == 0:
            return before
    return line


def split_words(text: str) -> tuple[str, list[str]] | None:
    """The first word of a line, and the words behind it, which commas part; None for anything else.

    A blank or a comma in quotes belongs to its word.
    """
    first = _WORD.match(text)
    if first is None:
        return None
    rest = text[first.end() :]
    if not rest[:1].isspace():
        return (first[0], []) if not rest else None
    words: list[str] = []
    place, rest = 0, rest.strip()
    while True:
        word = _WORD.match(rest, place)
        if word is None:
            return None
        words.append(word[0])
        place = word.end()
        comma = re.compile(r"\s*,\s*").match(rest, place)
        if place == len(rest):
            return first[0], words
        if comma is None:
            return None
        place = comma.end()


def parse_listed_address(text: str) -> Address | None:
    """An address as it stands in a file, or ``@domain`` (its local-part is empty); None for anything else.

    The local-part is quoted where it has blanks or other special characters.
    """
    local, at, domain = text.rpartition("@")
    if not at or not _is_domain(domain):
        return None
    if not local:
        return Address("", domain.removesuffix(".").lower())
    named = parse_local(local)
    if named is None:
        return None
    return Address(named, domain.removesuffix(".").lower(), unquoted=not local.startswith('"'))


def parse_local(text: str) -> str | None:
    """The local-part that ``text`` writes, without its quotes; None where it writes none."""
    local = unquoted(text) if text.startswith('"') else text if _UNQUOTED.fullmatch(text) else None
    if not local or not local.isprintable() or len(local.encode()) > _MAX_LOCAL_PART:
        return None
    return local


def unquoted(text: str) -> str | None:
    """What a quoted string says; None where it is none, or says nothing."""
    # RFC 5321 §4.1.2 Quoted-string
    if len(text) < 3 or not text.endswith('"'):
        return None
    inside = iter(text[1:-1])
    chars = []
    for char in inside:
        if char == '"':
            return None
        taken = next(inside, None) if char == "\\" else char
        if taken is None:
            return None
        chars.append(taken)
    return "".join(chars)


def _is_domain(text: str) -> bool:
    if not text or len(text) > _MAX_DOMAIN:
        return False
    try:
        check_domain(text)
    except ValueError:
        return False
    return True


def shortened(text: str) -> str:
    """At most 80 characters of a line, for a message."""
    return text if len(text) <= 80 else text[:77] + "..."
