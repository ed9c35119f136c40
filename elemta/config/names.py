"""Checks of names in a configuration: host names, mail domains, and names that operators give."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from elemta.config.values import Unacceptable
from elemta.ip import is_ip_address

# RFC 5321 §4.1.2 Domain, with the lengths of RFC 1035 §2.3.4
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_GIVEN_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?")
_NODE_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]{0,253}[A-Za-z0-9])?")
# RFC 5321 §4.1.1.1 ehlo-keyword
_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_MAX_DOMAIN = 255
# RFC 5322 §3.2.3 atext without letters and digits, and without % and !, which name a next hop
_DELIMITERS = "+-_=#~*.&/$'^|{}?"


def is_host_name(text: str) -> bool:
    """Whether the text is a host name in ASCII, without a trailing dot."""
    return len(text) <= _MAX_DOMAIN and all(_HOST_LABEL.fullmatch(label) for label in text.split("."))


def is_remote_host(text: str) -> bool:
    """Whether the text names another host: an IP address, or a name that a resolver may know."""
    # An underscore is in no host name, but in names that container networks resolve.
    return is_ip_address(text) or is_host_name(text.replace("_", "a"))


def check_hostname(text: str) -> None:
    """Accept a host name in ASCII, or nothing."""
    if text and not is_host_name(text):
        problem = 'must be a host name such as "mx1.example.org" (letters, digits, hyphens and dots)'
        raise Unacceptable(problem, _as_host_name(text))


def check_node_id(text: str) -> None:
    """Accept what is safe in a key of Valkey and in a metric's label, or nothing."""
    if text and not _NODE_ID.fullmatch(text):
        raise Unacceptable('must be a short name such as "mx1" (letters, digits and "_.:-")')


def check_given_name(text: str) -> None:
    """Accept a name that an operator gave: it stands in keys, labels and logs."""
    if not _GIVEN_NAME.fullmatch(text):
        raise Unacceptable('must be a name of 1 to 64 letters, digits and "_.-", such as "mail-per-sender"')


def check_domain(text: str) -> None:
    """Accept a mail domain: a name in ASCII or Unicode, or an address literal in brackets."""
    if text.startswith("[") and text.endswith("]"):
        _check_literal(text)
    elif "@" in text:
        raise Unacceptable("must be a domain, not an address", f'did you mean "{text.rpartition("@")[2]}"?')
    elif "*" in text:
        raise Unacceptable('must be a domain such as "example.com"; there are no wildcards within a name')
    elif not _is_domain(text.removesuffix(".")):
        raise Unacceptable('must be a domain such as "example.com"')


def check_domain_or_any(text: str) -> None:
    """Accept a mail domain, or ``*`` for any."""
    if text != "*":
        check_domain(text)


def check_delimiter(text: str) -> None:
    """Accept one character that may part a tag from a local-part, or nothing."""
    if text and text not in tuple(_DELIMITERS):
        raise Unacceptable(f'must be one of {" ".join(_DELIMITERS)}, or ""')


def check_keyword(text: str) -> None:
    """Accept a keyword as servers offer it in their answer to EHLO."""
    if not _KEYWORD.fullmatch(text):
        raise Unacceptable('must be an EHLO keyword such as "CHUNKING"')


def check_source(address: IPv4Address | IPv6Address) -> None:
    """Accept an address that a connection can come from."""
    if address.is_unspecified or address.is_multicast:
        raise Unacceptable("must be an address of this host")


def _is_domain(text: str) -> bool:
    # An underscore is no host name, but mail domains with one exist.
    return len(text) <= _MAX_DOMAIN and all(
        _HOST_LABEL.fullmatch(label.replace("_", "a"))
        if label.isascii()
        else len(label) <= 63 and not any(char.isspace() or char in '/:;,<>()[]\\"' for char in label)
        for label in text.split(".")
    )


def _check_literal(text: str) -> None:
    # RFC 5321 §4.1.3
    inside = text[1:-1]
    try:
        if inside[:5].lower() == "ipv6:":
            IPv6Address(inside[5:])
        else:
            IPv4Address(inside)
    except AddressValueError:
        problem = 'must be an address literal such as "[192.0.2.1]" or "[IPv6:2001:db8::1]"'
        raise Unacceptable(problem) from None


def _as_host_name(text: str) -> str:
    if text.endswith(".") and is_host_name(text[:-1]):
        return f'did you mean "{text[:-1]}"?'
    if text.isascii():
        return ""
    import idna  # noqa: PLC0415 - only for names beyond ASCII

    try:
        return f'did you mean "{idna.encode(text, uts46=True).decode("ascii")}"?'
    except idna.IDNAError:
        return ""
