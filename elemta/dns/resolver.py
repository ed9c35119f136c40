"""The resolver: takes questions, answers from the cache or by asking servers, each within its deadline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.dns.answers import DNSAnswer, DnsQuestion, LookupFailure, OtherType, Result
from elemta.dns.cache import Cache
from elemta.dns.lookup import Lookup
from elemta.dns.lookup_table import LookupTable, UnderWay
from elemta.dns.questions import Questions
from elemta.dns.servers import RESOLV_CONF, Nameserver, Nameservers
from elemta.dns.settings import ResolverSettings
from elemta.dns.transport import DNSTransport
from elemta.metrics import DnsMetrics
from elemta.runtime import Runtime

_log = Logger()

# The share of a deadline in which servers are asked; the rest is for the words about them to arrive in time.
_ASKING = 0.95


@dataclass(frozen=True, slots=True)
class _Running:
    """What there is between start and stop."""

    exchange: DNSTransport
    lookup: Lookup


class DnsResolver(Questions):
    """Asks recursive name servers about names, for many callers at one time.

    ``nameservers`` are (address, port); without any, those of ``resolv_conf``, reread when it changes. A
    deadline is the caller's own: callers of one user with the same question share one lookup, which goes on
    as long as any of them waits. One that all have left ends at once, with its socket.

    :attr:`deliveries` asks with capacity of its own, and :meth:`of_user` for one of several that share the
    resolver's; asked directly it is one of these.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        nameservers: Sequence[tuple[str, int]] = (),
        settings: ResolverSettings | None = None,
        metrics: DnsMetrics | None = None,
        resolv_conf: str = RESOLV_CONF,
    ) -> None:
        reactor = runtime.reactor
        self._runtime = runtime
        self._reactor = reactor
        self._settings = ResolverSettings() if settings is None else settings
        self._metrics = metrics or DnsMetrics()
        servers = [Nameserver(address, port) for address, port in nameservers]
        self._servers = Nameservers(servers, reactor.seconds, resolv_conf)
        self._cache = Cache(self._settings, reactor.seconds)
        self._shared = LookupTable(self._settings.lookups)
        self._of_deliveries = LookupTable(self._settings.delivery_lookups)
        self._running: _Running | None = None
        # Lookups that ended for others, whose callers have still to hear of it.
        self._ended: list[tuple[LookupTable, UnderWay]] = []
        self._telling: IDelayedCall | None = None
        self.deliveries = Questions(partial(self._answer_to, self._of_deliveries, ""))
        super().__init__(partial(self._answer_to, self._shared, ""))

    def of_user(self, name: str) -> Questions:
        """The resolver for one user, a policy, that shares it with others."""
        return Questions(partial(self._answer_to, self._shared, name))

    def start(self) -> None:
        """Begin to ask. After the fork of twistd, never before."""
        if self._running is None:
            exchange = DNSTransport(self._runtime)
            self._running = _Running(exchange, Lookup(self._servers, exchange, self._runtime))

    async def stop(self) -> None:
        """End the lookups under way, whose callers get ResolverTrouble."""
        running, self._running = self._running, None
        if running is None:
            return
        if self._telling is not None:
            self._telling.cancel()
            self._tell_ended()
        for table in (self._shared, self._of_deliveries):
            for under_way in table.all():
                self._end(table, under_way, LookupFailure("the resolver stops", local=True))
        await running.exchange.close()
        self._cache.clear()

    def _answer_to(
        self, table: LookupTable, user: str, question: DnsQuestion, timeout: float | None
    ) -> Deferred[Result]:
        """The result of one question; the Deferred never fails, unless it is cancelled."""
        known = self._cache.get(question)
        if known is not None:
            self._metrics.cache_hits.inc()
            self._count(question, known)
            return _fired(known)
        started = self._reactor.seconds()

        def answered(result: Result) -> Result:
            self._metrics.duration.observe(max(0.0, self._reactor.seconds() - started))
            self._count(question, result)
            return result

        return self._result(table, user, question, timeout).addCallback(answered)

    def _count(self, question: DnsQuestion, result: Result) -> None:
        kind = "other" if isinstance(question.kind, OtherType) else question.kind.name.lower()
        self._metrics.questions.labels(kind, _outcome(result)).inc()

    def _result(
        self, table: LookupTable, user: str, question: DnsQuestion, timeout: float | None
    ) -> Deferred[Result]:
        if self._running is None:
            return _fired(LookupFailure("the resolver is not running", local=True))
        under_way, ended = table.find(user, question), None
        if under_way is None:
            under_way, ended = table.add(user, question)
        deadline = self._settings.deadline
        result = self._wait(table, under_way, deadline if timeout is None else min(timeout, deadline))
        if ended is not None:
            self._end_soon(table, ended)
        if under_way.work is None:
            self._begin(self._running, table, under_way)
        return result

    def _wait(self, table: LookupTable, under_way: UnderWay, seconds: float) -> Deferred[Result]:
        """One more that waits for a lookup, so many seconds."""
        result: Deferred[Result] = Deferred(partial(self._leave, table, under_way))

        def too_late() -> None:
            self._leave(table, under_way, result)
            result.callback(LookupFailure(f"no answer within {seconds:g} s", local=True))

        under_way.whole = under_way.whole or seconds >= self._settings.deadline
        under_way.until = max(under_way.until, self._reactor.seconds() + seconds * _ASKING)
        under_way.waiting[result] = self._reactor.callLater(seconds, too_late)
        return result

    def _leave(self, table: LookupTable, under_way: UnderWay, result: Deferred[Result]) -> None:
        """One caller does not wait any more; a lookup without a caller ends."""
        timer = under_way.waiting.pop(result, None)
        if timer is not None and timer.active():
            timer.cancel()
        if not under_way.waiting:
            self._end(table, under_way, LookupFailure("no caller waits for the answer"))

    def _begin(self, running: _Running, table: LookupTable, under_way: UnderWay) -> None:
        looking = running.lookup.look_up(under_way.question, lambda: under_way.until)
        under_way.work = work = Deferred.fromCoroutine(looking)
        work.addCallbacks(
            self._finished, self._broke, callbackArgs=(table, under_way), errbackArgs=(table, under_way)
        )

    def _finished(self, result: Result, table: LookupTable, under_way: UnderWay) -> None:
        """Servers answered, or did not in time."""
        if self._running is not None and (under_way.whole or not isinstance(result, LookupFailure)):
            self._cache.put(under_way.question, result)
        self._end(table, under_way, result)

    def _broke(self, failure: Failure, table: LookupTable, under_way: UnderWay) -> None:
        """It was given up, or there is a fault in it."""
        if failure.check(CancelledError) is None:
            _log.failure(
                "a DNS lookup failed with an internal error", failure=failure, event="dns.internal_error"
            )
            self._end(table, under_way, LookupFailure("a fault inside Elemta; the log has it"))

    def _end_soon(self, table: LookupTable, ended: UnderWay) -> None:
        """Give up now what a lookup does that ended for another, and tell its callers in a moment.

        They may ask again at once, which ends the next one. Within one another, that would be hundreds deep.
        """
        if ended.work is not None:
            ended.work.cancel()
        self._ended.append((table, ended))
        if self._telling is None:
            self._telling = self._reactor.callLater(0.0, self._tell_ended)

    def _tell_ended(self) -> None:
        self._telling = None
        ended_lookups, self._ended = self._ended, []
        for table, ended in ended_lookups:
            self._end(table, ended, LookupFailure("too many lookups are under way", local=True))

    def _end(self, table: LookupTable, under_way: UnderWay, result: Result) -> None:
        """Take a lookup off the table, tell all that wait, and give up what it still does."""
        table.remove(under_way)
        waiting, under_way.waiting = under_way.waiting, {}
        for timer in waiting.values():
            if timer.active():
                timer.cancel()
        if under_way.work is not None:
            under_way.work.cancel()
        for deferred in waiting:
            deferred.callback(result)


def _fired(result: Result) -> Deferred[Result]:
    deferred: Deferred[Result] = Deferred()
    deferred.callback(result)
    return deferred


def _outcome(result: Result) -> str:
    if isinstance(result, DNSAnswer):
        return "answered"
    if isinstance(result, LookupFailure):
        return "failed"
    return "empty" if result.name_exists else "nonexistent"
