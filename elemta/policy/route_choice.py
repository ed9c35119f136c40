"""What a policy says about a route in :class:`~elemta.policy.verdicts.RouteTo`, read and checked."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

from elemta.config import AddressFamily, RouteTarget, RouteTLS, TargetKind, parse_target
from elemta.config.names import check_source
from elemta.config.target import is_loopback
from elemta.config.values import Unacceptable
from elemta.ip import IPAddress
from elemta.smtp.sasl import Credentials

SourceAddress = IPv4Address | IPv6Address | str

E = TypeVar("E", bound=enum.StrEnum)

_LONGEST_SHOWN = 200
_LONGEST_CREDENTIALS = 4096
_VERSIONS = {AddressFamily.IPV4: 4, AddressFamily.IPV6: 6}


@dataclass(frozen=True, slots=True)
class RouteChoice:
    """A route that a policy chose. Where something is None, it is as the route has it."""

    target: str
    tls: RouteTLS | None = None
    source: tuple[IPAddress, ...] | None = None
    credentials: Credentials | None = None
    family: AddressFamily | None = None

    @property
    def names_target_only(self) -> bool:
        """Whether it says nothing but where the mail goes."""
        return (self.tls, self.source, self.credentials, self.family) == (None, None, None, None)


def read_choice(
    target: object, tls: object, source: object, credentials: object, address_family: object
) -> RouteChoice:
    """The choice that these values of a RouteTo are.

    Raises Unacceptable, a ValueError: its text says what is wrong, and has nothing of the credentials.
    """
    parsed = _target(target)
    given = {"tls": tls, "source": source, "credentials": credentials, "address_family": address_family}
    for name, value in given.items():
        if value is not None and name not in parsed.kind.settings:
            raise Unacceptable(f"{name} of a RouteTo has no effect with {parsed.kind.words}")
    choice = RouteChoice(
        str(target),
        None if tls is None else _one_of(RouteTLS, "tls", tls),
        None if source is None else tuple(_source(source)),
        None if credentials is None else _credentials(credentials),
        None if address_family is None else _one_of(AddressFamily, "address_family", address_family),
    )
    _check_together(choice, parsed)
    return choice


def _target(target: object) -> RouteTarget:
    if not isinstance(target, str):
        raise Unacceptable("the target of a RouteTo is not a text")
    # What stands before an @ may be a password, and the text of an error goes to the log.
    shown = "..." if "@" in target else target[:_LONGEST_SHOWN]
    try:
        return parse_target(target)
    except ValueError as error:
        hint = " (credentials= takes them)" if "@" in target else ""
        raise Unacceptable(f"RouteTo with the target {shown!r}: {error}{hint}") from None


def _one_of(choices: type[E], name: str, value: object) -> E:
    if isinstance(value, str) and value in list(choices):
        return choices(value)
    allowed = ", ".join(choices)
    raise Unacceptable(f"{name} of a RouteTo is {str(value)[:_LONGEST_SHOWN]!r}: must be one of {allowed}")


def _source(source: object) -> Iterator[IPAddress]:
    if isinstance(source, str | IPv4Address | IPv6Address):
        source = (source,)
    if not isinstance(source, Sequence):
        raise Unacceptable("source of a RouteTo is neither an address nor a list of addresses")
    seen: list[int] = []
    for each in source:
        address = _address(each)
        if address.version in seen:
            raise Unacceptable(f"source of a RouteTo has two addresses of IPv{address.version}")
        seen.append(address.version)
        yield address


def _address(value: object) -> IPAddress:
    shown = f"source of a RouteTo has {str(value)[:_LONGEST_SHOWN]!r}"
    if not isinstance(value, str | IPv4Address | IPv6Address):
        raise Unacceptable(f"{shown}, which is no address")
    try:
        address = ip_address(value)
        check_source(address)
    except ValueError as error:
        raise Unacceptable(f"{shown}: {error}") from None
    return address


def _credentials(credentials: object) -> Credentials:
    words = "credentials of a RouteTo are not a pair of user and password"
    if isinstance(credentials, str):
        user, colon, password = credentials.partition(":")
        credentials = (user, password) if colon else ()
    if not isinstance(credentials, Sequence) or len(credentials) != 2:
        raise Unacceptable(words)
    user, password = credentials
    if not isinstance(user, str) or not isinstance(password, str | bytes):
        raise Unacceptable(words)
    try:
        name = user.encode()
        secret = password.encode() if isinstance(password, str) else password
    except UnicodeEncodeError:
        # Not with its cause: that has the text.
        raise Unacceptable("credentials of a RouteTo are no text in Unicode") from None
    if not name or not secret:
        raise Unacceptable("credentials of a RouteTo lack the user or the password")
    if len(name) + len(secret) > _LONGEST_CREDENTIALS:
        raise Unacceptable(f"credentials of a RouteTo are longer than {_LONGEST_CREDENTIALS} octets")
    # RFC 4616 §2: NUL parts the fields of PLAIN.
    if any(octet < 0x20 or octet == 0x7F for octet in name + secret):
        raise Unacceptable("credentials of a RouteTo have a control character")
    return Credentials(user, secret)


def _check_together(choice: RouteChoice, parsed: RouteTarget) -> None:
    """What a ``[[route]]`` may not say together either."""
    if choice.tls is RouteTLS.IMPLICIT and parsed.kind is TargetKind.MX:
        # RFC 5321 §4.5.4.2
        raise Unacceptable('tls of a RouteTo is "implicit", and mail exchangers begin in the clear')
    if choice.credentials is not None and choice.tls is RouteTLS.NONE and not is_loopback(parsed.host):
        raise Unacceptable('RouteTo has credentials, and tls = "none" would send the password in the clear')
    only = None if choice.family is None else _VERSIONS.get(choice.family)
    if only is not None and _version(parsed.host) not in (None, only):
        raise Unacceptable(
            f'address_family of a RouteTo is "{choice.family}", and {parsed.host} is not of this family'
        )


def _version(host: str) -> int | None:
    try:
        return ip_address(host).version
    except ValueError:
        return None
