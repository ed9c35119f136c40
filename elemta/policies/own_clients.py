"""Clients that a policy leaves alone: users, networks that may relay, and those that its options name."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

from elemta.policy import Domains, Session

Networks = Sequence[IPv4Network | IPv6Network]


def is_exempt(session: Session, domains: Domains, exempt: Networks = ()) -> bool:
    """Whether the client logged in, may relay anywhere, or is in one of ``exempt``."""
    ip = session.client_ip
    if session.user is not None or domains.may_relay(ip):
        return True
    return bool(exempt) and any(ip in network for network in exempt)
