"""The domains of this host, the mailboxes and aliases that exist there, and the networks that may relay."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

from elemta.address import Address
from elemta.address_files import read_lines, shortened, unquoted
from elemta.aliases import Aliases, AliasLine, Way, read_aliases
from elemta.config import Config, DomainsConfig
from elemta.errors import ConfigError, Fault
from elemta.ip import IPNetwork
from elemta.mailbox import MailboxKeys, canonical_domain, folded_address

__all__ = ["MOST_TARGETS", "Domains", "canonical_domain", "read_recipients"]

MOST_TARGETS = 10_000
"""So many addresses of one alias are looked at where nothing asks for fewer."""

_MAX_DOMAIN = 255
# As much as a listener that is not strict takes.
_MAX_LOCAL_PART = 256
_SPACES_AND_ANGLES = frozenset(" \t<>,;")
# Ways to write the next hop into a local-part: user%host, host!user, a quoted user@host, DECnet's host::user.
_ROUTING = frozenset("%!@:")


@dataclass(frozen=True, slots=True)
class Domains:
    """The local domains, their mailboxes and aliases, and the networks that may relay.

    ``local`` are domains in any spelling; ``recipients`` are mailboxes (``local-part@domain``) and whole
    domains (``@domain``), or None where every address at a local domain exists; ``relay_from`` are the
    networks whose clients may send to any domain. ``delimiter`` parts a tag from a local-part ("": no
    tags), ``alias_lines`` are those of the file of aliases.
    """

    local: frozenset[str]
    recipients: frozenset[str] | None = None
    relay_from: tuple[IPNetwork, ...] = ()
    delimiter: str = ""
    alias_lines: tuple[AliasLine, ...] = ()
    keys: MailboxKeys = field(init=False, repr=False, compare=False)
    aliases: Aliases = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        local = frozenset(canonical_domain(domain) for domain in self.local)
        listed: frozenset[str] = frozenset()
        if self.recipients is not None:
            listed = frozenset(_canonical_entry(entry) for entry in self.recipients)
            object.__setattr__(self, "recipients", listed)
        keys = MailboxKeys(local, self.delimiter, listed)
        object.__setattr__(self, "local", local)
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "aliases", Aliases(keys, self.alias_lines))

    @classmethod
    def from_config(cls, config: DomainsConfig) -> Domains:
        """Make it from the ``[domains]`` table; reads the files of recipients and aliases (blocking).

        Raises ConfigError naming the files, and the line of everything in them that can't be used.
        """
        faults: list[Fault] = []
        recipients: frozenset[str] | None = None
        lines: tuple[AliasLine, ...] = ()
        try:
            recipients = read_recipients(config.recipients) if config.recipients else None
        except ConfigError as error:
            faults.extend(error.faults)
        domains = cls(frozenset(config.local), recipients, config.relay_from, config.recipient_delimiter)
        try:
            lines = read_aliases(config.aliases, domains.keys) if config.aliases else ()
        except ConfigError as error:
            faults.extend(error.faults)
        if faults:
            raise ConfigError(faults)
        return replace(domains, alias_lines=lines)

    def cautions(self, config: Config) -> tuple[Fault, ...]:
        """What is allowed in the files, and does not do what it seems to."""
        return tuple(self.aliases.cautions(config.domains.aliases, config.server.max_recipients))

    def is_local(self, domain: str) -> bool:
        """Whether mail for the domain ends here; case, IDNA spelling and a trailing dot don't matter."""
        return canonical_domain(domain) in self.local

    def mailbox(self, address: Address) -> Address:
        """The mailbox that an address is, as a value: equal for all spellings and tags of one mailbox."""
        return self.keys.mailbox(address)

    def expand(self, address: Address, most: int = MOST_TARGETS) -> tuple[Address, ...]:
        """Where mail for the address goes in the end: by its alias, or to itself.

        One address for each mailbox. Where there are more than ``most``, there are ``most + 1``.
        """
        return self.aliases.expand(address, most) if self.aliases.lines else (address,)

    def count_targets(self, address: Address, most: int) -> int:
        """How many addresses :meth:`expand` gives."""
        return self.aliases.count(address, most)

    def way(self, address: Address) -> Way | Address:
        """What is equal for two addresses whose mail goes the same way, tags apart."""
        return self.aliases.way(address) or self.mailbox(address)

    def leads_to(self, address: Address, user: str) -> bool:
        """Whether mail for the address reaches a mailbox of the user, directly or by aliases.

        The mailbox of ``anna`` is ``anna@`` any local domain, that of ``anna@example.com`` is that alone.
        """
        local, at, domain = user.rpartition("@")
        for each in map(self.mailbox, self.expand(address)):
            if at or each.domain in self.local:
                # At the domain of the mailbox: there the name of the user may be listed with the delimiter.
                wanted = Address(local, domain) if at else Address(user, each.domain)
                if each == self.mailbox(wanted):
                    return True
        return False

    def ends_here(self, address: Address) -> bool:
        """Whether it is no relaying to take mail for the address: its domain is local.

        A local-part that names a next hop (``user%host@``, ``host!user@``) is relaying, unless it is listed
        as a mailbox or an alias: a next hop that still reads it would relay what was taken for local.
        """
        if not self.is_local(address.domain):
            return False
        return not _routes_on(address.local) or self._is_listed(address)

    def has_mailbox(self, address: Address) -> bool:
        """Whether an address at a local domain exists: as a mailbox, or as an alias of one that exists.

        Postmaster exists at every local domain, and without a domain. A target at another domain exists.
        """
        if not self.is_local(address.domain):
            return not address.domain and address.local.lower() == "postmaster"
        if not self.aliases.lines:
            return bool(address.local) if self.recipients is None else self.is_mailbox(address)
        return any(
            self.is_mailbox(each) if self.is_local(each.domain) else True for each in self.expand(address)
        )

    def is_mailbox(self, address: Address) -> bool:
        """Whether the address itself is a mailbox at a local domain, whatever its alias is."""
        if not address.local or not self.is_local(address.domain):
            return False
        if self.recipients is None:
            return True
        mailbox = self.mailbox(address)
        # RFC 5321 §4.5.1
        if mailbox.local == "postmaster":
            return True
        listed = {f"{mailbox.local}@{mailbox.domain}", f"@{mailbox.domain}"}
        return not self.recipients.isdisjoint(listed) or self.aliases.leads_to(mailbox)

    def names(self, address: Address) -> bool:
        """Whether a local mailbox is named as one that exists: by a file, or as postmaster's."""
        mailbox = self.mailbox(address)
        if self.recipients is None and mailbox.local != "postmaster" and not self.aliases.leads_to(mailbox):
            return False
        return self.is_mailbox(address)

    def _is_listed(self, address: Address) -> bool:
        folded = folded_address(address.local, address.domain)
        return folded in self.keys.listed or self.aliases.names(address)

    def may_relay(self, ip: str | IPv4Address | IPv6Address) -> bool:
        """Whether a client at this address may send to any domain; False for what is no IP address."""
        if not self.relay_from:
            return False
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
    entries: set[str] = set()
    faults = []
    for number, text in read_lines(path, "domains.recipients"):
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
        inside = unquoted(local_part)
        if inside is None:
            return None
        local_part = inside
    elif "@" in local_part or not _SPACES_AND_ANGLES.isdisjoint(local_part):
        return None
    is_domain = domain and _SPACES_AND_ANGLES.isdisjoint(domain) and ".." not in domain and domain[0] != "."
    if not at or not is_domain or len(local_part.encode()) > _MAX_LOCAL_PART or len(domain) > _MAX_DOMAIN:
        return None
    return _canonical_entry(f"{local_part}@{domain}")


def _canonical_entry(entry: str) -> str:
    local_part, _, domain = entry.rpartition("@")
    return folded_address(local_part, domain)


def _line_fault(path: str, number: int, text: str) -> Fault:
    hint = ""
    if "@" not in text:
        hint = f'did you mean "@{text}"?' if "." in text and " " not in text else ""
    elif len(text.split()) > 1:
        hint = "one a line"
    return Fault(path, f"line {number}", f'found "{shortened(text)}": must be an address or @domain', hint)
