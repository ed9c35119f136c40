"""The limits of a configuration as rules: what each counts, per what, and at which stage it is charged.

A rule is charged at the earliest stage where both what it counts and all that it counts per are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from elemta.address import NULL, Address
from elemta.config import (
    AuthConfig,
    Counts,
    Identity,
    LimitConfig,
    Mode,
    OnExceed,
    Rate,
    ResourcesConfig,
    Scope,
    WhenValkeyIsDown,
)
from elemta.config.values import parse_rate
from elemta.envelope import Recipient
from elemta.errors import ConfigError, Fault
from elemta.ip import IPAddress
from elemta.limits.identity import (
    JOINT,
    Exceptions,
    address_identity,
    domain_identity,
    host_identity,
    ip_identity,
    joined,
    name_identity,
    network_identity,
    null_sender_identity,
)
from elemta.limits.known_logins import LoginHistory
from elemta.limits.store import LimitSpec, Request
from elemta.limits.window import Bound
from elemta.stage import Stage
from elemta.value_type import value_type

RATE_PER_IP = "ip"
CONNECTIONS_PER_IP = "connections-per-ip"
GUESSES_PER_USER = "guesses-per-user"
GUESSES_PER_NETWORK = "guesses-per-network"
GUESSES_PER_KNOWN_CLIENT = "guesses-per-known-client"
_MICROSECONDS = 1_000_000


class SessionLike(Protocol):
    """What a rule reads of a session; the views that policies get have it."""

    @property
    def client_ip(self) -> IPAddress: ...
    @property
    def listener(self) -> str: ...
    @property
    def helo(self) -> str: ...
    @property
    def user(self) -> str | None: ...


class TransactionLike(Protocol):
    """What a rule reads of a transaction. ``sender`` is None where another server did not say it."""

    @property
    def sender(self) -> Address | None: ...
    @property
    def recipients(self) -> Sequence[Recipient]: ...
    @property
    def size(self) -> int: ...


def _as_written(address: Address) -> Address:
    return address


@value_type
class Subject:
    """The subject of a charge: the session, and what of a transaction there is at the stage.

    ``mailbox`` gives the mailbox that an address is: another tag is no other identity.
    """

    session: SessionLike
    transaction: TransactionLike | None = None
    recipient: Recipient | None = None
    mailbox: Callable[[Address], Address] = _as_written

    @property
    def of_null_sender(self) -> bool:
        """Whether it is about mail of the null sender."""
        return self.transaction is not None and self.transaction.sender == NULL


@dataclass(frozen=True, slots=True)
class OutboundCharge:
    """What a charge on the way out is about: a transaction with a destination, or a connection to it.

    ``destination`` is the recipients' domain where mail goes by MX, else the name of the next hop. Of a
    transaction there are the sender, the user that handed the message in, and the recipients that go
    together; ``client_ip`` is where it came from, for exceptions (None: not known).
    """

    destination: str
    sender: Address = NULL
    user: str | None = None
    recipients: Sequence[Recipient] = ()
    client_ip: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class LoginAttempt:
    """A session as though it were the user that tries to log in."""

    client_ip: IPAddress
    listener: str
    helo: str
    user: str | None


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit. ``stage`` is None for what is charged by no stage: failed logins, refusals, what goes out.

    ``standings`` says of a limit of failed logins whose attempts it counts.
    """

    spec: LimitSpec
    per: tuple[Identity, ...]
    counts: Counts
    stage: Stage | None
    on_exceed: OnExceed = OnExceed.DEFER
    when_valkey_is_down: WhenValkeyIsDown = WhenValkeyIsDown.LOCAL
    mode: Mode = Mode.ENFORCE
    exceptions: Exceptions = field(default_factory=Exceptions)
    standings: frozenset[LoginHistory] = frozenset(LoginHistory)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def rates(self) -> tuple[Rate, ...]:
        """Its rates as a configuration has them."""
        return rates_of(self.spec)

    @property
    def stage_of_null_sender(self) -> Stage | None:
        """The stage for mail of the null sender: a limit per sender counts it per recipient domain."""
        if self.stage is Stage.MAIL and not _OF_SENDER.isdisjoint(self.per):
            return Stage.RCPT
        return self.stage

    @property
    def once(self) -> bool:
        """Whether an identity is charged only once in a session or transaction, however often it is met.

        A connection is one connection, and a message to three recipients in one domain is one message to it.
        """
        return self.counts not in (Counts.RECIPIENTS, Counts.BYTES)

    @property
    def is_outbound(self) -> bool:
        """Whether it is charged on the way out, and nowhere else."""
        return Identity.DESTINATION in self.per

    def exempts(self, identity: str, client: IPAddress | None) -> bool:
        """Whether an identity of this limit is an exception, or a client at this address is."""
        exceptions = self.exceptions
        if client is not None and exceptions.cover(client):
            return True
        return exceptions.any and any(exceptions.name(part) for part in identity.split(JOINT))

    def outbound_requests(self, outbound: OutboundCharge) -> list[Request]:
        """What to ask of the store on the way out; per recipient domain one for each. Never a key twice."""
        ip = outbound.client_ip
        if ip is not None and self.exceptions and self.exceptions.cover(ip):
            return []
        identities = [""]
        for identity in self.per:
            parts = [part for part in _OUT[identity](outbound) if not self.exceptions.name(part)]
            identities = [joined((*filter(None, [so_far]), part)) for so_far in identities for part in parts]
        return [Request(self.spec, identity) for identity in dict.fromkeys(identities)]

    def requests(self, subject: Subject) -> list[Request]:
        """What to ask of the store; nothing where the rule does not apply. Never the same key twice."""
        if subject.transaction is None and not self.exceptions.any:
            identity = self._identity(subject)
            return [] if identity is None or self.counts is Counts.BYTES else [Request(self.spec, identity)]
        identities = self._identities(subject)
        if not identities:
            return []
        amount = 1
        if self.counts is Counts.BYTES:
            amount = 0 if subject.transaction is None else subject.transaction.size
            if amount <= 0:
                return []
        return [Request(self.spec, identity, amount) for identity in identities]

    def _identities(self, subject: Subject) -> Sequence[str]:
        if self.exceptions.any and self.exceptions.cover(subject.session.client_ip):
            return ()
        about = subject.transaction
        if about is not None and subject.recipient is None and self._needs_recipient(subject):
            each = (replace(subject, recipient=recipient) for recipient in about.recipients)
            return list(dict.fromkeys(found for one in each if (found := self._identity(one)) is not None))
        identity = self._identity(subject)
        return () if identity is None else (identity,)

    def _needs_recipient(self, subject: Subject) -> bool:
        return not _PER_RECIPIENT.isdisjoint(self.per) or (
            subject.of_null_sender and not _OF_SENDER.isdisjoint(self.per)
        )

    def _identity(self, subject: Subject) -> str | None:
        parts = []
        for identity in self.per:
            part = _PARTS[identity](subject)
            if part is None or (self.exceptions.any and self.exceptions.name(part)):
                return None
            parts.append(part)
        return parts[0] if len(parts) == 1 else joined(parts)


def rules_from_config(
    resources: ResourcesConfig, limits: Sequence[LimitConfig], auth: AuthConfig | None = None
) -> tuple[Rule, ...]:
    """The limits of ``[resources]``, of ``[auth]`` where it is given, and those of ``[[limit]]``.

    ``auth`` is for a configuration in which users log in, to submit mail or to the console.

    The configuration has checked that names are not taken and that rates fit what is counted.
    """
    guesses = _guesses(auth) if auth is not None else ()
    return (*_built_in(resources), *guesses, *(_rule(limit) for limit in limits))


def rates_of(spec: LimitSpec) -> tuple[Rate, ...]:
    """The rates of a limit, or those of an override of it, as a configuration has them."""
    if spec.leases is not None:
        return (Rate(spec.leases),)
    return tuple(Rate(bound.limit, bound.window / _MICROSECONDS) for bound in spec.bounds)


def stage_of(counts: Counts, per: Sequence[Identity]) -> Stage | None:
    """The earliest stage where what is counted and all identities are known; None if it is no stage."""
    if counts in (Counts.AUTH_FAILURES, Counts.REFUSALS) or Identity.DESTINATION in per:
        return None
    known = [_COUNTED_AT[counts], *(_KNOWN_AT[identity] for identity in per)]
    return max(known, key=_ORDER.index)


def _built_in(resources: ResourcesConfig) -> list[Rule]:
    rules = []
    if resources.max_requests_per_window:
        window = _microseconds(resources.rate_limit_window)
        bounds = (Bound.of(resources.max_requests_per_window, window),)
        spec = LimitSpec(RATE_PER_IP, bounds, of_session=True)
        rules.append(Rule(spec, (Identity.IP,), Counts.CONNECTIONS, Stage.CONNECT))
    if resources.max_connections_per_ip:
        leases = resources.max_connections_per_ip
        spec = LimitSpec(CONNECTIONS_PER_IP, leases=leases, of_session=True)
        rules.append(Rule(spec, (Identity.IP,), Counts.OPEN_CONNECTIONS, Stage.CONNECT))
    return rules


def _guesses(auth: AuthConfig) -> Iterator[Rule]:
    """The limits of ``[auth]``.

    One user in one network is counted apart, but for the addresses from which it logged in before: there it
    has counts of its own, so that no other client of the network can use them up.
    """
    if auth.guesses_per_user:
        per_user = parse_rate(auth.guesses_per_user)
        elsewhere = frozenset({LoginHistory.UNKNOWN, LoginHistory.KNOWN_NETWORK})
        yield _guess_rule(GUESSES_PER_USER, per_user, (Identity.USER, Identity.NETWORK), elsewhere)
        known = frozenset({LoginHistory.KNOWN_ADDRESS})
        yield _guess_rule(GUESSES_PER_KNOWN_CLIENT, per_user, (Identity.USER, Identity.IP), known)
    if auth.guesses_per_network:
        rate, unknown = parse_rate(auth.guesses_per_network), frozenset({LoginHistory.UNKNOWN})
        yield _guess_rule(GUESSES_PER_NETWORK, rate, (Identity.NETWORK,), unknown)


def _guess_rule(name: str, rate: Rate, per: tuple[Identity, ...], standings: frozenset[LoginHistory]) -> Rule:
    spec = LimitSpec(name, (bound_of(name, rate, weighted=False),))
    return Rule(spec, per, Counts.AUTH_FAILURES, None, standings=standings)


def _rule(limit: LimitConfig) -> Rule:
    leases = limit.counts is Counts.OPEN_CONNECTIONS
    weighted = limit.counts is Counts.BYTES
    spec = LimitSpec(
        name=limit.name,
        bounds=() if leases else tuple(bound_of(limit.name, rate, weighted=weighted) for rate in limit.rates),
        leases=min(rate.limit for rate in limit.rates) if leases else None,
        binding=limit.mode is Mode.ENFORCE,
        cluster=limit.scope is Scope.CLUSTER,
        of_session=limit.counts in _OF_SESSION,
        when_down=limit.when_valkey_is_down,
    )
    return Rule(
        spec=spec,
        per=tuple(limit.per),
        counts=limit.counts,
        stage=stage_of(limit.counts, limit.per),
        on_exceed=limit.on_exceed,
        when_valkey_is_down=limit.when_valkey_is_down,
        mode=limit.mode,
        exceptions=Exceptions(limit.except_),
    )


def bound_of(name: str, rate: Rate, *, weighted: bool) -> Bound:
    """The bound of a rate of the limit ``name``; ``weighted`` for amounts such as bytes.

    Raises :class:`~elemta.errors.ConfigError` where the rate has no window.
    """
    if rate.seconds is None:
        problem = f'found "{rate}": must have a window, such as "{rate}/1m"'
        raise ConfigError([Fault("configuration", f"limit {name}: rates", problem)])
    return Bound.of(rate.limit, _microseconds(rate.seconds), weighted=weighted)


def _microseconds(seconds: float) -> int:
    return max(1, round(seconds * _MICROSECONDS))


def _helo(subject: Subject) -> str | None:
    helo = subject.session.helo
    return host_identity(helo) if helo else None


def _user(subject: Subject) -> str | None:
    user = subject.session.user
    return None if user is None else name_identity(user)


def _mail_from(transaction: TransactionLike) -> Address | None:
    """The sender that the client gave: a policy may have set another one since."""
    given: Address | None = getattr(transaction, "mail_from", transaction.sender)
    return given


def _sender(subject: Subject) -> str | None:
    if subject.transaction is None:
        return None
    sender = _mail_from(subject.transaction)
    if sender is None:
        return None
    return address_identity(subject.mailbox(sender)) if sender else _null_sender(subject)


def _sender_domain(subject: Subject) -> str | None:
    if subject.transaction is None:
        return None
    sender = _mail_from(subject.transaction)
    if sender is None:
        return None
    return domain_identity(sender) if sender else _null_sender(subject)


def _null_sender(subject: Subject) -> str | None:
    return None if subject.recipient is None else null_sender_identity(subject.recipient.address)


def _recipient(subject: Subject) -> str | None:
    if subject.recipient is None:
        return None
    return address_identity(subject.mailbox(subject.recipient.address))


def _recipient_domain(subject: Subject) -> str | None:
    return None if subject.recipient is None else domain_identity(subject.recipient.address)


_PARTS: dict[Identity, Callable[[Subject], str | None]] = {
    Identity.IP: lambda subject: ip_identity(subject.session.client_ip),
    Identity.NETWORK: lambda subject: network_identity(subject.session.client_ip),
    Identity.USER: _user,
    Identity.HELO: _helo,
    Identity.SENDER: _sender,
    Identity.SENDER_DOMAIN: _sender_domain,
    Identity.RECIPIENT: _recipient,
    Identity.RECIPIENT_DOMAIN: _recipient_domain,
    Identity.LISTENER: lambda subject: name_identity(subject.session.listener),
    # On the way out; no session knows it.
    Identity.DESTINATION: lambda _subject: None,
}


def _outbound_user(outbound: OutboundCharge) -> tuple[str, ...]:
    return () if outbound.user is None else (name_identity(outbound.user),)


def _outbound_null(outbound: OutboundCharge) -> tuple[str, ...]:
    return tuple(dict.fromkeys(null_sender_identity(each.address) for each in outbound.recipients))


def _outbound_sender(outbound: OutboundCharge) -> tuple[str, ...]:
    return (address_identity(outbound.sender),) if outbound.sender else _outbound_null(outbound)


def _outbound_sender_domain(outbound: OutboundCharge) -> tuple[str, ...]:
    return (domain_identity(outbound.sender),) if outbound.sender else _outbound_null(outbound)


_OUT: dict[Identity, Callable[[OutboundCharge], Sequence[str]]] = {
    Identity.DESTINATION: lambda outbound: (host_identity(outbound.destination),),
    Identity.SENDER: _outbound_sender,
    Identity.SENDER_DOMAIN: _outbound_sender_domain,
    Identity.USER: _outbound_user,
    Identity.RECIPIENT_DOMAIN: lambda outbound: [
        domain_identity(each.address) for each in outbound.recipients
    ],
}
_PER_RECIPIENT = frozenset({Identity.RECIPIENT, Identity.RECIPIENT_DOMAIN})
_OF_SENDER = frozenset({Identity.SENDER, Identity.SENDER_DOMAIN})
# What is never given back.
_OF_SESSION = frozenset({Counts.CONNECTIONS, Counts.OPEN_CONNECTIONS, Counts.REFUSALS})
_ORDER = tuple(Stage)
_COUNTED_AT = {
    Counts.CONNECTIONS: Stage.CONNECT,
    Counts.OPEN_CONNECTIONS: Stage.CONNECT,
    Counts.MESSAGES: Stage.MAIL,
    Counts.RECIPIENTS: Stage.RCPT,
    Counts.BYTES: Stage.MESSAGE,
}
_KNOWN_AT = {
    Identity.IP: Stage.CONNECT,
    Identity.NETWORK: Stage.CONNECT,
    Identity.LISTENER: Stage.CONNECT,
    Identity.HELO: Stage.HELO,
    Identity.USER: Stage.AUTH,
    Identity.SENDER: Stage.MAIL,
    Identity.SENDER_DOMAIN: Stage.MAIL,
    Identity.RECIPIENT: Stage.RCPT,
    Identity.RECIPIENT_DOMAIN: Stage.RCPT,
}
