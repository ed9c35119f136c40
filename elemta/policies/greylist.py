"""The policy ``greylist``: a sender that is new here is asked to try again a little later (RFC 6647)."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policies.own_clients import is_exempt
from elemta.policy import (
    CONTINUE,
    ConfigError,
    Defer,
    DKIMResult,
    Fault,
    IMessagePolicy,
    IPolicyPlugin,
    IRcptPolicy,
    Message,
    Recipient,
    Services,
    Session,
    SPFResult,
    Transaction,
    Verdict,
    setting,
)

_DIGITS = re.compile(r"[0-9]+")
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
LONGEST = 366 * DAY
"""Seconds that the store keeps an entry."""


@dataclass(frozen=True, slots=True)
class GreylistOptions:
    """The keys of [policy.greylist]."""

    delay: float = setting(
        5 * MINUTE, "How long a new sender has to wait.", unit="seconds", minimum=1, maximum=LONGEST
    )
    within: float = setting(
        4 * HOUR, "When it has to have tried again.", unit="seconds", minimum=1, maximum=LONGEST
    )
    remember: float = setting(
        35 * DAY,
        "How long a sender that tried again is known after its last mail.",
        unit="seconds",
        minimum=1,
        maximum=LONGEST,
    )
    pass_with: tuple[str, ...] = setting(
        ("spf", "dkim"),
        "spf: a sender whose SPF result is pass never waits. dkim: nor does one whose domain signed "
        "a message from this network before; this needs mail-auth in front of it in the chain.",
        choices=("spf", "dkim"),
    )
    exempt: tuple[IPv4Network | IPv6Network, ...] = setting((), "Networks whose clients never wait.")


@implementer(IRcptPolicy, IMessagePolicy)
class GreylistPolicy:
    """Keeps what it knows in the store, so every node of the cluster knows it.

    No clock is compared: an entry that ends after ``delay`` says that it is too early, another one that ends
    after ``within`` says that the sender was here.
    """

    def __init__(self, options: GreylistOptions, services: Services) -> None:
        self._options = options
        self._services = services
        self._defer = Defer(
            f"Greylisted, try again in {_in_words(options.delay)}", code=451, enhanced="4.7.1"
        )
        self._check_spf = spf_checker(services) if "spf" in options.pass_with else None
        self._decided = services.metrics.counter(
            "decisions_total", "Recipients: new, early, passed, known, spf, exempt.", ("decision",)
        )

    async def rcpt(self, session: Session, transaction: Transaction, recipient: Recipient) -> Verdict:
        if is_exempt(session, self._services.domains, self._options.exempt):
            return self._count("exempt", CONTINUE)
        network, sender = network_of(session.client_ip), str(transaction.sender)
        store, options = self._services.store, self._options
        triple = f"{network}|{shape_of(sender)}|{str(recipient.address).lower()}"
        if await store.get(f"known:{triple}") or await self._signed_before(network, sender):
            await store.set(f"known:{triple}", b"1", ttl=options.remember)
            return self._count("known", CONTINUE)
        if self._check_spf is not None and await self._check_spf(session, transaction) == "pass":
            return self._count("spf", CONTINUE)
        if await store.set(f"seen:{triple}", b"1", ttl=options.within, only_if_absent=True):
            await store.set(f"wait:{triple}", b"1", ttl=options.delay)
            return self._count("new", self._defer)
        if await store.get(f"wait:{triple}"):
            return self._count("early", self._defer)
        await store.set(f"known:{triple}", b"1", ttl=options.remember)
        await store.delete(f"seen:{triple}")
        return self._count("passed", CONTINUE)

    async def message(self, session: Session, transaction: Transaction, message: Message) -> Verdict:  # noqa: ARG002
        sender = str(transaction.sender)
        if not sender or not self._vouched(transaction, sender):
            return CONTINUE
        if not is_exempt(session, self._services.domains, self._options.exempt):
            key = self._domain_key(network_of(session.client_ip), sender)
            await self._services.store.set(key, b"1", ttl=self._options.remember)
        return CONTINUE

    async def _signed_before(self, network: str, sender: str) -> bool:
        if "dkim" not in self._options.pass_with or not sender:
            return False
        return await self._services.store.get(self._domain_key(network, sender)) is not None

    def _vouched(self, transaction: Transaction, sender: str) -> bool:
        """Whether the sender's own domain signed the message, as ``mail-auth`` found out."""
        dkim = transaction.results.get(DKIMResult)
        domain = sender.rpartition("@")[2].lower()
        return "dkim" in self._options.pass_with and dkim is not None and domain in dkim.domains

    def _domain_key(self, network: str, sender: str) -> str:
        return f"domain:{network}|{sender.rpartition('@')[2].lower()}"

    def _count(self, decision: str, verdict: Verdict) -> Verdict:
        self._decided.labels(decision).inc()
        return verdict


SPFChecker = Callable[[Session, Transaction], Awaitable[str]]


def spf_checker(services: Services) -> SPFChecker | None:
    """Checks SPF before the message is there; None, and a record, where pyspf is not installed."""
    try:
        from elemta.policies.mail_auth.spf_lookup import SPFLookup  # noqa: PLC0415 - its library is optional
    except ImportError:
        services.log.info("pass_with spf has no effect: pyspf is not installed (elemta[mail-auth])")
        return None
    lookup = SPFLookup(services)

    async def check(session: Session, transaction: Transaction) -> str:
        known = transaction.results.get(SPFResult)
        return known.result if known is not None else (await lookup.check(session, transaction)).result

    return check


def _in_words(seconds: float) -> str:
    whole = math.ceil(seconds)
    return "1 second" if whole == 1 else f"{whole} seconds"


def network_of(ip: IPv4Address | IPv6Address) -> str:
    """The /24 or /64 of a client: large senders try again from another address of it."""
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    prefix = 64 if ip.version == 6 and mapped is None else 24
    return str(ip_network(f"{mapped or ip}/{prefix}", strict=False))


def shape_of(sender: str) -> str:
    """A sender whose numbers and tag do not matter: mailing lists number what they send (VERP)."""
    local, at, domain = sender.lower().rpartition("@")
    return _DIGITS.sub("#", local.partition("+")[0]) + at + domain


@implementer(IPlugin, IPolicyPlugin)
class GreylistPlugin:
    """Greylisting for the whole cluster."""

    name = "greylist"
    contract = "2"
    options = GreylistOptions

    def build(self, options: GreylistOptions, services: Services) -> GreylistPolicy:
        """Raises ConfigError where no sender could ever pass."""
        if options.delay >= options.within:
            raise ConfigError([Fault("", "delay", "must be shorter than within: no sender passes before it")])
        return GreylistPolicy(options, services)
