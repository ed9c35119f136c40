"""Connecting to a host that has several addresses: IPv6, then IPv4, with a short head start (RFC 8305)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain, zip_longest
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    TCPTimedOutError,
    TimeoutError,  # noqa: A004 - Twisted's name
)
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from elemta.delivery.client_protocol import NextHopConnection
from elemta.delivery.local_faults import all_local, fault_of
from elemta.dns.system_names import SystemNames
from elemta.errors import NoSuchDomain, ResolverTrouble
from elemta.ip import IPAddress
from elemta.outcome import LocalFault

# Addresses of one host that are tried.
MOST_ADDRESSES = 8

Make = Callable[[IPAddress], NextHopConnection]


class NextHopUnreachableError(Exception):
    """No connection could be made. The text says why not; ``silent``: for some address nothing answered.

    ``local`` is what may be wrong on this side, and ``by_terms`` says that the route itself allows none.
    """

    def __init__(
        self,
        text: str,
        *,
        silent: bool = False,
        local: LocalFault = LocalFault.NONE,
        by_terms: bool = False,
    ) -> None:
        super().__init__(text)
        self.silent = silent
        self.local = local
        self.by_terms = by_terms


def alternating(addresses: Sequence[IPAddress], *, ipv4_first: bool = False) -> list[IPAddress]:
    """The addresses in the order in which to try them: the kinds take turns, IPv6 first."""
    six = [address for address in addresses if isinstance(address, IPv6Address)]
    four = [address for address in addresses if isinstance(address, IPv4Address)]
    # RFC 8305 §4
    mixed = chain.from_iterable(zip_longest(four, six) if ipv4_first else zip_longest(six, four))
    return [address for address in mixed if address is not None][:MOST_ADDRESSES]


def _as_the_system_chooses(_: IPAddress) -> None:
    return None


class HappyEyeballs:
    """Connects to the first of some addresses that answers.

    ``addresses`` is what there is to try, in order; what was tried and what won is taken out of it, so
    that another race can go on with the rest. ``source`` gives the address that a connection comes from.
    """

    def __init__(
        self,
        reactor: Any,
        addresses: list[IPAddress],
        port: int,
        make: Make,
        *,
        timeout: float,
        head_start: float,
        source: Callable[[IPAddress], tuple[str, int] | None] = _as_the_system_chooses,
    ) -> None:
        self._reactor = reactor
        self._addresses = addresses
        self._left = list(addresses)
        self._port = port
        self._make = make
        self._timeout = timeout
        self._head_start = head_start
        self._source = source
        self._under_way: dict[IPAddress, Deferred[Any]] = {}
        self._errors: list[str] = []
        self._silent = False
        self._faults: list[LocalFault] = []
        self._timers: list[IDelayedCall] = []
        self._result: Deferred[NextHopConnection] = Deferred(lambda _: self._end())
        self._over = False

    def run(self) -> Deferred[NextHopConnection]:
        """The first connection. Fails with :class:`NextHopUnreachableError`; can be cancelled.

        All addresses together get twice the time that one has.
        """
        self._timers.append(self._reactor.callLater(2 * self._timeout, self._too_late))
        self._try_next()
        return self._result

    def _try_next(self) -> None:
        if self._over or not self._left:
            return
        address = self._left.pop(0)
        kind = TCP6ClientEndpoint if address.version == 6 else TCP4ClientEndpoint
        source = self._source(address)
        endpoint = kind(self._reactor, str(address), self._port, self._timeout, source)
        connecting = endpoint.connect(Factory.forProtocol(lambda: self._make(address)))
        self._under_way[address] = connecting
        if self._left:
            # RFC 8305 §5
            self._timers.append(self._reactor.callLater(self._head_start, self._try_next))
        connecting.addCallbacks(
            self._connected, self._failed, callbackArgs=(address,), errbackArgs=(address,)
        )

    def _connected(self, connection: NextHopConnection, address: IPAddress) -> None:
        self._under_way.pop(address, None)
        if self._over:
            connection.cut()
            return
        self._addresses.remove(address)
        self._end()
        self._result.callback(connection)

    def _failed(self, failure: Failure, address: IPAddress) -> None:
        self._under_way.pop(address, None)
        if self._over:
            return
        self._addresses.remove(address)
        self._silent = self._silent or failure.check(TimeoutError, TCPTimedOutError) is not None
        self._faults.append(fault_of(failure.value))
        self._errors.append(f"{address}: {reason_of(failure)}")
        if self._left:
            self._try_next()
        elif not self._under_way:
            self._give_up("; ".join(self._errors))

    def _too_late(self) -> None:
        self._addresses.clear()
        self._silent = True
        self._faults.append(LocalFault.NETWORK)
        self._give_up("; ".join([*self._errors, f"nothing answered within {2 * self._timeout:g} s"]))

    def _give_up(self, text: str) -> None:
        self._end()
        local = all_local(self._faults)
        self._result.errback(NextHopUnreachableError(text, silent=self._silent, local=local))

    def _end(self) -> None:
        self._over = True
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        for connecting in list(self._under_way.values()):
            connecting.cancel()


async def connect_unix(reactor: Any, path: str, connection: NextHopConnection, timeout: float) -> None:
    """Connect to a Unix socket; raises :class:`NextHopUnreachableError`."""
    endpoint = UNIXClientEndpoint(reactor, path, timeout)
    try:
        await endpoint.connect(Factory.forProtocol(lambda: connection))
    except (ConnectError, CancelledError, OSError) as error:
        local = fault_of(error) & LocalFault.SOCKETS
        raise NextHopUnreachableError(reason_of(Failure(error)), local=local) from error


async def look_up(reactor: Any, names: SystemNames, host: str, timeout: float) -> list[IPAddress]:
    """The addresses of a host as an operator named it; raises :class:`NextHopUnreachableError`."""
    try:
        return [ip_address(host)]
    except ValueError:
        pass
    looking = Deferred.fromCoroutine(names.addresses(host)).addTimeout(timeout, reactor)
    try:
        found = list(dict.fromkeys(await looking))
    except (NoSuchDomain, ResolverTrouble) as error:
        local = isinstance(error, ResolverTrouble) and error.local
        fault = LocalFault.NAMES if local else LocalFault.NONE
        raise NextHopUnreachableError(str(error), local=fault) from error
    except (OutOfTime, CancelledError) as error:
        text = f"the name could not be looked up within {timeout:g} s"
        raise NextHopUnreachableError(text, local=LocalFault.NAMES) from error
    if not found:
        raise NextHopUnreachableError("the name has no address")
    return found


def reason_of(failure: Failure) -> str:
    """Why a connection could not be made."""
    if failure.check(ConnectingCancelledError, CancelledError):
        return "given up"
    return str(failure.getErrorMessage()) or type(failure.value).__name__
