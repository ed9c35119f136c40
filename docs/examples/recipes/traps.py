"""A client that writes to a trap address is deferred for an hour, on every node of the fleet."""

from contextlib import suppress
from dataclasses import dataclass

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policy import (
    CONTINUE,
    Defer,
    IConnectPolicy,
    IPolicyPlugin,
    IRcptPolicy,
    Recipient,
    Reject,
    Services,
    Session,
    StoreUnavailable,
    Transaction,
    Verdict,
    setting,
)


@dataclass(frozen=True)
class TrapsOptions:
    """The keys of [policy.traps]."""

    addresses: tuple[str, ...] = setting((), "The trap addresses.")
    remember: float = setting(3600.0, "For how long a client is deferred.", unit="seconds", minimum=1)


@implementer(IConnectPolicy, IRcptPolicy)
class Traps:
    """The policy: keeps what it knows of a client in the store."""

    def __init__(self, options: TrapsOptions, services: Services) -> None:
        self._options = options
        self._store = services.store

    async def connected(self, session: Session) -> Verdict:
        try:
            hits = await self._store.get(f"hits:{session.client_ip}")
        except StoreUnavailable:
            return CONTINUE
        return Defer("please try again later") if hits else CONTINUE

    async def rcpt(self, session: Session, transaction: Transaction, recipient: Recipient) -> Verdict:
        if str(recipient) not in self._options.addresses:
            return CONTINUE
        with suppress(StoreUnavailable):  # this one is refused all the same
            await self._store.add(f"hits:{session.client_ip}", ttl=self._options.remember)
        return Reject("no such mailbox", enhanced="5.1.1")


@implementer(IPlugin, IPolicyPlugin)
class TrapsPlugin:
    """Defers clients that wrote to a trap."""

    name = "traps"
    contract = "2"
    options = TrapsOptions

    def build(self, options: TrapsOptions, services: Services) -> Traps:
        return Traps(options, services)
