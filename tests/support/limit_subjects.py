"""A session and a transaction, as far as limits look at them."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

from elemta.address import Address
from elemta.envelope import Recipient

CLIENT = ip_address("192.0.2.1")
SENDER = Address("jane", "example.org")


@dataclass
class Session:
    client_ip: IPv4Address | IPv6Address = CLIENT
    listener: str = "mx"
    helo: str = "client.example"
    user: str | None = None


@dataclass
class Transaction:
    sender: Address = SENDER
    recipients: list[Recipient] = field(default_factory=list)
    size: int = 0
