"""Postfix's policy delegation protocol (SMTPD_POLICY_README): octets in, requests out.

A request is lines of ``name=value`` and an empty line; an answer is ``action=…`` and an empty line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, ip_address

from elemta.address import Address
from elemta.envelope import Recipient
from elemta.errors import PolicyRequestError
from elemta.ip import IPAddress

MAX_REQUEST = 64 * 1024
"""Octets of one request, its empty line included."""

NO_ADDRESS = IPv4Address("0.0.0.0")
_MAX_ADDRESS = 100


@dataclass(frozen=True, slots=True)
class PolicyRequest:
    """What Postfix asks, in the words of the limits.

    It is what a limit reads of a session and of a transaction. ``client_ip`` is 0.0.0.0 where the request has
    none, as of a client that uses a Unix socket. ``sender`` is None where the request has no such attribute.
    """

    state: str
    instance: str
    client_ip: IPAddress
    listener: str
    helo: str
    user: str | None
    sender: Address | None
    recipient: Recipient | None
    size: int

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """The recipient, where there is one."""
        return () if self.recipient is None else (self.recipient,)


class RequestReader:
    """Takes octets and gives the attributes of each request that is whole."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    def __len__(self) -> int:
        """The octets that wait."""
        return len(self._buffer)

    def receive(self, data: bytes) -> None:
        """Take what arrived."""
        self._buffer += data

    def next_request(self) -> Mapping[str, str] | None:
        """The attributes of the next request; None where it is not whole yet.

        Raises :class:`PolicyRequestError` where it is too long, or no request.
        """
        end, length = self._end()
        if end < 0:
            if len(self._buffer) >= MAX_REQUEST:
                raise PolicyRequestError(f"the request is longer than {MAX_REQUEST} octets")
            self._searched = max(0, len(self._buffer) - 2)
            return None
        if end + length > MAX_REQUEST:
            raise PolicyRequestError(f"the request is longer than {MAX_REQUEST} octets")
        text = self._buffer[:end].decode("utf-8", "surrogateescape")
        del self._buffer[: end + length]
        self._searched = 0
        return _attributes(text)

    def _end(self) -> tuple[int, int]:
        """Where the first empty line begins, less the end of the line before, and its length with that."""
        buffer, searched = self._buffer, self._searched
        end = buffer.find(b"\n\n", searched)
        # Not what Postfix sends. What is behind an empty line is the next request's.
        with_cr = buffer.find(b"\n\r\n", searched, end if end >= 0 else len(buffer))
        return (with_cr, 3) if with_cr >= 0 else (end, 2)


def _attributes(text: str) -> Mapping[str, str]:
    lines = text.split("\n")
    try:
        attributes = dict([line.split("=", 1) for line in lines])
    except ValueError as error:
        raise PolicyRequestError("a line of the request is not name=value") from error
    if "" in attributes:
        raise PolicyRequestError("a line of the request is not name=value")
    if "\0" in text:  # SMTPD_POLICY_README: neither names nor values contain it
        raise PolicyRequestError("the request contains NUL")
    if len(attributes) != len(lines) or "\r" in text:
        # Not what Postfix sends. The first of several values counts.
        pairs = [line.removesuffix("\r").split("=", 1) for line in reversed(lines)]
        return dict(reversed(dict(pairs).items()))
    return attributes


def policy_request(attributes: Mapping[str, str], service: str) -> PolicyRequest:
    """The request that attributes describe. Raises :class:`PolicyRequestError` where one is invalid."""
    recipient = Address.of_words(attributes.get("recipient", ""))
    sender = attributes.get("sender")
    return PolicyRequest(
        state=attributes.get("protocol_state", "").upper(),
        instance=attributes.get("instance", ""),
        client_ip=_client_ip(attributes.get("client_address", "")),
        listener=service,
        helo=attributes.get("helo_name", ""),
        user=attributes.get("sasl_username") or None,
        sender=None if sender is None else Address.of_words(sender),
        recipient=Recipient(recipient) if recipient else None,
        size=_size(attributes.get("size", "")),
    )


def _client_ip(text: str) -> IPAddress:
    if not text or text == "unknown":
        return NO_ADDRESS
    if len(text) > _MAX_ADDRESS:
        raise PolicyRequestError("client_address is no address")
    try:
        return _address(text.partition("%")[0])
    except ValueError as error:
        raise PolicyRequestError("client_address is no address") from error


# To read one takes longer than to find it.
@lru_cache(maxsize=4096)
def _address(text: str) -> IPAddress:
    return ip_address(text)


def _size(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise PolicyRequestError("size is no number")
    return int(text)


def encode_answer(action: str) -> bytes:
    """An answer as it is sent."""
    return f"action={action}\n\n".encode("utf-8", "replace")
