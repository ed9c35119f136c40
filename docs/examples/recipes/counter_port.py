"""Counts messages, and tells the number to each client of a TCP port of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policy import (
    ILifecycle,
    IOutcomeObserver,
    IPolicyPlugin,
    Services,
    Session,
    Transaction,
    setting,
)


@dataclass(frozen=True)
class CounterPortOptions:
    """The keys of [policy.counter-port]."""

    port: int = setting(9999, "The TCP port on the loopback interface; 0 is any.", minimum=0, maximum=65535)


@implementer(ILifecycle, IOutcomeObserver)
class CounterPort:
    """The policy: opens its port before it is first asked, and hands it over at a reload."""

    def __init__(self, options: CounterPortOptions, services: Services) -> None:
        self._number = options.port
        self._reactor: Any = services.reactor
        self.port: IListeningPort | None = None
        self.count = 0
        self.factory = Factory.forProtocol(Protocol)
        self.factory.protocol = lambda: Teller(self)

    def start(self, predecessor: object | None) -> None:
        if isinstance(predecessor, CounterPort) and predecessor._number == self._number:
            # The same socket and the same number, so that no client finds the port closed.
            self.port, predecessor.port = predecessor.port, None
            self.factory, self.count = predecessor.factory, predecessor.count
            self.factory.protocol = lambda: Teller(self)
        if self.port is None:
            self.port = self._reactor.listenTCP(self._number, self.factory, interface="127.0.0.1")

    def stop(self) -> Deferred[None] | None:
        return self.port.stopListening() if self.port is not None else None

    def committed(self, session: Session, transaction: Transaction, queue_id: str) -> None:
        self.count += 1

    def refused(self, session: Session, transaction: Transaction) -> None:
        """Not counted."""

    def disconnected(self, session: Session) -> None:
        """Nothing to do."""


class Teller(Protocol):
    """Says the number, and closes."""

    def __init__(self, policy: CounterPort) -> None:
        self._policy = policy

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.transport.write(b"%d\r\n" % self._policy.count)
            self.transport.loseConnection()


@implementer(IPlugin, IPolicyPlugin)
class CounterPortPlugin:
    """Tells how many messages came."""

    name = "counter-port"
    contract = "2"
    options = CounterPortOptions

    def build(self, options: CounterPortOptions, services: Services) -> CounterPort:
        return CounterPort(options, services)
