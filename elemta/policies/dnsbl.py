"""The policy ``dnsbl``: DNS lists and allow-lists of client addresses, with weights (RFC 5782)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policies.option_checks import domain_faults, refuse
from elemta.policies.own_clients import is_exempt
from elemta.policy import (
    CONTINUE,
    REQUIRED,
    IConnectPolicy,
    IOutcomeObserver,
    IPolicyPlugin,
    IRcptPolicy,
    NoSuchDomain,
    Quarantine,
    Recipient,
    Reject,
    ResolverTrouble,
    Services,
    Session,
    Transaction,
    Verdict,
    setting,
)

# A list that refuses the question answers from here, for any client.
REFUSED = IPv4Network("127.255.255.0/24")
DEFAULT_ANSWERS = (IPv4Network("127.0.0.0/8"),)
LOOKUP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ListZone:
    """One [[policy.dnsbl.zone]]."""

    name: str = setting(REQUIRED, "Domain of the list, such as zen.spamhaus.org.")
    weight: int = setting(1, "Added to a client's score where it is listed; negative for allow-lists.")
    answers: tuple[IPv4Network | IPv6Network, ...] = setting(
        DEFAULT_ANSWERS, "Answers that count, as addresses or networks."
    )


@dataclass(frozen=True, slots=True)
class DnsblOptions:
    """The keys of [policy.dnsbl]."""

    zone: tuple[ListZone, ...] = setting((), "The lists.")
    reject_at: int = setting(
        5, "Recipients of clients with this score or a higher one are refused; 0 = never.", minimum=0
    )
    quarantine_at: int = setting(
        0, "Mail of clients with this score or a higher one is held; 0 = never.", minimum=0
    )
    exempt: tuple[IPv4Network | IPv6Network, ...] = setting((), "Networks whose clients are not looked up.")


@dataclass(frozen=True, slots=True)
class DnsblResult:
    """The score of a client, and the lists that have it."""

    score: int
    zones: tuple[str, ...]


@implementer(IConnectPolicy, IRcptPolicy, IOutcomeObserver)
class DnsblPolicy:
    """Asks every list once for each connection, while the conversation goes on; answers at RCPT."""

    def __init__(self, options: DnsblOptions, services: Services) -> None:
        self._options = options
        self._services = services
        self._answers = services.metrics.counter(
            "answers_total", "Answers of lists: listed, not_listed, refused, trouble.", ("zone", "result")
        )

    async def connected(self, session: Session) -> Verdict:
        """Begin to ask, and wait for nothing.

        A coroutine's lookups end within its policy's timeout, so at RCPT the answers are there in time.
        """
        if not is_exempt(session, self._services.domains, self._options.exempt):
            session.notes["score"] = ensureDeferred(self._score(session.client_ip))
        return CONTINUE

    async def rcpt(self, session: Session, transaction: Transaction, recipient: Recipient) -> Verdict:  # noqa: ARG002
        if session.user is not None or "score" not in session.notes:
            return CONTINUE
        found: DnsblResult = await _shared(session.notes["score"])
        if session.results.get(DnsblResult) is None:
            session.results.publish(found)
        if 0 < self._options.reject_at <= found.score:
            zones = self._against(found)
            return Reject(
                f"Your address {session.client_ip} is listed by {zones}", code=554, enhanced="5.7.1"
            )
        if 0 < self._options.quarantine_at <= found.score:
            return Quarantine(f"listed by {self._against(found)}")
        return CONTINUE

    def _against(self, found: DnsblResult) -> str:
        """The lists that speak against the client, each once; those that speak for it are left out."""
        against = {zone.name: None for zone in self._options.zone if zone.weight > 0}
        return ", ".join(name for name in against if name in found.zones)

    def committed(self, session: Session, transaction: Transaction, queue_id: str) -> None:
        """Nothing to do."""

    def refused(self, session: Session, transaction: Transaction) -> None:
        """Nothing to do."""

    def disconnected(self, session: Session) -> None:
        """No recipient waits for the answers any more."""
        waiting = session.notes.get("score")
        if waiting is not None:
            waiting.addErrback(lambda _: None)
            waiting.cancel()

    async def _score(self, ip: IPv4Address | IPv6Address) -> DnsblResult:
        zones = self._options.zone
        asked = DeferredList([ensureDeferred(self._listed(zone, ip)) for zone in zones], consumeErrors=True)
        results = await asked
        listed = [zone for zone, (fine, found) in zip(zones, results, strict=True) if fine and found]
        return DnsblResult(sum(zone.weight for zone in listed), tuple(zone.name for zone in listed))

    async def _listed(self, zone: ListZone, ip: IPv4Address | IPv6Address) -> bool:
        try:
            records = await self._services.resolver.records(
                question_name(ip, zone.name), "A", timeout=LOOKUP_SECONDS
            )
        except NoSuchDomain:
            records = ()
        except ResolverTrouble:
            self._answers.labels(zone.name, "trouble").inc()  # it weighs nothing
            return False
        answers = [ip_address(record) for record in records]
        listed = any(_counts(answer, zone) for answer in answers)
        refused = not listed and any(answer in REFUSED for answer in answers)
        self._answers.labels(zone.name, "listed" if listed else "refused" if refused else "not_listed").inc()
        return listed


async def _shared(result: Deferred[DnsblResult]) -> DnsblResult:
    """The result of a Deferred that several calls wait for, each in its own time."""
    mine: Deferred[DnsblResult] = Deferred()

    def give(value: DnsblResult) -> DnsblResult:
        if not mine.called:
            mine.callback(value)
        return value

    def fail(reason: object) -> object:
        if not mine.called:
            mine.errback(reason)  # type: ignore[arg-type]
        return None

    result.addCallbacks(give, fail)
    return await mine


def _counts(answer: IPv4Address | IPv6Address, zone: ListZone) -> bool:
    """Whether an answer counts. One that refuses the question counts only where it is named as such."""
    named = zone.answers
    if answer in REFUSED:
        named = tuple(each for each in named if each.version == 4 and REFUSED.supernet_of(each))
    return any(answer in network for network in named)


def question_name(ip: IPv4Address | IPv6Address, zone: str) -> str:
    """The name to look up: the address backwards, below the zone (RFC 5782 §2.1, §2.4)."""
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    backwards = (mapped or ip).reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")
    return f"{backwards}.{zone.strip('.')}"


@implementer(IPlugin, IPolicyPlugin)
class DnsblPlugin:
    """DNS lists of client addresses, with weights."""

    name = "dnsbl"
    contract = "2"
    options = DnsblOptions

    def build(self, options: DnsblOptions, services: Services) -> DnsblPolicy:
        """Raises ConfigError where a list has no name that can be looked up."""
        faults = [
            fault
            for number, zone in enumerate(options.zone, 1)
            for fault in domain_faults(f"zone[{number}].name", zone.name.removeprefix("."))
        ]
        refuse(faults)
        return DnsblPolicy(options, services)
