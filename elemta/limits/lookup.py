"""Finds an identity, as an operator types it, in the limits that have such a one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address, ip_network

from elemta.address import NULL, Address, unquoted_local
from elemta.config import Identity
from elemta.limits.identity import (
    EVERYONE,
    JOINT,
    address_identity,
    domain_identity,
    host_identity,
    ip_identity,
    joined,
    name_identity,
    network_identity,
    null_sender_identity,
)
from elemta.limits.rules import Rule
from elemta.limits.store import Request

_DIGEST = "#"
_OF_A_MAILBOX = frozenset({Identity.SENDER, Identity.RECIPIENT})


Mailbox = Callable[[Address], Address]


def _as_written(address: Address) -> Address:
    return address


def requests_for(rules: Sequence[Rule], text: str, mailbox: Mailbox = _as_written) -> tuple[Request, ...]:
    """What to ask about ``text``, in the order of the rules: at most one request a limit.

    ``text`` is an identity, spelt in any way that means the same, the parts of a combination joined by
    ``|``, or ``*`` for what is counted for all; or the same behind the name of a limit and a colon.
    ``mailbox`` is that of the limiter: another tag means the same.
    """
    named = [rule for rule in rules if text.startswith(f"{rule.name}:")]
    if named:
        # Where one name begins with another and a colon, the longer one is meant.
        rule = max(named, key=lambda each: len(each.name))
        found = tuple(_requests([rule], text[len(rule.name) + 1 :], mailbox))
        # A limit may be called "2001".
        if found or _ip(text) is None:
            return found
    return tuple(_requests(rules, text, mailbox))


def _requests(rules: Sequence[Rule], text: str, mailbox: Mailbox) -> Iterator[Request]:
    for rule in rules:
        identity = _identity(rule.per, text.strip(), mailbox)
        if identity is not None:
            yield Request(rule.spec, identity)


def _identity(per: Sequence[Identity], text: str, mailbox: Mailbox) -> str | None:
    # A name may contain the joint.
    parts = [text] if len(per) == 1 else text.split(JOINT)
    if not per:
        return EVERYONE if text == EVERYONE else None
    if len(parts) != len(per):
        return None
    found = [_part(kind, part, mailbox) for kind, part in zip(per, parts, strict=True)]
    return None if None in found else joined(part for part in found if part is not None)


def _part(kind: Identity, text: str, mailbox: Mailbox) -> str | None:
    if text[:1] == _DIGEST:
        return text
    return _mailbox(text, mailbox) if kind in _OF_A_MAILBOX else _READ[kind](text)


def _ip(text: str) -> str | None:
    try:
        return ip_identity(ip_address(text))
    except ValueError:
        # IPv6 is counted by its /64, and shown so.
        return _network_of(text, (6,))


def _network(text: str) -> str | None:
    try:
        return network_identity(ip_address(text))
    except ValueError:
        return _network_of(text, (4, 6))


def _network_of(text: str, versions: Sequence[int]) -> str | None:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return None
    same = network.version in versions and network_identity(network.network_address) == str(network)
    return str(network) if same else None


def _mailbox(text: str, mailbox: Mailbox = _as_written) -> str | None:
    bare = text[1:-1] if text.startswith("<") and text.endswith(">") else text
    if not bare:
        return address_identity(NULL) if text else None
    local, at, domain = bare.rpartition("@")
    if local == address_identity(NULL):
        return null_sender_identity(Address("", domain))
    if not at or not local or not domain:
        return None
    return address_identity(mailbox(Address(unquoted_local(local), domain)))


def _domain(text: str) -> str | None:
    if text == "<>" or text.startswith("<>@"):
        return _mailbox(text)
    bare = text.removeprefix("@")
    return domain_identity(Address("", bare)) if bare and "@" not in bare else None


def _name(text: str) -> str | None:
    return name_identity(text) if text else None


def _host(text: str) -> str | None:
    return host_identity(text) if text else None


_READ: dict[Identity, Callable[[str], str | None]] = {
    Identity.IP: _ip,
    Identity.NETWORK: _network,
    Identity.USER: _name,
    Identity.HELO: _host,
    Identity.SENDER: _mailbox,
    Identity.SENDER_DOMAIN: _domain,
    Identity.RECIPIENT: _mailbox,
    Identity.RECIPIENT_DOMAIN: _domain,
    Identity.LISTENER: _name,
    Identity.DESTINATION: _host,
}
