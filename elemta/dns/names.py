"""Converts names for DNS and from DNS."""

from __future__ import annotations

import dns.name
import dns.reversename

from elemta.domains import canonical_domain
from elemta.errors import NoSuchDomain
from elemta.foreign_text import printable
from elemta.ip import IPAddress

# RFC 1035 §2.3.4: 255 octets on the wire, which has one for the length of each label and one for the root.
_LONGEST = 253
_LONGEST_LABEL = 63
_LONGEST_SHOWN = 80
_OF_HOSTS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


def canonical_name(text: str) -> str:
    """The name to ask for, from text in any spelling: A-labels, lower case, no trailing dot.

    Raises :class:`~elemta.errors.NoSuchDomain` for what can't be in DNS: characters that IDNA refuses,
    blanks and controls, a label that is empty or longer than 63 octets, a name longer than 253.
    """
    if len(text) > _LONGEST + 1:
        raise NoSuchDomain(f'no domain name is as long as "{_shown(text)}"')
    name = canonical_domain(text)
    labels = name.split(".")
    if len(name) > _LONGEST or not all(_is_label(label) for label in labels):
        raise NoSuchDomain(f'"{_shown(text)}" is not a domain name')
    return name


def reverse_name(address: IPAddress) -> str:
    """The name under which DNS knows the names of an address (RFC 1035 §3.5, RFC 3596 §2.5)."""
    return str(dns.reversename.from_address(str(address))).removesuffix(".").lower()


def zone_of(name: str) -> str:
    """About the zone that a canonical name is in, by its labels: what one owner answers for.

    ``example.org``, ``example.co.uk``; of addresses the network that is delegated at least, /16 or /48.
    """
    labels = name.split(".")
    if name.endswith(".in-addr.arpa"):
        return ".".join(labels[-4:])
    if name.endswith(".ip6.arpa"):
        return ".".join(labels[-14:])
    # A short second label is most often a registry's, as in co.uk.
    return ".".join(labels[-3:] if len(labels) > 2 and len(labels[-2]) <= 3 else labels[-2:])


def to_dns(name: str) -> dns.name.Name:
    """A canonical name as dnspython's. Never read from text, in which backslashes would mean something."""
    return dns.name.Name((*(label.encode("ascii") for label in name.split(".")), b""))


def host_name(name: dns.name.Name) -> str | None:
    """The text of a host's name that an answer has, or None for what no host can be named.

    Lower case, no trailing dot. Letters, digits, hyphens and (they exist) underscores only: it goes into logs
    and is compared with certificates.
    """
    labels = [label.decode("latin-1").lower() for label in name.labels]
    if not labels or labels.pop() or not labels:
        return None
    return ".".join(labels) if all(label and _OF_HOSTS.issuperset(label) for label in labels) else None


def _is_label(label: str) -> bool:
    return 0 < len(label) <= _LONGEST_LABEL and all("!" <= char <= "~" for char in label)


def _shown(text: str) -> str:
    shown = printable(text[: _LONGEST_SHOWN + 1])
    return shown if len(shown) <= _LONGEST_SHOWN else shown[: _LONGEST_SHOWN - 3] + "..."
