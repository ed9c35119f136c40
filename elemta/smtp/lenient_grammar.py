"""What the arguments of commands mean where the grammar fails and the listener is not strict.

These readers are asked only for what the strict ones refuse. Each notes the kinds of
:mod:`elemta.smtp.leniency` that it forgives, and returns None for what it does not take either.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from elemta.address import Address
from elemta.envelope import Recipient
from elemta.errors import AddressSyntaxError
from elemta.smtp.grammar import MailCommand
from elemta.smtp.leniency import Kinds, Leniency, forgive
from elemta.smtp.parameters import parse_mail_parameters, parse_rcpt_parameters
from elemta.smtp.path import MAX_DOMAIN, parse_forward_path, parse_reverse_path
from elemta.smtp.replies import NEEDS_SMTPUTF8
from elemta.smtp.reply import Reply
from elemta.smtp.settings import SessionSettings

# Quotes in pairs, and no TAB within them; possessive, so that no line takes more than one pass.
_NO_TAB_IN_QUOTES = re.compile(rb'[^"]*+(?:"(?:[^"\\\t]|\\[^\t])*+"[^"]*+)*+')
_CONTROL_BUT_TAB = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_HELLO = re.compile(rb"[ \t]*(?:EHLO|HELO)[ \t]", re.IGNORECASE)

_FROM = re.compile(r" *FROM *:", re.IGNORECASE)
_TO = re.compile(r" *TO *:", re.IGNORECASE)
_BRACKETED = re.compile(r' *<([^<>"]*(?:"(?:[^"\\]|\\.)*"[^<>"]*)*)>(?: +(.*))?')
# One word: no quote, comma, colon or bracket may be in it, but those of an address literal.
_WORD = r'[^ <>",;:()\[\]\\@]+'
_BARE = re.compile(rf" *({_WORD}(?:@(?:\[[^ <>\[\]]*\]|{_WORD}))?)(?: +(.*))?")
# In a name without a domain these lead to another host, or are a parameter where the path was left out.
_NOT_IN_A_NAME = frozenset('%!:="@ ')


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read: the settings, whether the client may relay, and where to note what is forgiven."""

    settings: SessionSettings
    relays: bool
    kinds: Kinds


@dataclass(frozen=True, slots=True)
class _Path:
    """A path as it stood in a command, and the text of the parameters behind it."""

    text: str
    parameters: str
    bracketed: bool


def text_of(line: bytes, kinds: Kinds) -> str | None:
    """The text of a command line that has TABs, or is a greeting that is no UTF-8."""
    if b"\t" in line:
        spaced = _with_blanks(line)
        if spaced is None or not forgive(kinds, Leniency.BLANKS):
            return None
        line = spaced
    if _CONTROL_BUT_TAB.search(line) is not None:
        return None
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        if _HELLO.match(line) is None or not forgive(kinds, Leniency.HELO_NAME):
            return None
    # Its encoding is unknown. In Latin-1 some of its octets may be controls: they stay visible.
    text = line.decode("latin-1")
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _with_blanks(line: bytes) -> bytes | None:
    """The line with a blank for each TAB; None where one may be within quotes, and so part of an address."""
    return line.replace(b"\t", b" ") if _NO_TAB_IN_QUOTES.fullmatch(line) else None


def read_helo_name(argument: str, kinds: Kinds) -> str | None:
    """Any printable name; nothing is decided by it."""
    name = argument.strip(" ")
    if not name or len(name) > MAX_DOMAIN or not all(map(_is_printable, name)):
        return None
    forgive(kinds, Leniency.HELO_NAME)
    return name


def _is_printable(char: str) -> bool:
    # Python prints no other blanks than the ASCII one.
    return char.isprintable() or unicodedata.category(char) == "Zs"


def read_mail(argument: str, how: Reading) -> MailCommand | Reply | None:
    """MAIL, from behind the verb. A reply says why it is refused, although it can be read."""
    path = _path(_FROM, argument, how)
    if path is None:
        return None
    try:
        sender = parse_reverse_path(_completed(path.text, how) or path.text, how.kinds)
    except AddressSyntaxError:
        return None
    parameters = parse_mail_parameters(
        path.parameters, auth=how.settings.auth, kinds=how.kinds, unknown=_may_be_unknown(path)
    )
    if isinstance(parameters, Reply):
        return parameters
    # RFC 6531 §3.5
    if sender.needs_smtputf8 and not parameters.smtputf8:
        return NEEDS_SMTPUTF8
    return MailCommand(sender, parameters)


def read_rcpt(argument: str, how: Reading) -> Recipient | Reply | None:
    """RCPT, from behind the verb."""
    path = _path(_TO, argument, how)
    if path is None:
        return None
    completed = None if path.text.lower() == "postmaster" else _completed(path.text, how)
    try:
        address = parse_forward_path(completed or path.text, how.settings.postmaster_domain, how.kinds)
    except AddressSyntaxError:
        return None
    parameters = parse_rcpt_parameters(path.parameters, kinds=how.kinds, unknown=_may_be_unknown(path))
    if isinstance(parameters, Reply):
        return parameters
    return _recipient(address, parameters, path.text if completed else None)


def _recipient(address: Address, parameters: dict[str, object], written: str | None) -> Recipient:
    if written is not None and "orcpt" not in parameters:
        # RFC 3461 §5.2.1: a server may add the recipient as it was in the command, and a DSN shows that.
        parameters = {**parameters, "orcpt": f"rfc822;{written}"}
    return Recipient(address, **parameters)  # type: ignore[arg-type]


def _path(keyword: re.Pattern[str], argument: str, how: Reading) -> _Path | None:
    begun = keyword.match(argument)
    if begun is None:
        return None
    match = _BRACKETED.fullmatch(argument, begun.end())
    bracketed = match is not None
    if match is None:
        match = _BARE.fullmatch(argument, begun.end())
        if match is None:
            return None
        forgive(how.kinds, Leniency.NO_BRACKETS)
    text = match[1].strip(" ")
    if text != match[1] or " " in begun[0]:
        forgive(how.kinds, Leniency.BLANKS)
    return _Path(text, match[2] or "", bracketed)


def _completed(text: str, how: Reading) -> str | None:
    """A name with the domain of this host; None where it has one, or the client must not leave it out."""
    if not text or not how.relays or not text.isascii() or not _NOT_IN_A_NAME.isdisjoint(text):
        return None
    forgive(how.kinds, Leniency.NO_DOMAIN)
    return f"{text}@{how.settings.postmaster_domain}"


def _may_be_unknown(path: _Path) -> re.Pattern[str] | None:
    """The form of an unknown parameter that can't be a second address here; None: there is none."""
    if path.bracketed:
        return _ANY_WORD
    return _WORD_WITH_VALUE if "@" in path.text else None


_ANY_WORD = re.compile(r".*")
_WORD_WITH_VALUE = re.compile(r"[^=]+=.*")
