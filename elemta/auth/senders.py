"""Which addresses are a user's own, by name, alias and the file ``[submission] sender_map``."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from elemta.address import Address
from elemta.address_files import parse_listed_address, read_lines, shortened, split_words
from elemta.auth.names import UnusableName, canonical_name
from elemta.config import SubmissionConfig
from elemta.domains import Domains
from elemta.errors import ConfigError, Fault
from elemta.mailbox import folded_address

_SYNTAX = "must be a user, a blank, and addresses with commas between"


@dataclass(frozen=True, slots=True)
class SenderAddresses:
    """The addresses that each user may send as.

    Those of ``anna`` are ``anna@`` each local domain, and that of ``anna@example.com`` is that one; with any
    tag, and with every alias that leads there. ``further`` are those that a file names: for each user folded
    addresses, and ``@domain`` for every address there.
    """

    domains: Domains
    further: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: SubmissionConfig, domains: Domains) -> SenderAddresses:
        """What the ``[submission]`` table says of it; reads the file of senders (blocking). ConfigError."""
        return cls(domains, read_sender_map(config.sender_map) if config.sender_map else {})

    def owns(self, user: str, address: Address) -> bool:
        """Whether the user may send as this address. The null sender belongs to every user."""
        if not address:
            return True
        if self.domains.leads_to(address, user):
            return True
        mailbox = self.domains.keys.mailbox_here(address)
        local, _, domain = user.rpartition("@")
        if domain and mailbox == self.domains.keys.mailbox_here(Address(local, domain)):
            # A domain that is not local; the host that has it may tell the spellings apart, users do not.
            return True
        further = self.further.get(_folded(user))
        return further is not None and not further.isdisjoint(
            (
                f"@{mailbox.domain}",
                folded_address(mailbox.local, mailbox.domain),
                folded_address(address.local, address.domain),
            )
        )


def read_sender_map(path: str) -> dict[str, frozenset[str]]:
    """The users of a file, each with addresses and ``@domain``.

    ConfigError: it can't be read, or has lines that can't be used.
    """
    found: dict[str, set[str]] = {}
    faults: list[Fault] = []
    for number, text in read_lines(path, "submission.sender_map"):
        words = split_words(text)
        if words is None or not words[1]:
            problem = f'found "{shortened(text)}": {_SYNTAX}'
            hint = "commas between the addresses" if len(text.split()) > 2 else ""
            faults.append(Fault(path, f"line {number}", problem, hint))
            continue
        user, addresses = words
        try:
            own = found.setdefault(canonical_name(user), set())
        except UnusableName as error:
            faults.append(Fault(path, f"line {number}", f'found "{shortened(user)}": {error}'))
            continue
        for word in addresses:
            address = parse_listed_address(word)
            if address is None:
                problem = f'found "{shortened(word)}": must be an address or @domain'
                faults.append(Fault(path, f"line {number}", problem))
            else:
                own.add(folded_address(address.local, address.domain))
    if faults:
        raise ConfigError(faults)
    return {user: frozenset(own) for user, own in found.items()}


def _folded(user: str) -> str:
    try:
        return canonical_name(user)
    except UnusableName:
        # A checker of another package may have such names.
        return unicodedata.normalize("NFC", user.lower())
