"""What a message is found by: words, each of them as its key in an index.

A key is 32 bits of a word, so two words may share one: what is found by a key is looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from zlib import crc32

from elemta.ip import unmapped

MOST_WORDS = 1100
"""Words of one record: those of a message with 1,000 recipients."""

_LONGEST_WORD = 1000
_MOST_IDS = 8
_DIGIT = re.compile(r"[0-9]")
_SHORTEST_ID, _LONGEST_ID = 4, 200
# What a next hop may call a message: letters, digits and signs between blanks, brackets or an equals sign.
_BLANKS = str.maketrans("<>()[],;:=\"'", " " * 12)
# RFC 3463 §2
_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
# Postfix and Elemta; Exim; Exchange; sendmail and OpenSMTPD; Haraka, Amazon, Dovecot's "… Saved".
_REMOTE_IDS = (
    re.compile(r"queued as ([^\s<>()]{1,200})", re.IGNORECASE),
    re.compile(r"\bid=([^\s<>()]{1,200})", re.IGNORECASE),
    re.compile(r"\bInternalId=(\d{1,200})", re.IGNORECASE),
    re.compile(r"(?:^|\s)([^\s<>()]{4,200}) Message accepted", re.IGNORECASE),
    re.compile(r"\bqueued \(([^\s<>()]{1,200})\)", re.IGNORECASE),
    re.compile(r"(?:^|\s)([^\s<>()]{4,200}) Saved\b", re.IGNORECASE),
    re.compile(r"^(?:[245]\.\d{1,3}\.\d{1,3} )?OK[ :]+([^\s<>()]{4,200})", re.IGNORECASE),
)


def key_of(word: str) -> int:
    """The key of a word; the same for all ways to write it that `normal` makes one."""
    return crc32(word.encode("utf-8", "surrogatepass"))


def normal(text: str) -> str:
    """A word as it is compared: without case, blanks and angle brackets around it; an IP address in one form.

    RFC 5322 §3.6.4: the brackets are no part of a Message-ID, and people leave them out.
    """
    word = text.strip()[:_LONGEST_WORD].lower()
    if word.startswith("<") and word.endswith(">"):
        word = word[1:-1].strip()
    if ":" in word or word.replace(".", "").isdigit():
        literal = word[1:-1] if word.startswith("[") and word.endswith("]") else word
        try:
            return str(unmapped(ip_address(literal.removeprefix("ipv6:"))))
        except ValueError:
            return word
    return word


def words_of_reply(text: str) -> list[str]:
    """The words of a next hop's reply by which it may call the message, in lower case."""
    found: list[str] = []
    before = ""
    for part in text.lower().translate(_BLANKS).split():
        token = part.strip(".")
        # Nearly all ids have a digit in them; those of Postfix may have none.
        named = before == "as" or (
            len(token) >= _SHORTEST_ID and not token.isalpha() and _DIGIT.search(token) is not None
        )
        before = token
        if not named or not 0 < len(token) <= _LONGEST_ID or token in found:
            continue
        if token[1:2] != "." or _ENHANCED.fullmatch(token) is None:
            found.append(token)
            if len(found) >= _MOST_IDS:
                break
    return found


def remote_id(text: str) -> str:
    """What a next hop calls the message, by its reply; "" where it does not say so in a known way."""
    for pattern in _REMOTE_IDS:
        match = pattern.search(text)
        if match is not None:
            return match[1].rstrip(".,;")
    return ""


def keys_of(words: Iterable[str]) -> tuple[int, ...]:
    """The keys of these words, each once."""
    return tuple(dict.fromkeys([crc32(word.encode("utf-8", "surrogatepass")) for word in words]))
