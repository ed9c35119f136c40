"""The domains of this host, the mailboxes that exist there, and the networks that may relay."""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from elemta.address import Address
from elemta.config import DomainsConfig, Network
from elemta.errors import ConfigError, Fault

_MAX_DOMAIN = 255
_MAX_LOCAL_PART = 64
_SPACES_AND_ANGLES = frozenset(" \t<>,;")
# Ways to write the next hop into a local-part: user%host, host!user, a quoted user@host, DECnet's host::user.
_ROUTING = frozenset("%!@:")


def canonical_domain(domain: str) -> str:
    """The one form of all spellings of a domain: lower case, A-labels, no trailing dot.

    A label that IDNA can't encode keeps its lower case form, so it is equal only to itself. The address
    in a literal takes its shortest form. Never raises.
    """
    if domain.isascii() and not domain.endswith((".", "]")):
        return domain.lower()
    return _canonical(domain)


@functools.lru_cache(maxsize=4096)
def _canonical(domain: str) -> str:
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


@dataclass(frozen=True, slots=True)
class Domains:
    """The local domains, and the networks that may relay.

    ``local`` are domains in any spelling; ``recipients`` are mailboxes (``local-part@domain``) and whole
    domains (``@domain``), or None where every address at a local domain exists; ``relay_from`` are the
    networks whose clients may send to any domain.
    """

    local: frozenset[str]
    recipients: frozenset[str] | None = None
    relay_from: tuple[Network, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "local", frozenset(canonical_domain(domain) for domain in self.local))
        if self.recipients is not None:
            canonical = frozenset(_canonical_entry(entry) for entry in self.recipients)
            object.__setattr__(self, "recipients", canonical)

    @classmethod
    def from_config(cls, config: DomainsConfig) -> Domains:
        """Make it from the ``[domains]`` table; reads the file of recipients (blocking).

        Raises ConfigError naming that file, and the line of everything in it that can't be used.
        """
        recipients = read_recipients(config.recipients) if config.recipients else None
        return cls(frozenset(config.local), recipients, config.relay_from)

    def is_local(self, domain: str) -> bool:
        """Whether mail for the domain ends here; case, IDNA spelling and a trailing dot don't matter."""
        return canonical_domain(domain) in self.local

    def ends_here(self, address: Address) -> bool:
        """Whether mail for the address goes no further than a local domain.

        A local-part that names a next hop (``user%host@``, ``host!user@``) does not, unless it is listed as
        a mailbox: a next hop that still reads it would relay what was taken for local.
        """
        if not self.is_local(address.domain):
            return False
        return not _routes_on(address.local) or self._is_listed(address)

    def has_mailbox(self, address: Address) -> bool:
        """Whether a mailbox exists at a local domain; case doesn't matter.

        Postmaster exists at every local domain, and without a domain.
        """
        domain = canonical_domain(address.domain)
        local_part = address.local.lower()
        # RFC 5321 §4.5.1
        if local_part == "postmaster" and (not domain or domain in self.local):
            return True
        if not local_part or domain not in self.local:
            return False
        if self.recipients is None:
            return True
        return f"{local_part}@{domain}" in self.recipients or f"@{domain}" in self.recipients

    def names(self, address: Address) -> bool:
        """Whether a local mailbox is named as one that exists: by ``recipients``, or as postmaster's."""
        named = self.recipients is not None or address.local.lower() == "postmaster"
        return named and self.has_mailbox(address)

    def _is_listed(self, address: Address) -> bool:
        if self.recipients is None:
            return False
        return f"{address.local.lower()}@{canonical_domain(address.domain)}" in self.recipients

    def may_relay(self, ip: str | IPv4Address | IPv6Address) -> bool:
        """Whether a client at this address may send to any domain; False for what is no IP address."""
        if isinstance(ip, str):
            try:
                ip = ip_address(ip)
            except ValueError:
                return False
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self.relay_from)


def _routes_on(local: str) -> bool:
    if not local.isascii():
        # A full-width sign is an ordinary one to a reader that normalises before it looks.
        local = unicodedata.normalize("NFKC", local)
    return not _ROUTING.isdisjoint(local)


def read_recipients(path: str) -> frozenset[str]:
    """The entries of a file with one address or ``@domain`` a line; ``#`` begins a comment.

    Raises ConfigError with every line that is neither, or when the file can't be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ConfigError([Fault(path, "", "is not UTF-8")]) from None
    except OSError as error:
        raise ConfigError([Fault(path, "", f"can't be read: {error.strerror or error}")]) from error
    entries: set[str] = set()
    faults = []
    for number, line in enumerate(lines, start=1):
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        entry = _entry(text)
        if entry is None:
            faults.append(_line_fault(path, number, text))
        else:
            entries.add(entry)
    if faults:
        raise ConfigError(faults)
    return frozenset(entries)


def _entry(text: str) -> str | None:
    """The canonical form of one line, or None for what is neither an address nor ``@domain``."""
    local_part, at, domain = text.rpartition("@")
    if local_part.startswith('"'):
        unquoted = _unquoted(local_part)
        if unquoted is None:
            return None
        local_part = unquoted
    elif "@" in local_part or not _SPACES_AND_ANGLES.isdisjoint(local_part):
        return None
    is_domain = domain and _SPACES_AND_ANGLES.isdisjoint(domain) and ".." not in domain and domain[0] != "."
    if not at or not is_domain or len(local_part.encode()) > _MAX_LOCAL_PART or len(domain) > _MAX_DOMAIN:
        return None
    return _canonical_entry(f"{local_part}@{domain}")


def _unquoted(text: str) -> str | None:
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


def _canonical_entry(entry: str) -> str:
    local_part, _, domain = entry.rpartition("@")
    return f"{local_part.lower()}@{canonical_domain(domain)}"


def _line_fault(path: str, number: int, text: str) -> Fault:
    shown = text if len(text) <= 80 else text[:77] + "..."
    hint = ""
    if "@" not in text:
        hint = f'did you mean "@{text}"?' if "." in text and " " not in text else ""
    elif len(text.split()) > 1:
        hint = "one a line"
    return Fault(path, f"line {number}", f'found "{shown}": must be an address or @domain', hint)
