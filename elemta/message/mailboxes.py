"""The addresses in the fields From and Sender, as RFC 5322 §3.4 and its obsolete syntax have them.

What readers could understand differently is either read in every sense or not at all: an address that stands
unquoted in a display name counts as one of the field's, and what is no address list raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from elemta.address import Address
from elemta.errors import AddressSyntaxError

_MOST_NESTED = 50
_FOLD = re.compile(r"\r\n(?=[ \t])")
# Line ends and other controls, where no reader knows what they mean
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x80-\x9f\u2028\u2029]")
_ATOM = re.compile(r'[^\s()<>\[\]:;@\\,."]+')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_LITERAL = re.compile(r"\[[^\[\]\\]*\]")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_COMMENT_PART = re.compile(r"\\.|[()]", re.DOTALL)
_WORDS_END = frozenset("<,:;>")


@dataclass(frozen=True, slots=True)
class _Token:
    """A special character (``is_word`` false), or a word with what it says."""

    text: str
    is_word: bool = False
    is_literal: bool = False
    is_quoted: bool = False

    def is_special(self, char: str) -> bool:
        return not self.is_word and not self.is_literal and self.text == char


def read_mailboxes(value: bytes) -> tuple[Address, ...]:
    """Every address that the value of a field names, the members of groups included, in order.

    Raises :class:`~elemta.errors.AddressSyntaxError` for what is no list of addresses.
    """
    text = _FOLD.sub("", value.decode("utf-8", "surrogateescape").rstrip("\r\n"))
    if _CONTROL.search(text):
        raise AddressSyntaxError("a control character in a list of addresses")
    return tuple(_List(tuple(_tokens(text))).read())


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    while place < len(text):
        char = text[place]
        if char in " \t":
            place += 1
        elif char == "(":
            place = _behind_comment(text, place)
        elif char == '"' and (found := _QUOTED.match(text, place)):
            yield _Token(_ESCAPED.sub(r"\1", found[1]), is_word=True, is_quoted=True)
            place = found.end()
        elif char == "[" and (found := _LITERAL.match(text, place)):
            yield _Token("".join(found[0].split()), is_literal=True)
            place = found.end()
        elif char in "<>:;@,.":
            yield _Token(char)
            place += 1
        elif found := _ATOM.match(text, place):
            yield _Token(found[0], is_word=True)
            place = found.end()
        else:
            raise AddressSyntaxError(f"not expected in a list of addresses: {char!r}")


def _behind_comment(text: str, place: int) -> int:
    # RFC 5322 §3.2.2: comments nest.
    depth = 0
    for found in _COMMENT_PART.finditer(text, place):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if depth == 0:
            return found.end()
        if depth > _MOST_NESTED:
            break
    raise AddressSyntaxError("a comment without end")


class _List:
    """Reads tokens as an address list."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._place = 0
        self._found: list[Address] = []

    def read(self) -> list[Address]:
        self._read_members(in_group=False)
        if self._place < len(self._tokens):
            raise AddressSyntaxError(f"not expected: {self._tokens[self._place].text!r}")
        return self._found

    def _at(self, char: str) -> bool:
        return self._place < len(self._tokens) and self._tokens[self._place].is_special(char)

    def _take(self, char: str) -> bool:
        taken = self._at(char)
        self._place += taken
        return taken

    def _read_members(self, *, in_group: bool) -> None:
        """Addresses with commas between; RFC 5322 §4.4: some may be empty."""
        while True:
            while self._take(","):
                pass
            if self._place == len(self._tokens) or (in_group and self._at(";")):
                return
            self._read_address(in_group=in_group)
            if self._place < len(self._tokens) and not self._at(",") and not (in_group and self._at(";")):
                raise AddressSyntaxError(f"not expected: {self._tokens[self._place].text!r}")

    def _read_address(self, *, in_group: bool) -> None:
        words = self._take_words()
        if self._take("<"):
            self._add_embedded(words)
            self._read_angle()
        elif self._at(":") and words and not in_group:
            self._place += 1
            self._add_embedded(words)
            self._read_members(in_group=True)
            if not self._take(";"):
                raise AddressSyntaxError("a group without end")
        else:
            self._found.append(_address(words))

    def _take_words(self) -> list[_Token]:
        start = self._place
        while self._place < len(self._tokens):
            token = self._tokens[self._place]
            if not token.is_word and not token.is_literal and token.text in _WORDS_END:
                break
            self._place += 1
        return list(self._tokens[start : self._place])

    def _read_angle(self) -> None:
        # RFC 5322 §4.4 obs-route: "<@a,@b:user@host>"; only what follows the colon is the address.
        if self._at("@") or self._at(","):
            while self._take(",") or self._take("@"):
                if self._tokens[self._place - 1].text == "@":
                    _domain(self._take_words())
            if not self._take(":"):
                raise AddressSyntaxError("a route without end")
        address = _address(self._take_words())
        if not self._take(">"):
            raise AddressSyntaxError("an angle bracket without end")
        self._found.append(address)

    def _add_embedded(self, phrase: Sequence[_Token]) -> None:
        """Addresses that stand in a display name without quotes: some readers show them as the sender."""
        for place, token in enumerate(phrase):
            if token.is_special("@"):
                self._found.append(
                    _address(phrase[_start_of_local(phrase, place) : _end_of_domain(phrase, place)])
                )
            elif token.is_literal and not (place and phrase[place - 1].is_special("@")):
                raise AddressSyntaxError("a domain literal in a display name")


def _start_of_local(phrase: Sequence[_Token], at: int) -> int:
    start = at
    while start and (
        phrase[start - 1].is_special(".") or (phrase[start - 1].is_word and _joins(phrase, start, at))
    ):
        start -= 1
    return start


def _joins(phrase: Sequence[_Token], start: int, at: int) -> bool:
    """Whether the word before ``start`` belongs to the local-part: a dot or the ``@`` itself follows it."""
    return start == at or phrase[start].is_special(".")


def _end_of_domain(phrase: Sequence[_Token], at: int) -> int:
    end = at + 1
    if end < len(phrase) and phrase[end].is_literal:
        return end + 1
    while end < len(phrase) and (
        phrase[end].is_special(".")
        or (phrase[end].is_word and (end == at + 1 or phrase[end - 1].is_special(".")))
    ):
        end += 1
    return end


def _address(tokens: Sequence[_Token]) -> Address:
    ats = [place for place, token in enumerate(tokens) if token.is_special("@")]
    if len(ats) != 1:
        raise AddressSyntaxError("no address, or more than one at sign in it")
    local, domain = _local(tokens[: ats[0]]), _domain(tokens[ats[0] + 1 :])
    return Address(local, domain)


def _local(tokens: Sequence[_Token]) -> str:
    """A local-part. Dots may stand anywhere, as they do in real addresses; two words need one between."""
    if not any(token.is_word for token in tokens):
        raise AddressSyntaxError("an address without local-part")
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.is_literal or not (token.is_word or token.is_special(".")):
            raise AddressSyntaxError(f"not expected in a local-part: {token.text!r}")
        if token.is_word and following is not None and following.is_word:
            raise AddressSyntaxError("two words in a local-part")
    return _sound("".join(token.text for token in tokens))


def _domain(tokens: Sequence[_Token]) -> str:
    if len(tokens) == 1 and tokens[0].is_literal:
        return tokens[0].text.lower()
    if tokens and tokens[-1].is_special("."):
        tokens = tokens[:-1]
    for place, token in enumerate(tokens):
        if token.is_quoted or token.is_literal or token.is_word == bool(place % 2):
            raise AddressSyntaxError("not a domain")
    if len(tokens) % 2 == 0:
        raise AddressSyntaxError("not a domain")
    return _sound("".join(token.text for token in tokens)).lower()


def _sound(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise AddressSyntaxError("an address that is not UTF-8") from None
    return text
