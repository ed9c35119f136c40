"""What may be wrong on this side when a destination can't be reached."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address

from twisted.internet.error import (
    ConnectError,
    NoRouteError,
    TCPTimedOutError,
    TimeoutError,  # noqa: A004 - Twisted's name
)

from elemta.outcome import LocalFault, Outcome, ReachedStage, Status


def of_route(fault: LocalFault) -> LocalFault:
    """The same fault for a next hop that a route names."""
    found = fault & LocalFault.SOCKETS
    if LocalFault.NETWORK in fault:
        found |= LocalFault.ROUTE_NETWORK
    if LocalFault.NAMES in fault:
        found |= LocalFault.ROUTE_NAMES
    return found


#: What works where a destination by ``mx:`` answers over a new connection.
WORKS_BY_MX = LocalFault.SOCKETS | LocalFault.NETWORK | LocalFault.NAMES
_WORKS_BY_ADDRESS = LocalFault.SOCKETS | LocalFault.ROUTE_NETWORK
_WORKS_BY_NAME = _WORKS_BY_ADDRESS | LocalFault.ROUTE_NAMES
#: What shows that name servers answer, unless they were asked before.
NAME_LOOKUPS = LocalFault.NAMES | LocalFault.ROUTE_NAMES
#: What a connection that is there already shows instead of each of those.
ON_A_KEPT_CONNECTION = {
    WORKS_BY_MX: LocalFault.NETWORK,
    _WORKS_BY_ADDRESS: LocalFault.ROUTE_NETWORK,
    _WORKS_BY_NAME: LocalFault.ROUTE_NETWORK,
    LocalFault.SOCKETS: LocalFault.NONE,
    LocalFault.NONE: LocalFault.NONE,
}

_SOCKETS = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EADDRNOTAVAIL,
        errno.EADDRINUSE,
    }
)
# The kernel's own word, or that of a router near or far: the error does not say which.
_NETWORK = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ETIMEDOUT, errno.EPERM, errno.EACCES}
)


def fault_of(error: BaseException | None) -> LocalFault:
    """What may be wrong here when connecting failed like this; NONE where the other side said something."""
    if isinstance(error, TimeoutError | TCPTimedOutError | NoRouteError):
        return LocalFault.NETWORK
    code = getattr(error, "osError", None) if isinstance(error, ConnectError) else None
    if isinstance(error, OSError):
        code = error.errno
    if code in _SOCKETS:
        return LocalFault.SOCKETS
    return LocalFault.NETWORK if code in _NETWORK else LocalFault.NONE


@lru_cache(maxsize=1024)
def works_by_host(host: str) -> LocalFault:
    """What works where the host of a route answers over a new connection; empty for a Unix socket."""
    try:
        is_here = not host or host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return _WORKS_BY_NAME
    return LocalFault.SOCKETS if is_here else _WORKS_BY_ADDRESS


def all_local(faults: Iterable[LocalFault]) -> LocalFault:
    """What may be wrong here when all of these failed; NONE if for any the other side said something."""
    together = LocalFault.NONE
    for fault in faults:
        if not fault:
            return LocalFault.NONE
        together |= fault
    return together


def lacking(outcomes: Iterable[Outcome]) -> LocalFault:
    """What may be wrong here, by the outcomes of an attempt; NONE if anything answered."""
    return all_local(
        LocalFault.NONE if outcome.reached is ReachedStage.ANSWERED else outcome.local for outcome in outcomes
    )


def working(outcomes: Iterable[Outcome]) -> LocalFault:
    """What an attempt shows to work here."""
    works = LocalFault.NONE
    for outcome in outcomes:
        if outcome.reached is ReachedStage.ANSWERED and outcome.local is not works:
            works |= outcome.local
    return works


# RFC 3463 §3.5: no answer in time, or a connection that was lost.
_BROKEN_OFF = "4.4.2"
# RFC 5321 §3.8: the server is going away.
_CLOSING = 421


def broke_off(outcomes: Iterable[Outcome]) -> bool:
    """Whether the next hop was there, and for no recipient was there any word about it or the message."""
    for outcome in outcomes:
        if outcome.status is not Status.DEFERRED:
            return False
        if outcome.code != _CLOSING and (outcome.code or outcome.enhanced != _BROKEN_OFF):
            return False
    return True
