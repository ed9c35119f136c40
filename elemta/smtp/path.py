"""Paths, mailboxes and domains as they stand in commands (RFC 5321 §4.1.2, RFC 6531 §3.3).

An address is taken for exactly what the grammar says: ``%``, ``!`` and a quoted ``@`` are letters of
the local-part, and the domain is what follows the one real ``@``. A source route is checked, dropped
and never looked at again, so it can't send a message anywhere.

A reader that is given a list of kinds forgives what :mod:`elemta.smtp.leniency` lists, and notes it there.
It reads all that the strict one reads, in the same way.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata

from elemta.address import NULL, Address
from elemta.errors import AddressSyntaxError
from elemta.smtp.leniency import Kinds, Leniency, forgive

# RFC 5321 §4.5.3.1.1, in octets
MAX_LOCAL_PART = 64
# RFC 5321 §4.5.3.1.2
MAX_DOMAIN = 255
# RFC 5321 §4.5.3.1.3: 256 with the angle brackets
MAX_PATH = 254
#: What is forgiven: a local-part of so many octets, and the path that it can make.
MAX_LONG_LOCAL_PART = 256
MAX_LONG_PATH = 512
# RFC 1035 §2.3.4
_MAX_LABEL = 63

# In all of these the next character decides how to go on, so that no input makes them slow.
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]"
# RFC 5321 §4.1.2 Dot-string; RFC 6531 §3.3 adds UTF8-non-ascii to atext
_DOT_STRING = re.compile(rf"{_ATEXT}+(?:\.{_ATEXT}+)*")
_DOTS_ANYWHERE = re.compile(rf"\.*{_ATEXT}+(?:\.+{_ATEXT}+)*\.*")
# RFC 5321 §4.1.2 Quoted-string; RFC 6531 §3.3 adds UTF8-non-ascii to qtextSMTP
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~\u0080-\U0010ffff]|\\[ -~])*)"@(.*)')
_QUOTED_PAIR = re.compile(r"\\(.)")
# RFC 5321 §4.1.2 Domain: letters, digits and hyphens inside labels
_LDH_DOMAIN = re.compile(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")
_LDHU_DOMAIN = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
# What nearly every address is: a Dot-string and a Domain in ASCII, without anything to forgive.
_ORDINARY = re.compile(
    r"([A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*)"
    r"@([A-Za-z0-9]+(?:[.-][A-Za-z0-9]+|--+[A-Za-z0-9]+)*)"
)
# No part of an address that is no longer is too long.
_MAX_ORDINARY = _MAX_LABEL
# RFC 5321 §4.1.2 A-d-l, with the colon that ends it
_AT_DOMAIN = r"@(?:\[[^\]]*\]|[^,:@\[\]]+)"
_SOURCE_ROUTE = re.compile(rf"({_AT_DOMAIN}(?:,{_AT_DOMAIN})*):")


def parse_address(text: str, kinds: Kinds | None = None) -> Address:
    """The mailbox that ``text`` is (no angle brackets); AddressSyntaxError when it is none."""
    ordinary = _ORDINARY.fullmatch(text) if len(text) <= _MAX_ORDINARY else None
    if ordinary is not None:
        return Address(ordinary[1], ordinary[2].lower())
    if len(text) > MAX_PATH or not text.isascii():
        _check_path(text, kinds)
    unquoted = False
    if text.startswith('"'):
        quoted = _QUOTED.fullmatch(text)
        if quoted is None:
            raise AddressSyntaxError("the quoted local-part is malformed")
        local, domain = _QUOTED_PAIR.sub(r"\1", quoted[1]), quoted[2]
    else:
        local, at, domain = text.partition("@")
        if not at:
            raise AddressSyntaxError("there is no domain")
        if _DOT_STRING.fullmatch(local) is None:
            unquoted = _DOTS_ANYWHERE.fullmatch(local) is not None
            if not unquoted or not forgive(kinds, Leniency.DOTS):
                raise AddressSyntaxError("the local-part is malformed")
    _check_local_part(local, kinds)
    return Address(local, parse_domain(domain, kinds), unquoted)


def parse_reverse_path(text: str, kinds: Kinds | None = None) -> Address:
    """The sender in what stood between ``<`` and ``>`` of MAIL; empty is the null reverse-path."""
    # RFC 5321 §4.5.5
    if not text:
        return NULL
    # Behind a source route nothing is forgiven: the more there is to read, the more ways there are.
    return parse_address(_without_route(text)) if text[0] == "@" else parse_address(text, kinds)


def parse_forward_path(text: str, postmaster_domain: str, kinds: Kinds | None = None) -> Address:
    """The recipient in what stood between ``<`` and ``>`` of RCPT; a bare postmaster is given a domain."""
    # RFC 5321 §4.1.1.3: <postmaster> without a domain, in any case, must be accepted.
    if len(text) == 10 and text.lower() == "postmaster":
        return Address("postmaster", postmaster_domain)
    return parse_address(_without_route(text)) if text[:1] == "@" else parse_address(text, kinds)


def parse_domain(text: str, kinds: Kinds | None = None) -> str:
    """The domain or address literal ``text`` in lower case, without a trailing dot."""
    if text.startswith("["):
        return _parse_literal(text)
    # A trailing dot is outside of RFC 5321 §4.1.2, yet names the same domain: it must not make another one.
    name = text.removesuffix(".")
    if not name.isascii():
        return _parse_international(name, kinds)
    if len(name) > MAX_DOMAIN:
        raise AddressSyntaxError(f"the domain is longer than {MAX_DOMAIN} octets")
    if not _is_ldh(name, kinds):
        raise AddressSyntaxError("the domain is malformed")
    if "-" in name or len(name) > _MAX_LABEL:
        for label in name.split("."):
            if label[0] == "-" or label[-1] == "-" or len(label) > _MAX_LABEL:
                raise AddressSyntaxError("a label of the domain is malformed")
    return name.lower()


def _is_ldh(name: str, kinds: Kinds | None) -> bool:
    """Whether the labels of a name have letters, digits and hyphens only; underscores are forgiven."""
    if _LDH_DOMAIN.fullmatch(name) is not None:
        return True
    return _LDHU_DOMAIN.fullmatch(name) is not None and forgive(kinds, Leniency.UNDERSCORE)


def _without_route(text: str) -> str:
    """What follows the source route with which ``text`` begins."""
    # RFC 5321 §4.1.1.3: servers accept the source route syntax and should ignore the route.
    # RFC 5321 §C
    if len(text) > MAX_PATH or not text.isascii():
        _check_path(text, None)
    route = _SOURCE_ROUTE.match(text)
    if route is None:
        raise AddressSyntaxError("the source route is malformed")
    for host in route[1].split(","):
        parse_domain(host[1:])
    return text[route.end() :]


def _check_path(text: str, kinds: Kinds | None) -> None:
    octets = _octets(text)
    if octets <= MAX_PATH:
        return
    if octets > MAX_LONG_PATH or not forgive(kinds, Leniency.LONG_LOCAL_PART):
        limit = MAX_PATH if kinds is None else MAX_LONG_PATH
        raise AddressSyntaxError(f"the path is longer than {limit} octets")


def _octets(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _check_local_part(local: str, kinds: Kinds | None) -> None:
    # An empty quoted local-part is grammatical, names no mailbox, and other servers read it as the null path.
    if not local:
        raise AddressSyntaxError("the local-part is empty")
    # C1 controls, invisible and direction-changing characters and surrogates have no place in a name.
    if not local.isascii() and not local.isprintable():
        raise AddressSyntaxError("the local-part has characters that can't be shown")
    octets = _octets(local)
    if octets <= MAX_LOCAL_PART:
        return
    if octets > MAX_LONG_LOCAL_PART or not forgive(kinds, Leniency.LONG_LOCAL_PART):
        limit = MAX_LOCAL_PART if kinds is None else MAX_LONG_LOCAL_PART
        raise AddressSyntaxError(f"the local-part is longer than {limit} octets")


def _parse_literal(text: str) -> str:
    # RFC 5321 §4.1.3
    inner = text[1:-1]
    if not text.endswith("]") or not inner.isascii():
        raise AddressSyntaxError("the address literal is malformed")
    try:
        if inner[:5].lower() == "ipv6:":
            if "%" in inner:
                raise AddressSyntaxError("an address literal has no zone")
            return f"[IPv6:{ipaddress.IPv6Address(inner[5:])}]"
        return f"[{ipaddress.IPv4Address(inner)}]"
    except ipaddress.AddressValueError as error:
        raise AddressSyntaxError("the address literal is malformed") from error


def _parse_international(name: str, kinds: Kinds | None) -> str:
    """A domain with U-labels, in lower case; near enough to RFC 5890 §2.3.2.1 to keep look-alike dots out."""
    lowered = name.lower()
    if _octets(lowered) > MAX_DOMAIN:
        raise AddressSyntaxError(f"the domain is longer than {MAX_DOMAIN} octets")
    for label in lowered.split("."):
        if not _is_u_label(label, kinds):
            raise AddressSyntaxError("a label of the domain is malformed")
    return lowered


def _is_u_label(label: str, kinds: Kinds | None) -> bool:
    if not label or label[0] == "-" or label[-1] == "-":
        return False
    if label.isascii():
        return len(label) <= _MAX_LABEL and _is_ldh(label, kinds)
    # RFC 5891 §4.2.1: normalised; RFC 5892 §2: letters, marks and digits, no compatibility forms.
    if unicodedata.normalize("NFKC", label) != label:
        return False
    if not all(char == "-" or unicodedata.category(char)[0] in "LMN" for char in label):
        return False
    # RFC 5890 §2.3.2.1: as an A-label it must fit, too
    return len("xn--") + len(label.encode("punycode")) <= _MAX_LABEL
