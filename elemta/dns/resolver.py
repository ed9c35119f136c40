"""The resolver: takes questions in the reactor's thread, answers from the cache or by threads, in time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.dns.answers import (
    Absent,
    Found,
    IPAddress,
    Kind,
    MailExchanger,
    Question,
    Record,
    Result,
    Trouble,
)
from elemta.dns.cache import Cache
from elemta.dns.exchange import Alarm, Exchange, Stopped
from elemta.dns.lookup import Lookup
from elemta.dns.names import canonical_name, reverse_name
from elemta.dns.servers import RESOLV_CONF, Nameserver, Nameservers
from elemta.dns.settings import ResolverObserver, ResolverSettings, Unobserved
from elemta.dns.threads import LookupThreads, ResolverReactor
from elemta.errors import NoSuchDomain, ResolverTrouble

_log = Logger()

# The share of the deadline in which a thread asks; the rest is for its words to arrive in time.
_ASKING = 0.95


@dataclass(slots=True, eq=False)
class _UnderWay:
    """A question that a thread works on, and who waits for the answer."""

    question: Question
    timer: IDelayedCall
    waiting: set[Deferred[Result]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Running:
    """What there is between start and stop."""

    alarm: Alarm
    lookup: Lookup
    threads: LookupThreads


class Resolver:
    """Asks recursive name servers about names, for many callers at one time.

    ``nameservers`` are (address, port); without any, those of ``resolv_conf``, reread when it changes. The
    reactor's thread is never blocked: threads of its own ask. Every method ends within ``settings.deadline``
    seconds (``addresses``, whose two questions go together, too) and raises

    - :class:`~elemta.errors.NoSuchDomain` when the name does not exist or can't be a name;
    - :class:`~elemta.errors.ResolverTrouble` when no server gave a usable answer in time, when too many
      lookups are under way, and when the resolver does not run.

    That a name exists but has no such record is no error: the answer is empty. Names are taken in any
    spelling, also with U-labels, and are always whole: there is no search list, and /etc/hosts isn't read.
    Callers with the same question share one lookup; cancelling one does not disturb the others.
    """

    def __init__(
        self,
        reactor: ResolverReactor,
        *,
        nameservers: Sequence[tuple[str, int]] = (),
        settings: ResolverSettings | None = None,
        observer: ResolverObserver | None = None,
        resolv_conf: str = RESOLV_CONF,
    ) -> None:
        self._reactor = reactor
        self._settings = ResolverSettings() if settings is None else settings
        self._observer = Unobserved() if observer is None else observer
        servers = [Nameserver(address, port) for address, port in nameservers]
        self._servers = Nameservers(servers, time.monotonic, resolv_conf)
        self._cache = Cache(self._settings, reactor.seconds)
        self._under_way: dict[Question, _UnderWay] = {}
        self._running: _Running | None = None

    def start(self) -> None:
        """Start the threads. After the fork of twistd, never before."""
        if self._running is None:
            alarm = Alarm()
            lookup = Lookup(self._servers, Exchange(alarm, time.monotonic), time.monotonic)
            threads = LookupThreads(self._reactor, self._settings.threads, self._settings.queue)
            self._running = _Running(alarm, lookup, threads)

    async def stop(self) -> None:
        """End the lookups under way, whose callers get ResolverTrouble, and the threads."""
        running, self._running = self._running, None
        if running is None:
            return
        for under_way in tuple(self._under_way.values()):
            self._answer(under_way, Trouble("the resolver stops"))
        running.alarm.ring()
        await running.threads.stop()
        running.alarm.close()
        self._cache.clear()

    async def mail_exchangers(self, domain: str) -> tuple[MailExchanger, ...]:
        """The MX records of a domain, the most preferred first and equal ones by name.

        Empty where there is none, and the domain's own addresses serve (RFC 5321 §5.1); ``(NULL_MX,)`` where
        the domain takes no mail (RFC 7505 §3). Records that name no possible host are left out; a domain with
        no other raises NoSuchDomain.
        """
        question = Question(canonical_name(domain), Kind.MX)
        result = await self._ask(question)
        if isinstance(result, Found) and not result.records:
            # Not the same as none: then it would be its own exchanger.
            raise NoSuchDomain(f"the MX records of {question.name} name no possible host")
        return cast(tuple[MailExchanger, ...], _records(question, result))

    async def addresses(self, host: str) -> tuple[IPAddress, ...]:
        """The addresses of a host, IPv6 first; each kind in the order of the answer.

        Where only one kind could be looked up, and it has some, those.
        """
        name = canonical_name(host)
        questions = (Question(name, Kind.AAAA), Question(name, Kind.A))
        results = [await lookup for lookup in [self._ask(question) for question in questions]]
        found = [record for result in results if isinstance(result, Found) for record in result.records]
        if not found:
            for question, result in zip(questions, results, strict=True):
                # Where one kind is only empty, the name exists, whatever is said about the other.
                if isinstance(result, Trouble) or all(_denies_name(each) for each in results):
                    _records(question, result)
        return cast(tuple[IPAddress, ...], tuple(found))

    async def text(self, name: str) -> tuple[str, ...]:
        """The TXT records of a name, the strings of each put together."""
        question = Question(canonical_name(name), Kind.TXT)
        return cast(tuple[str, ...], _records(question, await self._ask(question)))

    async def reverse(self, ip: str | IPAddress) -> tuple[str, ...]:
        """The names that the owner of an address gives it (PTR), unconfirmed: anybody may claim any name.

        An IPv4 address in IPv6 clothes is asked for as IPv4. Raises ValueError for what is no IP address.
        """
        question = Question(reverse_name(_plain(ip)), Kind.PTR)
        return cast(tuple[str, ...], _records(question, await self._ask(question)))

    # Lookups

    def _ask(self, question: Question) -> Deferred[Result]:
        """The result of one question; the Deferred never fails, unless it is cancelled."""
        started = self._reactor.seconds()
        result = self._result(question)

        def told(result: Result) -> Result:
            waited = max(0.0, self._reactor.seconds() - started)
            self._observer.looked_up(question.kind.name.lower(), _outcome(result), waited)
            return result

        return result.addCallback(told)

    def _result(self, question: Question) -> Deferred[Result]:
        known = self._cache.get(question)
        if known is not None:
            return _fired(known)
        under_way = self._under_way.get(question)
        if under_way is None:
            try:
                under_way = self._begin(question)
            except ResolverTrouble as trouble:
                return _fired(Trouble(str(trouble)))
        waiting = under_way.waiting
        result: Deferred[Result] = Deferred(waiting.discard)
        waiting.add(result)
        return result

    def _begin(self, question: Question) -> _UnderWay:
        running = self._running
        if running is None:
            raise ResolverTrouble("the resolver is not running")
        until = time.monotonic() + self._settings.deadline * _ASKING

        def finished(outcome: Result | Failure) -> None:
            self._finished(under_way, outcome)

        running.threads.run(lambda: running.lookup.look_up(question, until), finished)
        under_way = _UnderWay(
            question, self._reactor.callLater(self._settings.deadline, lambda: self._too_late(under_way))
        )
        self._under_way[question] = under_way
        return under_way

    def _too_late(self, under_way: _UnderWay) -> None:
        self._answer(under_way, Trouble(f"no answer within {self._settings.deadline:g} s"))

    def _finished(self, under_way: _UnderWay, outcome: Result | Failure) -> None:
        """A thread is done, in time or not."""
        if isinstance(outcome, Failure):
            if not outcome.check(Stopped):
                _log.failure("a DNS lookup broke", failure=outcome, event="dns.broke")
            outcome = Trouble("a fault inside Elemta; the log has it")
        if self._running is not None:
            self._cache.put(under_way.question, outcome)
        self._answer(under_way, outcome)

    def _answer(self, under_way: _UnderWay, result: Result) -> None:
        if self._under_way.get(under_way.question) is under_way:
            del self._under_way[under_way.question]
        if under_way.timer.active():
            under_way.timer.cancel()
        waiting = tuple(under_way.waiting)
        under_way.waiting.clear()
        for deferred in waiting:
            deferred.callback(result)


def _fired(result: Result) -> Deferred[Result]:
    deferred: Deferred[Result] = Deferred()
    deferred.callback(result)
    return deferred


def _records(question: Question, result: Result) -> tuple[Record, ...]:
    """The records of a result, or what it says instead as an error."""
    if isinstance(result, Found):
        return result.records
    if isinstance(result, Trouble):
        raise ResolverTrouble(f"looking up {question}: {result.text}")
    if not result.name_exists:
        raise NoSuchDomain(f"{question.name} does not exist")
    return ()


def _denies_name(result: Result) -> bool:
    return isinstance(result, Absent) and not result.name_exists


def _outcome(result: Result) -> str:
    if isinstance(result, Found):
        return "answered"
    if isinstance(result, Trouble):
        return "trouble"
    return "empty" if result.name_exists else "nonexistent"


def _plain(ip: str | IPAddress) -> IPAddress:
    address = ip_address(ip) if isinstance(ip, str) else ip
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return IPv4Address(address.ipv4_mapped)
    return address
