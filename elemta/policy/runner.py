"""One policy of a running chain: its breakers, the count of its calls, and what its failures count for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.reflect import safe_repr

from elemta.config import Mode, OnError, PolicyCommon
from elemta.metrics import PolicyMetrics
from elemta.policy.breaker import FAILURES, REST, CallParties, PolicyBreaker
from elemta.policy.call_context import CallContext
from elemta.policy.interfaces import FailureKind
from elemta.policy.services import Services
from elemta.policy.unanswered_calls import MAX_OUTSTANDING, UnansweredCalls
from elemta.policy.verdicts import CONTINUE, Defer, Disconnect, Hold, Reject, Verdict, name_of
from elemta.stage import Stage

_log = Logger()

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

ROUTE = "route"
"""The name, beside those of the stages, of the question for a recipient's route."""


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy that was found, verified and built. ``common`` are the settings that every policy takes.

    ``plugin`` is the name of the plugin that it was made of, which ``use`` may have said. ``build`` makes
    another of it, with other services.
    """

    name: str
    policy: object
    common: PolicyCommon
    origin: str = ""
    services: Services | None = None
    plugin: str = ""
    build: Callable[[Services], object] | None = None


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
            # Also of an exception that can't be put into words.
            return str(safe_repr(self.failure.value))[:300]
        return self.problem or self.kind.value


@dataclass(frozen=True, slots=True)
class RecentFailure:
    """The last failure of a policy: ``at`` is by the clock of the chain."""

    at: float
    stage: str
    kind: str
    reason: str


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
        "last_failure",
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
        self.last_failure: RecentFailure | None = None
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
        kind = FailureKind.ERROR.value
        self._metrics.failures.labels(self.name, method, kind).inc()
        reason = safe_repr(failure.value)[:300]
        self.last_failure = RecentFailure(self._clock.seconds(), method, kind, reason)
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
        self.last_failure = RecentFailure(now, call.stage_name, failed.kind.value, failed.reason)
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
