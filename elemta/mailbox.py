"""The mailbox that an address is: the one key that relaying, aliases, limits, copies and Maildirs share."""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from elemta.address import Address

_MAX_DOMAIN = 255


# A few domains are in nearly every message, and each is asked for several times.
@functools.lru_cache(maxsize=4096)
def canonical_domain(domain: str) -> str:
    """The one form of all spellings of a domain: lower case, A-labels, no trailing dot.

    A label that IDNA can't encode keeps its lower case form, so it is equal only to itself. The address
    in a literal takes its shortest form. Never raises.
    """
    if domain.isascii() and not domain.endswith((".", "]")):
        return domain.lower()
    name = domain.removesuffix(".").lower()
    if name.startswith("[") and name.endswith("]"):
        return _canonical_literal(name)
    # The length is bounded first: a hostile label is costly to encode.
    if name.isascii() or len(name) > _MAX_DOMAIN:
        return name
    return ".".join(label if label.isascii() else _a_label(label) for label in name.split("."))


def _a_label(label: str) -> str:
    import idna  # noqa: PLC0415 - its tables are large, and most hosts never meet such a name

    try:
        # RFC 5891 §4.4, after the mapping of UTS 46 that users' spellings need
        return idna.encode(label, uts46=True).decode("ascii").lower()
    except idna.IDNAError:
        return label


def _canonical_literal(literal: str) -> str:
    # RFC 5321 §4.1.3
    inside = literal[1:-1]
    is_v6 = inside.startswith("ipv6:")
    try:
        address = ip_address(inside.removeprefix("ipv6:"))
    except ValueError:
        return literal
    if is_v6 != isinstance(address, IPv6Address):
        return literal
    return f"[ipv6:{address}]" if is_v6 else f"[{address}]"


def folded_local(local: str) -> str:
    """A local-part of a local domain, or a user name, in one form: its case does not matter."""
    return local.lower() if local.isascii() else unicodedata.normalize("NFC", local.lower())


def folded_address(local: str, domain: str) -> str:
    """``local@domain`` in the one form of all its spellings, for an address at a local domain."""
    return f"{folded_local(local)}@{canonical_domain(domain)}"


@dataclass(frozen=True, slots=True)
class MailboxKeys:
    """Finds the mailbox of an address.

    ``local`` are the local domains in canonical form. ``listed`` are addresses that are mailboxes as they
    stand, folded: one with the delimiter in it is no tagged address.
    """

    local: frozenset[str]
    delimiter: str = ""
    listed: frozenset[str] = frozenset()

    def is_local(self, domain: str) -> bool:
        """Whether mail for the domain ends here; case, IDNA spelling and a trailing dot don't matter."""
        return canonical_domain(domain) in self.local

    def split_tag(self, local: str) -> tuple[str, str]:
        """A local-part without its tag, and the tag with the delimiter before it ("" where there is none)."""
        if not self.delimiter:
            return local, ""
        # RFC 5233 §1: the user is what stands before the separator; an empty user is none.
        at = local.find(self.delimiter, 1)
        return (local, "") if at < 0 else (local[:at], local[at:])

    def mailbox(self, address: Address) -> Address:
        """The mailbox of an address, as the value that is equal for all addresses of one mailbox.

        At a local domain case and tag do not matter. Elsewhere only the other host knows what its
        local-parts mean (RFC 5321 §2.3.11), so they stay as they are. An address without a domain is local.
        """
        domain = canonical_domain(address.domain)
        if domain and domain not in self.local:
            return Address(address.local, domain)
        return self.mailbox_here(address)

    def mailbox_here(self, address: Address) -> Address:
        """The mailbox of an address whose mail is delivered on this host, whatever its domain."""
        domain = canonical_domain(address.domain)
        folded = folded_local(address.local)
        base, tag = self.split_tag(folded)
        if not tag or f"{folded}@{domain}" in self.listed:
            return Address(folded, domain)
        return Address(base, domain)
