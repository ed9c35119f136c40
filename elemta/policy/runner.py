"""One policy of a running chain: its breakers, the count of its calls, and what its failures count for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import iscoroutine, signature
from typing import Any, NamedTuple, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.config import Mode, OnError, PolicyCommon
from elemta.metrics import PolicyMetrics
from elemta.policy.breaker import FAILURES, REST, CallParties, PolicyBreaker
from elemta.policy.call_context import CallContext, calling
from elemta.policy.interfaces import (
    STAGE_INTERFACES,
    FailureKind,
    IDeliveryObserver,
    IDeliveryPolicy,
    ILoginObserver,
    IOutcomeObserver,
    ISigner,
)
from elemta.policy.services import Services
from elemta.policy.verdicts import CONTINUE, Defer, Disconnect, Hold, Reject, Verdict, name_of
from elemta.stage import Stage

_log = Logger()

MAX_OUTSTANDING = 1000
"""The most calls of one policy that may be unanswered, those that timed out and never ended included."""

_SHARE = 20

SLOW = 0.1
"""Seconds. A policy's method that blocks the reactor for longer is logged as a warning."""

TRACEBACK_EVERY = 10.0
"""Seconds between two tracebacks of one policy at one stage; other failures are logged in one line."""

# RFC 5321 §4.2.2: 451 is a local error in processing
_DEFERRED = Defer("Local trouble, please try again later", code=451, enhanced="4.3.0")
# RFC 5321 §4.3.2: in place of a greeting there are 554 and 421, which is the one that passes
_DEFERRED_GREETING = Disconnect("Local trouble, please try again later", code=421, enhanced="4.3.0")
# RFC 4954 §6: 454 is a temporary authentication failure
_DEFERRED_LOGIN = Defer("Local trouble, please try again later", code=454, enhanced="4.7.0")
_REJECTED = Reject("Refused by local policy", code=554, enhanced="5.7.1")

SIGN = "sign"
"""The name, beside those of the stages, of the call that lets a policy sign."""

ROUTE = "route"
"""The name, beside those of the stages, of the question for a recipient's route."""


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy that was found, verified and built. ``common`` are the settings that every policy takes.

    ``plugin`` is the name of the plugin that it was made of, which ``use`` may have said.
    """

    name: str
    policy: object
    common: PolicyCommon
    origin: str = ""
    services: Services | None = None
    plugin: str = ""


@dataclass(frozen=True, slots=True)
class ChainSettings:
    """Settings of every policy of a chain.

    Failures of ``failures`` networks in a row open a policy's breaker. Every ``rest`` seconds an open breaker
    gives the whole timeout to a few calls (:mod:`elemta.policy.breaker`). At most ``max_outstanding`` calls
    of one policy may be unanswered.
    """

    failures: int = FAILURES
    rest: float = REST
    max_outstanding: int = MAX_OUTSTANDING


@dataclass(frozen=True, slots=True)
class PolicyFailure:
    """Why a call failed, and how many seconds it took."""

    kind: FailureKind
    seconds: float
    failure: Failure | None = None
    problem: str = ""

    @property
    def reason(self) -> str:
        if self.failure is not None:
            return repr(self.failure.value)[:300]
        return self.problem or self.kind.value


class UnansweredCalls:
    """The calls of one policy that are not answered yet, at most ``most``.

    From half of that on, one network may have a twentieth of it. A network that makes a policy slow leaves
    the rest to others.
    """

    __slots__ = ("_by_network", "_most", "_total", "closed", "many")

    def __init__(self, most: int) -> None:
        self._most = most
        self._total = 0
        self._by_network: dict[str, int] = {}
        self.many = False
        self.closed = False

    @property
    def none(self) -> bool:
        """Whether every call was answered."""
        return not self._total

    def close(self) -> None:
        """Make no call until :meth:`open`."""
        self.closed = self.many = True

    def open(self) -> None:
        self.closed = False
        self.many = self._total * 2 >= self._most

    def began(self, network: str) -> None:
        self._total += 1
        self._by_network[network] = self._by_network.get(network, 0) + 1
        self.many = self.closed or self._total * 2 >= self._most

    def ended(self, network: str) -> None:
        self._total -= 1
        left = self._by_network[network] - 1
        if left:
            self._by_network[network] = left
        else:
            del self._by_network[network]
        self.many = self.closed or self._total * 2 >= self._most

    def has_space(self, network: str) -> bool:
        """Whether one more call about a client of ``network`` may be made."""
        if self.closed:
            return False
        if self._total * 2 < self._most:
            return True
        return self._total < self._most and self._by_network.get(network, 0) < max(1, self._most // _SHARE)


class PolicyRunner:
    """A policy with its breakers and the count of its unanswered calls, shared by all sessions.

    Questions and facts are counted separately: a policy that is slow with facts is still asked.
    """

    __slots__ = (
        "_clock",
        "_metrics",
        "_next_traceback",
        "_next_warning",
        "_settings",
        "breakers",
        "facts",
        "grants_relaying",
        "listeners",
        "name",
        "observed",
        "on_error",
        "questions",
        "timeout",
    )

    def __init__(
        self,
        loaded: LoadedPolicy,
        clock: IReactorTime,
        metrics: PolicyMetrics,
        settings: ChainSettings,
        *,
        grants_relaying: bool = False,
    ) -> None:
        self.name = loaded.name
        self.listeners = frozenset(loaded.common.listeners)
        self.observed = loaded.common.mode is Mode.OBSERVE
        self.timeout = loaded.common.timeout
        self.on_error = loaded.common.on_error
        self.breakers: dict[str, PolicyBreaker] = {}
        self.questions = UnansweredCalls(settings.max_outstanding)
        self.facts = UnansweredCalls(settings.max_outstanding)
        self._settings = settings
        self.grants_relaying = grants_relaying
        self._clock = clock
        self._metrics = metrics
        self._next_traceback: dict[str, float] = {}
        self._next_warning = float("-inf")

    def serves(self, listener: str) -> bool:
        """Whether the policy is asked about clients of this listener."""
        return not self.listeners or listener in self.listeners

    @property
    def is_open(self) -> bool:
        """Whether a breaker of any stage is open."""
        return any(breaker.is_open for breaker in self.breakers.values())

    def breaker_at(self, stage_name: str) -> PolicyBreaker:
        """The breaker of one stage. A policy may use another backend at each stage."""
        breaker = self.breakers.get(stage_name)
        if breaker is None:
            settings = self._settings
            breaker = self.breakers[stage_name] = PolicyBreaker(
                self.timeout, settings.failures, settings.rest
            )
        return breaker

    def close_to_questions(self) -> None:
        """The policy has not started: it is not asked, and its ``on_error`` verdict applies."""
        self.questions.close()
        self.facts.close()

    def open_to_questions(self) -> None:
        """The policy has started."""
        self.questions.open()
        self.facts.open()

    def lifecycle_failed(self, method: str, failure: Failure, retry_in: float | None = None) -> None:
        """Log and count that the policy could not start or stop."""
        self._metrics.failures.labels(self.name, method, FailureKind.ERROR.value).inc()
        if method == "start":
            _log.failure(
                "a policy could not start and is not asked",
                failure,
                event="policy.start_failed",
                policy=self.name,
                retry_in=retry_in,
            )
        else:
            _log.failure("a policy could not stop", failure, event="policy.stop_failed", policy=self.name)

    def too_busy(self, call: PolicyCall) -> Verdict:
        """The verdict of a policy that is not asked: it has not started, or has too many unanswered calls."""
        if self.questions.closed:
            self._metrics.failures.labels(self.name, call.stage_name, FailureKind.STOPPED.value).inc()
            self._warn("a policy that has not started was not asked", call, event="policy.not_started")
            return self._verdict_of_failure(call)
        self._metrics.failures.labels(self.name, call.stage_name, "busy").inc()
        self._warn("a policy has too many unanswered calls and was not asked", call, event="policy.busy")
        return self._verdict_of_failure(call)

    def failed(self, call: PolicyCall, failed: PolicyFailure, session_id: str, queue_id: str = "") -> Verdict:
        """Log and count a failure; return the verdict that it counts for.

        ``queue_id`` is the message's where the call was about a route.
        """
        self._metrics.failures.labels(self.name, call.stage_name, failed.kind.value).inc()
        verdict = self._verdict_of_failure(call)
        if failed.kind is FailureKind.OPEN:
            # Logged once, when the breaker opened.
            return verdict
        facts: dict[str, Any] = {
            "event": "policy.failed",
            "policy": self.name,
            "stage": call.stage_name,
            "kind": failed.kind.value,
            "session_id": session_id,
            "seconds": round(failed.seconds, 6),
        }
        if queue_id:
            facts["queue_id"] = queue_id
        if call.stage is not None:
            facts["verdict"] = name_of(verdict)
        now = self._clock.seconds()
        if failed.failure is not None and now >= self._next_traceback.get(call.stage_name, now):
            self._next_traceback[call.stage_name] = now + TRACEBACK_EVERY
            _log.failure("a policy failed", failed.failure, **facts)
        else:
            _log.error("a policy failed", error=failed.reason, **facts)
        return verdict

    def answered(self, call: PolicyCall, verdict: Verdict, seconds: float) -> None:
        """Count a valid answer."""
        name = "continue" if verdict is CONTINUE else name_of(verdict)
        self._metrics.verdicts.labels(self.name, call.stage_name, name).inc()
        self._metrics.duration.labels(self.name, call.stage_name).observe(seconds)

    def answered_after_wait(self, call: PolicyCall, parties: CallParties, seconds: float) -> None:
        """A valid answer came after a wait."""
        if call.breaker.succeeded(parties, seconds, self._clock.seconds()):
            _log.info(
                "a policy answers again",
                event="policy.breaker_closed",
                policy=self.name,
                stage=call.stage_name,
            )

    def failed_after_wait(
        self, call: PolicyCall, parties: CallParties, context: CallContext | None = None
    ) -> None:
        """A failure took :data:`SLOW` seconds or more.

        A breaker saves waiting. A failure that took less counts for its own verdict only, however often. So
        does one of a call that asked DNS and no backend of the policy's own: a client chooses the names.
        """
        if context is not None and context.is_of_client:
            return
        if call.breaker.failed(parties, self._clock.seconds()):
            _log.error(
                "a policy answers no client and gets a short timeout",
                event="policy.breaker_open",
                policy=self.name,
                stage=call.stage_name,
            )

    def blocked(self, call: PolicyCall, seconds: float) -> None:
        """A policy blocked the reactor: no session made progress meanwhile."""
        self._warn("a policy blocked the reactor", call, event="policy.slow", seconds=round(seconds, 6))

    def _warn(self, words: str, call: PolicyCall, **facts: Any) -> None:
        now = self._clock.seconds()
        if now >= self._next_warning:
            self._next_warning = now + TRACEBACK_EVERY
            _log.warn(words, policy=self.name, stage=call.stage_name, **facts)

    def _verdict_of_failure(self, call: PolicyCall) -> Verdict:
        if self.observed or self.on_error is OnError.ACCEPT:
            return CONTINUE
        if self.on_error is OnError.REJECT:
            # An accepted message is not returned because of an internal error: an operator looks at it.
            return Hold(f"the policy {self.name} failed") if call.stage_name == ROUTE else _REJECTED
        if call.stage is Stage.CONNECT:
            return _DEFERRED_GREETING
        return _DEFERRED_LOGIN if call.stage is Stage.LOGIN else _DEFERRED


@dataclass(frozen=True, slots=True)
class PolicyCall:
    """One method of one policy."""

    runner: PolicyRunner
    method: Callable[..., object]
    stage: Stage | None
    stage_name: str
    breaker: PolicyBreaker


def calls_of(runner: PolicyRunner, policy: object) -> dict[Stage, PolicyCall]:
    """The calls of ``policy`` by stage."""
    return {
        stage: PolicyCall(runner, getattr(policy, method), stage, stage.value, runner.breaker_at(stage.value))
        for stage, (interface, method) in STAGE_INTERFACES.items()
        if interface.providedBy(policy)
    }


def facts_of(runner: PolicyRunner, policy: object) -> list[PolicyCall]:
    """The facts that ``policy`` observes."""
    facts: tuple[str, ...] = ()
    if IOutcomeObserver.providedBy(policy):
        facts += ("committed", "refused", "disconnected")
        if hasattr(policy, "decided"):
            facts += ("decided",)
    if ILoginObserver.providedBy(policy):
        facts += ("login_ended",)
    # No session waits for a fact observer, so its breaker has nothing to save.
    return [
        PolicyCall(runner, _observing(policy, fact), None, fact, PolicyBreaker(runner.timeout))
        for fact in facts
    ]


def _observing(policy: object, fact: str) -> Callable[..., object]:
    """The method of an observer; that of version 1 of the contract gets no queue id."""
    method: Callable[..., object] = getattr(policy, fact)
    if fact == "committed" and takes(method, 2) and not takes(method, 3):
        return lambda session, transaction, _queue_id: method(session, transaction)
    return method


def takes(method: object, number: int) -> bool:
    """Whether a method can be called with so many arguments."""
    try:
        signature(cast(Callable[..., object], method)).bind(*range(number))
    except (TypeError, ValueError):
        return False
    return True


def route_of(runner: PolicyRunner, policy: object) -> PolicyCall | None:
    """The call that asks ``policy`` for a route; None where it chooses none."""
    if not IDeliveryPolicy.providedBy(policy):
        return None
    return PolicyCall(runner, policy.route, None, ROUTE, runner.breaker_at(ROUTE))


def sign_of(runner: PolicyRunner, policy: object) -> PolicyCall | None:
    """The call that lets ``policy`` sign; None where it does not."""
    if not ISigner.providedBy(policy):
        return None
    return PolicyCall(runner, policy.sign, None, SIGN, runner.breaker_at(SIGN))


def attempted_of(runner: PolicyRunner, policy: object) -> PolicyCall | None:
    """The call that tells ``policy`` of delivery attempts; None where it does not observe them."""
    if not IDeliveryObserver.providedBy(policy):
        return None
    return PolicyCall(runner, policy.attempted, None, "attempted", PolicyBreaker(runner.timeout))


def ended_of(runner: PolicyRunner, policy: object) -> PolicyCall | None:
    """The call that tells ``policy`` of the end of deliveries; None where it does not observe it.

    An observer of version 1 of the contract has no such method.
    """
    ended = getattr(policy, "ended", None) if IDeliveryObserver.providedBy(policy) else None
    return None if ended is None else PolicyCall(runner, ended, None, "ended", PolicyBreaker(runner.timeout))


class BegunCall(NamedTuple):
    """A call that takes its time. ``context`` is None for a Deferred that the policy made itself."""

    answer: Deferred[Any]
    context: CallContext | None


def begin(answer: object, deadline: float) -> BegunCall | None:
    """A call whose answer is a Deferred or a coroutine; else None.

    Runs a coroutine's beginning; the services that it uses know ``deadline``, in the reactor's seconds.
    """
    if answer is None:
        return None
    if isinstance(answer, Deferred):
        return BegunCall(answer, None)
    if iscoroutine(answer):
        context = CallContext(deadline)
        with calling(context):
            return BegunCall(Deferred.fromCoroutine(answer), context)
    return None


def as_deferred(answer: object, deadline: float) -> Deferred[Any] | None:
    """``answer`` as a Deferred where it is one or is a coroutine, else None."""
    begun = begin(answer, deadline)
    return None if begun is None else begun.answer


def cancel(answer: Deferred[Any], policy: str) -> None:
    """Cancel the work of a policy."""
    try:
        answer.cancel()
    except Exception:  # a canceller is a policy's code
        _log.failure("a policy could not be cancelled", event="policy.cancel_failed", policy=policy)


@dataclass(frozen=True, slots=True)
class PolicyFact:
    """A fact for a policy: the arguments of the policy's method, and the parties that it is about.

    ``network`` is that of the client that the fact is about.
    """

    shown: tuple[Any, ...]
    network: str
    session_id: str
    queue_id: str = ""


def tell(call: PolicyCall, fact: PolicyFact, clock: IReactorTime) -> None:
    """Tell a policy a fact. No session waits for it; a failure is logged and counted.

    What the policy does with it later ends with the policy's timeout.
    """
    runner = call.runner
    if runner.facts.many and not runner.facts.has_space(fact.network):
        runner.too_busy(call)
        return
    began = clock.seconds()

    def failed(kind: FailureKind, failure: Failure | None = None) -> None:
        reason = PolicyFailure(kind, clock.seconds() - began, failure)
        runner.failed(call, reason, fact.session_id, fact.queue_id)

    try:
        pending = as_deferred(call.method(*fact.shown), began + runner.timeout)
    except KeyboardInterrupt:
        raise
    except BaseException:  # SystemExit too: a policy does not end the daemon
        failed(FailureKind.ERROR, Failure())
        return
    if pending is None:
        return
    timed_out = False

    def time_is_up() -> None:
        nonlocal timed_out
        timed_out = True
        failed(FailureKind.TIMEOUT)
        cancel(pending, runner.name)

    def done(result: object) -> None:
        runner.facts.ended(fact.network)
        if deadline.active():
            deadline.cancel()
        if isinstance(result, Failure) and not (timed_out and result.check(CancelledError)):
            failed(FailureKind.ERROR, result)

    runner.facts.began(fact.network)
    deadline = clock.callLater(runner.timeout, time_is_up)
    pending.addBoth(done)
