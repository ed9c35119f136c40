"""What a client asks for, what a server offers, and the command lines that follow from both."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from elemta.address import Address
from elemta.envelope import BodyType, MailParameters, Notify, Recipient
from elemta.outcome import Attempt
from elemta.smtp.path import MAX_DOMAIN, MAX_LONG_LOCAL_PART

# A local-part of 256 characters that are all escaped, its quotes, and a domain.
_LONGEST_PATH = 2 * MAX_LONG_LOCAL_PART + 3 + MAX_DOMAIN
_UNSAFE_IN_PATH = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN_PATH = re.compile(rf"[ -~]{{0,{_LONGEST_PATH}}}")


@dataclass(frozen=True, slots=True)
class ClientTransaction:
    """One message for some recipients, as it is handed to a next hop.

    ``size`` is the octets of the content; ``utf8_header`` whether the header has octets beyond ASCII
    (RFC 6532), so that the next hop must know SMTPUTF8 or at least 8BITMIME.
    ``attempt`` makes the outcomes; its ``taken`` gets that of each recipient that the next hop took the
    message for, at its reply.
    """

    sender: Address
    recipients: tuple[Recipient, ...]
    parameters: MailParameters
    size: int
    utf8_header: bool = False
    attempt: Attempt = field(default_factory=Attempt, compare=False)

    def is_plain(self) -> bool:
        """Whether its addresses and its header can go to any server."""
        if self.utf8_header or not _is_plain(self.sender):
            return False
        for recipient in self.recipients:  # noqa: SIM110 - for each message: `all` makes a generator
            if not _is_plain(recipient.address):
                return False
        return True

    def wants_smtputf8(self, recipients: Iterable[Recipient]) -> bool:
        """Whether the message goes to these recipients by SMTPUTF8 where that is offered."""
        return (
            self.parameters.smtputf8
            or self.utf8_header
            or self.sender.needs_smtputf8
            or any(recipient.address.needs_smtputf8 for recipient in recipients)
        )


@dataclass(frozen=True, slots=True)
class Features:
    """What a server said to EHLO or LHLO: keywords in upper case, with parameters (RFC 5321 §4.1.1.1)."""

    keywords: dict[str, str] = field(default_factory=dict)
    #: The size limit that the server declares in octets; None where there is none (RFC 1870 §4).
    max_size: int | None = field(default=None, init=False, compare=False)

    def __post_init__(self) -> None:
        text = self.keywords.get("SIZE", "")
        if text.isascii() and text.isdigit() and len(text) <= 20:
            object.__setattr__(self, "max_size", int(text) or None)

    @classmethod
    def of(cls, lines: tuple[str, ...]) -> Features:
        """Read the lines of the reply; the first names the server only."""
        keywords: dict[str, str] = {}
        for line in lines[1:]:
            keyword, _, parameters = line.strip().partition(" ")
            keyword, parameters = keyword.upper(), parameters.strip()
            if keyword == "AUTH" or keyword.startswith("AUTH="):
                # Some servers have a line for each mechanism, or the form of before RFC 4954: "AUTH=LOGIN".
                mechanisms = keyword[5:], parameters, keywords.get("AUTH", "")
                keywords["AUTH"] = " ".join(each for each in mechanisms if each)
            else:
                keywords.setdefault(keyword, parameters)
        return cls(keywords)

    def without(self, keywords: Collection[str]) -> Features:
        """These without some that are not believed."""
        if not keywords or not any(keyword in self.keywords for keyword in keywords):
            return self
        return Features({each: text for each, text in self.keywords.items() if each not in keywords})

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.keywords

    @property
    def mechanisms(self) -> frozenset[str]:
        """The SASL mechanisms that the server offers (RFC 4954 §3)."""
        return frozenset(self.keywords.get("AUTH", "").upper().split())


def _is_plain(address: Address) -> bool:
    # It can stand in a command line, and does so in ASCII.
    return _PLAIN_PATH.fullmatch(str(address)) is not None


def is_sendable(address: Address) -> bool:
    """Whether an address can stand in a command line: no control character may ever get there."""
    text = str(address)
    return len(text) <= _LONGEST_PATH and not _UNSAFE_IN_PATH.search(text)


#: The words of the parameters that belong to a keyword, in a reply that says what it does not know.
_WORDS = {
    "SIZE": ("SIZE",),
    "8BITMIME": ("8BITMIME", "BODY"),
    "SMTPUTF8": ("SMTPUTF8",),
    "DSN": ("DSN", "RET", "ENVID", "NOTIFY", "ORCPT"),
}
_WORD = re.compile(r"[A-Z0-9]+")


def named_offers(text: str) -> frozenset[str]:
    """The keywords with parameters that a refusal names."""
    words = frozenset(_WORD.findall(text.upper()))
    return frozenset(keyword for keyword, own in _WORDS.items() if not words.isdisjoint(own))


def offers_used(line: bytes, path: Address) -> frozenset[str]:
    """The keywords whose parameters a command line has behind its path."""
    parameters = line.decode("utf-8").partition(f"<{path}>")[2].split()
    names = {word.partition("=")[0] for word in parameters}
    return frozenset(keyword for keyword, own in _WORDS.items() if not names.isdisjoint(own))


def mail_line(transaction: ClientTransaction, features: Features, *, smtputf8: bool) -> bytes:
    """MAIL with those of its parameters that the server offers to understand."""
    parameters, offered = transaction.parameters, features.keywords
    words = [f"MAIL FROM:<{transaction.sender}>"]
    if "SIZE" in offered:
        # RFC 1870 §5
        words.append(f"SIZE={transaction.size}")
    eight_bit = parameters.body is BodyType.EIGHT_BIT or smtputf8 or transaction.utf8_header
    if eight_bit and "8BITMIME" in offered:
        # RFC 6152 §2
        words.append("BODY=8BITMIME")
    if smtputf8:
        # RFC 6531 §3.4
        words.append("SMTPUTF8")
    if "DSN" in offered:
        # RFC 3461 §4.3, §4.4
        if parameters.ret is not None:
            words.append(f"RET={parameters.ret.value}")
        if parameters.envid and parameters.envid.isascii():
            words.append(f"ENVID={_xtext(parameters.envid)}")
    return (" ".join(words) + "\r\n").encode("utf-8")


def rcpt_line(recipient: Recipient, features: Features) -> bytes:
    """RCPT with the DSN parameters where the server offers DSN."""
    words = [f"RCPT TO:<{recipient.address}>"]
    if "DSN" in features.keywords:
        # RFC 3461 §4.1, §4.2
        if recipient.notify is not None:
            words.append(f"NOTIFY={_notify(recipient.notify)}")
        if recipient.orcpt and (original := _orcpt(recipient.orcpt)):
            words.append(f"ORCPT={original}")
    return (" ".join(words) + "\r\n").encode("utf-8")


def _notify(notify: Notify) -> str:
    names = [flag.name for flag in (Notify.SUCCESS, Notify.FAILURE, Notify.DELAY) if flag in notify]
    return ",".join(name for name in names if name) or "NEVER"


def _orcpt(orcpt: str) -> str:
    kind, semicolon, address = orcpt.partition(";")
    if not semicolon or not kind or not address or not kind.isascii() or not kind.isprintable():
        return ""
    if kind.lower() == "utf-8":
        return f"{kind};{_utf8_xtext(address)}"
    return f"{kind};{_xtext(address)}" if address.isascii() else ""


def _xtext(text: str) -> str:
    # RFC 3461 §4: everything but printable ASCII without "+" and "=" is written as "+" and two digits.
    return "".join(c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in text)


def _utf8_xtext(text: str) -> str:
    # RFC 6533 §3: the form that is ASCII, and so is right with and without SMTPUTF8.
    return "".join(c if "!" <= c <= "~" and c not in "+=\\" else f"\\x{{{ord(c):02X}}}" for c in text)
