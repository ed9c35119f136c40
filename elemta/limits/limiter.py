"""Asks the store for what a stage of the conversation is to be charged, and says what the limits say."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import dataclass, replace

from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.address import Address
from elemta.config import Counts, Mode, OnExceed, WhenValkeyIsDown
from elemta.deferred_value import MaybeDeferred, Steps, handled, run
from elemta.envelope import Recipient
from elemta.errors import StoreUnavailable
from elemta.limits.charge import Charge, LimitRefusal, RefusalCause
from elemta.limits.known_logins import KnownLogins, LoginHistory
from elemta.limits.overrides import Overrides
from elemta.limits.refusals import RETURNABLE_REMEMBERED, ObservedLog, RememberedRefusal, RememberedRefusals
from elemta.limits.return_times import ReturnTimes
from elemta.limits.rules import (
    LoginAttempt,
    OutboundCharge,
    Rule,
    SessionLike,
    Subject,
    TransactionLike,
    rates_of,
)
from elemta.limits.store import Decision, Denial, ILimitStore, Receipt, Request, Usage
from elemta.metrics import LimitMetrics
from elemta.stage import Stage

_log = Logger()

RETRY_WHEN_UNAVAILABLE = 10.0
_MICROSECONDS = 1_000_000
_REFUSED = "refused"
# Outbound mail waits and is never refused.
_DELAYED = "delayed"
_WAITS = "throttled"


_NOTHING = Charge()


@dataclass(slots=True)
class _StoreQuestion:
    """What is asked of the store; ``subject`` is None for mail that leaves, ``no`` is for the metrics."""

    asked: list[Request]
    subject: Subject | None
    covered: tuple[Request, ...]
    began: float
    no: str


def _as_written(address: Address) -> Address:
    return address


class Limiter:
    """The limits of one configuration over a store, which outlives them: a reload makes a new limiter.

    Every method answers at once when the store does, and with a Deferred when the store does. ``wall`` gives
    seconds since the epoch, which all nodes share; without it the store's own time does. ``mailbox`` gives
    the mailbox that an address is: its spellings and tags count as one. ``overrides`` outlive it, too.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        store: ILimitStore,
        metrics: LimitMetrics | None = None,
        wall: Callable[[], float] | None = None,
        mailbox: Callable[[Address], Address] | None = None,
        *,
        overrides: Overrides | None = None,
    ) -> None:
        self.rules = tuple(rules)
        self._store = store
        self._metrics = metrics or LimitMetrics()
        self._by_name = {rule.name: rule for rule in rules}
        self._by_stage = {stage: tuple(rule for rule in rules if rule.stage is stage) for stage in Stage}
        self._of_null_sender = {
            stage: tuple(rule for rule in rules if rule.stage_of_null_sender is stage) for stage in Stage
        }
        self.mailbox = mailbox or _as_written
        self._of_logins = tuple(rule for rule in rules if rule.counts is Counts.AUTH_FAILURES)
        self._of_refusals = tuple(rule for rule in rules if rule.counts is Counts.REFUSALS)
        self._outbound_rules = tuple(rule for rule in rules if rule.is_outbound)
        self.known_logins = KnownLogins(store, store.seconds if wall is None else wall)
        self._refusals = RememberedRefusals()
        self._return_times = ReturnTimes()
        self.overrides = Overrides(store.seconds) if overrides is None else overrides
        self._generation = self.overrides.generation
        self._observed = ObservedLog()

    def seconds(self) -> float:
        """The store's steady time."""
        return self._store.seconds()

    @property
    def remembered_refusals(self) -> RememberedRefusals:
        """What is refused without asking the store."""
        return self._refusals

    @property
    def return_times(self) -> ReturnTimes:
        """The times that refused clients got."""
        return self._return_times

    def charges(self, stage: Stage) -> bool:
        """Whether any limit is charged at this stage."""
        return bool(self._by_stage[stage] or self._of_null_sender[stage])

    def _rules(self, stage: Stage, transaction: TransactionLike) -> tuple[Rule, ...]:
        return self._by_stage[stage] if transaction.sender else self._of_null_sender[stage]

    def _requests(self, rule: Rule, subject: Subject) -> list[Request]:
        """What to ask of the store, with the overrides that hold."""
        requests = rule.requests(subject)
        if not self.overrides.by_limit:
            return requests
        return self.overrides.applied(rule, requests, subject.session.client_ip)

    def _outbound_requests(self, rule: Rule, outbound: OutboundCharge) -> list[Request]:
        return self.overrides.applied(rule, rule.outbound_requests(outbound), outbound.client_ip)

    def charge(
        self,
        stage: Stage,
        session: SessionLike,
        transaction: TransactionLike | None = None,
        recipient: Recipient | None = None,
        *,
        already: Collection[str] = (),
        may_delay: bool = False,
    ) -> MaybeDeferred[Charge]:
        """Charge everything that this stage is charged, all or none.

        ``already`` are the keys that this session, and this transaction, have been charged: what is
        counted once only is not charged for them again. ``may_delay`` says that the caller will wait and
        ask once more where the refusal is one that delays.
        """
        rules = self._by_stage[stage] if transaction is None else self._rules(stage, transaction)
        if not rules:
            return _NOTHING
        subject = Subject(session, transaction, recipient, self.mailbox)
        asked: list[Request] = []
        covered: list[Request] = []
        for rule in rules:
            for request in self._requests(rule, subject):
                known = already and rule.once and request.key in already
                (covered if known else asked).append(request)
        if not asked:
            return Charge(covered=tuple(covered)) if covered else _NOTHING
        return self._acquire(asked, subject, tuple(covered), _DELAYED if may_delay else _REFUSED)

    def charge_counts(
        self,
        counts: Collection[Counts],
        session: SessionLike,
        transaction: TransactionLike,
        recipient: Recipient | None,
        *,
        already: Container[str] = (),
    ) -> MaybeDeferred[Charge]:
        """Charge every limit that counts one of ``counts``, all or none, where there are no stages.

        What counts messages or bytes is not charged for the keys in ``already``. Without a ``recipient`` it
        is about all of the transaction's.
        """
        subject = Subject(session, transaction, recipient, self.mailbox)
        asked = [
            request
            for rule in self.rules
            if rule.counts in counts and not rule.is_outbound
            for request in self._counted(rule, subject)
            if request.key not in already or rule.counts is Counts.RECIPIENTS
        ]
        return self._acquire(asked, subject) if asked else _NOTHING

    def _counted(self, rule: Rule, subject: Subject) -> list[Request]:
        """What to ask of the store, of each key the amount for all recipients together."""
        about = subject.transaction
        each = () if about is None or subject.recipient is not None else about.recipients
        if rule.counts is not Counts.RECIPIENTS or not each:
            return self._requests(rule, subject)
        found: dict[str, Request] = {}
        for recipient in each:
            for one in self._requests(rule, replace(subject, recipient=recipient)):
                known = found.get(one.key)
                found[one.key] = one if known is None else replace(one, amount=known.amount + one.amount)
        return list(found.values())

    def charge_outbound(self, outbound: OutboundCharge, counts: Counts) -> MaybeDeferred[Charge]:
        """Charge what leaves in all limits per destination that count this, all or none.

        ``counts`` are messages, for a transaction, or open connections, for a connection that is to be made.
        """
        if not self._outbound_rules:
            return _NOTHING
        outbound = replace(outbound, sender=self.mailbox(outbound.sender))
        rules = [rule for rule in self._outbound_rules if rule.counts is counts]
        asked = [request for rule in rules for request in self._outbound_requests(rule, outbound)]
        return self._acquire(asked, None, no=_WAITS) if asked else _NOTHING

    def refund(self, receipts: Iterable[Receipt]) -> MaybeDeferred[None]:
        """Give back what was charged. Leases and receipts that were given back already are left alone."""
        due = [one for one in receipts if not one.is_lease and not one.settled]
        return run(self._give_back(due, self._store.refund)) if due else None

    def release(self, receipts: Iterable[Receipt]) -> MaybeDeferred[None]:
        """Give back the leases of open connections among these receipts, and nothing else."""
        due = [one for one in receipts if one.is_lease and not one.settled]
        return run(self._give_back(due, self._store.release)) if due else None

    def charge_login(self, session: SessionLike, username: str) -> MaybeDeferred[Charge]:
        """Charge an attempt to log in as ``username`` in all limits of failed logins, all or none.

        To be asked before the password is looked at, and refunded unless it was wrong. So there are never
        more failures than the limit, however many attempts are under way at the same moment.
        """
        return run(self._charge_login(session, username)) if self._of_logins else _NOTHING

    def _charge_login(self, session: SessionLike, username: str) -> Steps[Charge]:
        standing: LoginHistory = yield self.known_logins.standing(username, session.client_ip)
        attempt = LoginAttempt(session.client_ip, session.listener, session.helo, username)
        rules = [rule for rule in self._of_logins if standing in rule.standings]
        subject = Subject(attempt)
        asked = [request for rule in rules for request in self._requests(rule, subject)]
        charge: Charge = (yield self._acquire(asked, subject)) if asked else _NOTHING
        return charge

    def remember_login(self, session: SessionLike, username: str) -> None:
        """Note a good login."""
        self.known_logins.remember(username, session.client_ip)

    @property
    def counts_refusals(self) -> bool:
        """Whether there is a limit of refusals."""
        return bool(self._of_refusals)

    def ask_about_refusals(
        self,
        session: SessionLike,
        transaction: TransactionLike | None = None,
        recipient: Recipient | None = None,
    ) -> MaybeDeferred[LimitRefusal | None]:
        """What the limits of refusals say of a client that asks for something. Charges nothing."""
        subject = Subject(session, transaction, recipient, self.mailbox)
        asked = [
            request
            for rule in self._of_refusals
            if rule.spec.binding
            for request in self._requests(rule, subject)
        ]
        if not asked:
            return None
        now = self._store.seconds()
        known = self._remembered(asked, now)
        if known:
            return self._refused(known, subject, now).refusal
        return run(self._look_at_refusals(asked, subject, now))

    def _look_at_refusals(
        self, asked: Sequence[Request], subject: Subject, began: float
    ) -> Steps[LimitRefusal | None]:
        try:
            usages: Sequence[Usage] = yield self._store.peek(asked)
        except StoreUnavailable:
            return self._unavailable(asked, subject, began)
        full = [Denial(usage.request, usage.wait) for usage in usages if usage.wait != 0]
        if not full:
            return None
        now = self._store.seconds()
        for denial in full:
            until = now + _seconds(denial.wait)
            # For a moment: it may be this node's own word while the shared store is away.
            self._refusals.remember(denial.request, until, min(until, now + RETURNABLE_REMEMBERED))
        return self._refused(full, subject, began).refusal

    def charge_refusal(
        self,
        session: SessionLike,
        transaction: TransactionLike | None = None,
        recipient: Recipient | None = None,
    ) -> MaybeDeferred[Charge]:
        """Charge a refusal for good, before the client gets it, all or none.

        A limit that refuses this is exceeded: then the client gets the limit's reply in place of the refusal.
        """
        subject = Subject(session, transaction, recipient, self.mailbox)
        asked = [request for rule in self._of_refusals for request in self._requests(rule, subject)]
        return self._acquire(asked, subject) if asked else _NOTHING

    def reset(self, limit: str, identity: str) -> MaybeDeferred[bool]:
        """Forget what is counted for an identity, and its refusal. KeyError when there is no such limit."""
        spec = self._by_name[limit].spec
        self.forget(limit, identity)
        return self._store.reset(spec, identity)

    def forget(self, limit: str, identity: str) -> None:
        """Ask anew about an identity that was refused: a reset on another node reached this one."""
        self._refusals.forget(f"{limit}:{identity}")

    def refused(self, count: int = 100) -> tuple[RememberedRefusal, ...]:
        """The identities that this node refuses now, the latest first."""
        self._follow_overrides()
        return self._refusals.latest(count, self._store.seconds())

    def _acquire(
        self,
        asked: list[Request],
        subject: Subject | None,
        covered: tuple[Request, ...] = (),
        no: str = _REFUSED,
    ) -> MaybeDeferred[Charge]:
        """Charge what is asked for, of a client or of mail that leaves (None); ``no`` is for the metrics."""
        question = _StoreQuestion(asked, subject, covered, self._store.seconds(), no)
        known = self._remembered(asked, question.began)
        if known:
            return self._refused(known, subject, question.began, no)
        try:
            decision = self._store.acquire(asked)
        except StoreUnavailable:
            return self._undecided(question)
        if isinstance(decision, Decision):
            return self._charged(decision, question)
        return handled(decision, self._charged, self._not_charged, question)

    def _not_charged(self, failure: Failure, question: _StoreQuestion) -> Charge:
        failure.trap(StoreUnavailable)
        return self._undecided(question)

    def _undecided(self, question: _StoreQuestion) -> Charge:
        refusal = self._unavailable(question.asked, question.subject, question.began)
        return Charge((), refusal, question.covered)

    def _follow_overrides(self) -> None:
        """Where other rates hold, ask anew: what was refused may pass."""
        if self._generation != self.overrides.generation:
            self._generation = self.overrides.generation
            self._refusals.clear()

    def _remembered(self, asked: Sequence[Request], now: float) -> list[Denial]:
        self._follow_overrides()
        if not self._refusals.known or any(_can_never_pass(request) for request in asked):
            # What can never pass is refused permanently, even while less than it is refused for now.
            return []
        waits = [(request, self._refusals.wait(request, now)) for request in asked]
        return [Denial(request, math.ceil(wait * _MICROSECONDS)) for request, wait in waits if wait > 0]

    def _charged(self, answer: Decision, question: _StoreQuestion) -> Charge:
        if not answer.granted:
            self._refusals.remember_all(answer.denials, self._store.seconds())
            return self._refused(answer.denials, question.subject, question.began, question.no)
        seconds = self._store.seconds() - question.began
        for receipt in answer.receipts:
            if self._refusals.known:
                self._refusals.forget(receipt.request.key)
            self._metrics.checked(receipt.request.spec.name, "admitted", seconds)
        for denial in answer.denials:
            self._observe(denial, seconds)
        return Charge(answer.receipts, None, question.covered)

    def _refused(
        self, denials: Sequence[Denial], subject: Subject | None, began: float, no: str = _REFUSED
    ) -> Charge:
        # The one to wait for longest: a client that comes back then finds all of them open.
        longest = max(denials, key=lambda denial: _seconds(denial.wait))
        refusal = self._refusal(longest.request, longest.wait, subject)
        outcome = _REFUSED if no == _DELAYED and not refusal.delays else no
        seconds = self._store.seconds() - began
        for denial in denials:
            self._metrics.checked(denial.request.spec.name, outcome, seconds)
        return Charge((), refusal)

    def _refusal(self, request: Request, wait: int | None, subject: Subject | None) -> LimitRefusal:
        rule = self._by_name[request.spec.name]
        cause = RefusalCause.IMPOSSIBLE if wait is None else RefusalCause.EXCEEDED
        return LimitRefusal(
            rule.name,
            rule.on_exceed,
            _seconds(wait),
            request.identity,
            rule.counts,
            cause,
            rule.per,
            rates_of(request.spec),
            self._reply_wait(request, rule, _seconds(wait), subject),
        )

    def _reply_wait(self, request: Request, rule: Rule, exact: float, subject: Subject | None) -> float:
        if subject is None:
            return exact
        return self._return_times.wait(request, rule.counts, exact, self._store.seconds(), subject)

    def _observe(self, denial: Denial, seconds: float) -> None:
        """Tell of what a limit in observe mode would have refused; in the log only now and then."""
        self._metrics.checked(denial.request.spec.name, "observed", seconds)
        self._observed.note(denial, self._store.seconds())

    def _unavailable(
        self, requests: Sequence[Request], subject: Subject | None, began: float
    ) -> LimitRefusal | None:
        """What the limits say when the store can't: the first that defers then, else nothing."""
        seconds = self._store.seconds() - began
        refusal = None
        for request in requests:
            rule = self._by_name[request.spec.name]
            self._metrics.checked(rule.name, "error", seconds)
            defers = rule.when_valkey_is_down is WhenValkeyIsDown.DEFER and rule.mode is Mode.ENFORCE
            if defers and refusal is None:
                refusal = LimitRefusal(
                    rule.name,
                    OnExceed.DEFER,
                    RETRY_WHEN_UNAVAILABLE,
                    request.identity,
                    rule.counts,
                    RefusalCause.UNAVAILABLE,
                    reply_wait=self._reply_wait(request, rule, RETRY_WHEN_UNAVAILABLE, subject),
                )
        return refusal

    def _give_back(
        self, due: Sequence[Receipt], how: Callable[[Sequence[Receipt]], MaybeDeferred[None]]
    ) -> Steps[None]:
        try:
            yield how(due)
        except StoreUnavailable as error:
            # A refund that is lost makes a limit stricter until its window ends, and no more.
            _log.warn("a limit could not be given back", event="limit.refund_failed", reason=str(error))
            return
        if self._refusals.known:
            for receipt in due:
                self._refusals.forget(receipt.request.key)


def _seconds(wait: int | None) -> float:
    return math.inf if wait is None else wait / _MICROSECONDS


def _can_never_pass(request: Request) -> bool:
    return request.amount > 1 and any(request.amount > bound.limit for bound in request.spec.bounds)
