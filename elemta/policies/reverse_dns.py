"""The policy ``reverse-dns``: names of clients, HELO names and sender domains that DNS knows, or not."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from twisted.internet.defer import DeferredList, ensureDeferred
from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policies.own_clients import is_exempt
from elemta.policy import (
    CONTINUE,
    Defer,
    IMailPolicy,
    IPolicyPlugin,
    NoSuchDomain,
    Reject,
    ResolverTrouble,
    Services,
    Session,
    Transaction,
    Verdict,
    setting,
)

MAX_NAMES = 10  # names of one address that are looked up


@dataclass(frozen=True, slots=True)
class ReverseDnsOptions:
    """The keys of [policy.reverse-dns]."""

    require: tuple[str, ...] = setting(
        (),
        "What a sender must have: a name for its address (ptr), a name that leads back to the address "
        "(fcrdns), a HELO name (helo) or a sender domain (sender_domain) that DNS knows.",
        choices=("ptr", "fcrdns", "helo", "sender_domain"),
    )
    exempt: tuple[IPv4Network | IPv6Network, ...] = setting((), "Networks whose clients need none of these.")


@dataclass(frozen=True, slots=True)
class ReverseDnsResult:
    """What DNS knows. None where it did not say in time, or where there is nothing to ask."""

    names: tuple[str, ...]
    ptr: bool | None
    fcrdns: bool | None
    helo: bool | None
    sender_domain: bool | None


# RFC 7372 §3.3 (5.7.25), RFC 7505 §4.2 (5.7.27), RFC 3463 §3.2 (5.1.8)
REFUSALS = {
    "ptr": Reject("Your address has no name (PTR)", code=550, enhanced="5.7.25"),
    "fcrdns": Reject("The name of your address does not lead back to it", code=550, enhanced="5.7.25"),
    "helo": Reject("DNS does not know your HELO name", code=550, enhanced="5.7.1"),
    "sender_domain": Reject("DNS does not know the sender's domain", code=550, enhanced="5.1.8"),
}
UNSURE = {
    "ptr": Defer("DNS does not say what your address is called", code=450, enhanced="4.7.25"),
    "fcrdns": Defer("DNS does not say what your address is called", code=450, enhanced="4.7.25"),
    "helo": Defer("DNS does not answer for your HELO name", code=450, enhanced="4.7.1"),
    "sender_domain": Defer("DNS does not answer for the sender's domain", code=450, enhanced="4.1.8"),
}


@implementer(IMailPolicy)
class ReverseDnsPolicy:
    """Looks all up at MAIL, at the same time, and publishes the results."""

    def __init__(self, options: ReverseDnsOptions, services: Services) -> None:
        self._options = options
        self._services = services
        self._results = services.metrics.counter(
            "results_total", "Results by what was looked up: yes, no, unknown.", ("subject", "result")
        )

    async def mail(self, session: Session, transaction: Transaction) -> Verdict:
        if is_exempt(session, self._services.domains, self._options.exempt):
            return CONTINUE
        asked_names = ensureDeferred(self._names(session))
        asked_helo = ensureDeferred(self._knows(session.helo))
        asked_sender = ensureDeferred(self._knows(str(transaction.sender).rpartition("@")[2]))
        names, ptr, fcrdns = await asked_names
        helo, sender = await asked_helo, await asked_sender
        result = ReverseDnsResult(names, ptr, fcrdns, helo, sender)
        transaction.results.publish(result)
        for subject in REFUSALS:
            found = getattr(result, subject)
            self._results.labels(subject, {True: "yes", False: "no", None: "unknown"}[found]).inc()
        return self._verdict(result, has_sender=bool(str(transaction.sender)))

    def _verdict(self, result: ReverseDnsResult, *, has_sender: bool) -> Verdict:
        unsure: Verdict = CONTINUE
        for subject in self._options.require:
            if subject == "sender_domain" and not has_sender:
                continue
            found = getattr(result, subject)
            if found is False:
                return REFUSALS[subject]
            if found is None:
                unsure = UNSURE[subject]
        return unsure

    async def _names(self, session: Session) -> tuple[tuple[str, ...], bool | None, bool | None]:
        """The client's names, whether there are any, and whether one leads back (RFC 8601 §2.7.3)."""
        try:
            names = (await self._services.resolver.reverse(session.client_ip))[:MAX_NAMES]
        except NoSuchDomain:
            return (), False, False
        except ResolverTrouble:
            return (), None, None
        if not names:
            return (), False, False
        # At once: each wait for a dead zone takes nearly all of the time that is left.
        asked = [ensureDeferred(self._leads_back(name, session)) for name in names]
        answers = [found for fine, found in await DeferredList(asked, consumeErrors=True) if fine]
        return names, True, True if True in answers else None if None in answers else False

    async def _leads_back(self, name: str, session: Session) -> bool | None:
        try:
            return session.client_ip in await self._services.resolver.addresses(name)
        except NoSuchDomain:
            return False
        except ResolverTrouble:
            return None

    async def _knows(self, name: str) -> bool | None:
        """Whether a domain has an address or an exchanger for mail. RFC 5321 §2.3.5, §5.1."""
        if not name:
            return None
        if name.startswith("["):
            return _is_literal(name)
        resolver = self._services.resolver
        try:
            if await resolver.addresses(name):
                return True
            return any(exchanger.host for exchanger in await resolver.mail_exchangers(name))
        except NoSuchDomain:
            return False
        except ResolverTrouble:
            return None


def _is_literal(name: str) -> bool:
    # RFC 5321 §4.1.3
    words = name[1:-1]
    try:
        if words[:5].lower() == "ipv6:":
            IPv6Address(words[5:])
        else:
            IPv4Address(words)
    except ValueError:
        return False
    return name.endswith("]")


@implementer(IPlugin, IPolicyPlugin)
class ReverseDnsPlugin:
    """Asks DNS for the names of clients."""

    name = "reverse-dns"
    contract = "2"
    options = ReverseDnsOptions

    def build(self, options: ReverseDnsOptions, services: Services) -> ReverseDnsPolicy:
        return ReverseDnsPolicy(options, services)
