"""One policy of a running chain: how it is called, and what its failures cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import iscoroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.config import Mode, OnError, PolicyCommon
from elemta.policy.breaker import Admission, Breaker
from elemta.policy.interfaces import STAGE_INTERFACES, IDeliveryObserver, IDeliveryPolicy, IOutcomeObserver
from elemta.policy.observer import FailureKind, PolicyObserver
from elemta.policy.verdicts import CONTINUE, Defer, Disconnect, Hold, Reject, Verdict, name_of, nonsense_in
from elemta.smtp.events import Stage

_log = Logger()

MAX_OUTSTANDING = 1000
"""So many calls of one policy may be unanswered at once, those that timed out and never ended included."""

SLOW = 0.1
"""Seconds within a policy's method, without giving the reactor back, that are worth a warning."""

TRACEBACK_EVERY = 10.0
"""Seconds between two tracebacks of one policy at one stage; what fails between them is one line each."""

# RFC 5321 §4.2.2: 451 is a local error in processing
_DEFERRED = Defer("Local trouble, please try again later", code=451, enhanced="4.3.0")
# RFC 5321 §4.3.2: in place of a greeting there are 554 and 421, which is the one that passes
_DEFERRED_GREETING = Disconnect("Local trouble, please try again later", code=421, enhanced="4.3.0")
_REJECTED = Reject("Refused by local policy", code=554, enhanced="5.7.1")

ROUTE = "route"
"""What being asked on the way out is called beside the stages of a conversation."""


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy that was found, verified and built. ``common`` are the settings that every policy takes."""

    name: str
    policy: object
    common: PolicyCommon
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong in a call, and how many seconds it took."""

    kind: FailureKind
    seconds: float
    failure: Failure | None = None
    problem: str = ""

    @property
    def words(self) -> str:
        if self.failure is not None:
            return repr(self.failure.value)[:300]
        return self.problem or self.kind.value


class Member:
    """A policy with its breaker and the count of its unanswered calls, shared by all sessions."""

    __slots__ = (
        "_clock",
        "_next_traceback",
        "_next_warning",
        "_observer",
        "breaker",
        "grants_relaying",
        "listeners",
        "max_outstanding",
        "name",
        "observed",
        "on_error",
        "outstanding",
        "timeout",
    )

    def __init__(
        self,
        loaded: LoadedPolicy,
        clock: IReactorTime,
        observer: PolicyObserver,
        breaker: Breaker,
        max_outstanding: int = MAX_OUTSTANDING,
        *,
        grants_relaying: bool = False,
    ) -> None:
        self.name = loaded.name
        self.listeners = frozenset(loaded.common.listeners)
        self.observed = loaded.common.mode is Mode.OBSERVE
        self.timeout = loaded.common.timeout
        self.on_error = loaded.common.on_error
        self.breaker = breaker
        self.outstanding = 0
        self.max_outstanding = max_outstanding
        self.grants_relaying = grants_relaying
        self._clock = clock
        self._observer = observer
        self._next_traceback: dict[str, float] = {}
        self._next_warning = float("-inf")

    def cares_for(self, listener: str) -> bool:
        """Whether the policy is asked about clients of this listener."""
        return not self.listeners or listener in self.listeners

    def leave_alone(self, call: Call, kind: FailureKind) -> Verdict:
        """The verdict of a policy that is not asked because it is open or busy."""
        self._observer.failed(self.name, call.stage_name, kind)
        if kind is FailureKind.BUSY:
            self._warn("a policy has too many unanswered calls and is not asked", call, event="policy.busy")
        return self._verdict_of_failure(call)

    def failed(self, call: Call, trouble: Trouble, session_id: str, queue_id: str = "") -> Verdict:
        """Log and count a failure; returns what it costs. On the way out it is about a queued message."""
        self._observer.failed(self.name, call.stage_name, trouble.kind)
        verdict = self._verdict_of_failure(call)
        facts: dict[str, Any] = {
            "event": "policy.failed",
            "policy": self.name,
            "stage": call.stage_name,
            "kind": trouble.kind.value,
            "session_id": session_id,
            "seconds": round(trouble.seconds, 6),
        }
        if queue_id:
            facts["queue_id"] = queue_id
        if call.stage is not None:
            facts["verdict"] = name_of(verdict)
        now = self._clock.seconds()
        if trouble.failure is not None and now >= self._next_traceback.get(call.stage_name, now):
            self._next_traceback[call.stage_name] = now + TRACEBACK_EVERY
            _log.failure("a policy failed", trouble.failure, **facts)
        else:
            _log.error("a policy failed", error=trouble.words, **facts)
        return verdict

    def answered(self, call: Call, verdict: Verdict, seconds: float, admission: Admission) -> None:
        """Count a good answer."""
        self._observer.asked(self.name, call.stage_name, name_of(verdict), seconds)
        if self.breaker.succeeded(admission):
            _log.info("a policy answers again", event="policy.breaker-closed", policy=self.name)

    def ended_badly(self, admission: Admission, seconds: float) -> None:
        # A breaker saves waiting. A failure that cost none costs only its own verdict, however often: else
        # whoever finds input that makes a policy raise could switch it off for everybody.
        if seconds < SLOW and admission is not Admission.PROBE:
            return
        if self.breaker.failed(admission, self._clock.seconds()):
            _log.error(
                "a policy keeps failing and is left alone", event="policy.breaker-open", policy=self.name
            )

    def blocked(self, call: Call, seconds: float) -> None:
        """A policy kept the reactor for itself: every session stood still meanwhile."""
        self._warn("a policy blocked the reactor", call, event="policy.slow", seconds=round(seconds, 6))

    def _warn(self, words: str, call: Call, **facts: Any) -> None:
        now = self._clock.seconds()
        if now >= self._next_warning:
            self._next_warning = now + TRACEBACK_EVERY
            _log.warn(words, policy=self.name, stage=call.stage_name, **facts)

    def _verdict_of_failure(self, call: Call) -> Verdict:
        if self.observed or self.on_error is OnError.ACCEPT:
            return CONTINUE
        if self.on_error is OnError.REJECT:
            # What was accepted is not returned because something broke here: an operator looks at it.
            return Hold(f"the policy {self.name} failed") if call.stage_name == ROUTE else _REJECTED
        return _DEFERRED_GREETING if call.stage is Stage.CONNECT else _DEFERRED


@dataclass(frozen=True, slots=True)
class Call:
    """One method of one policy."""

    member: Member
    method: Callable[..., object]
    stage: Stage | None
    stage_name: str


def calls_of(member: Member, policy: object) -> dict[Stage, Call]:
    """The stages at which ``policy`` wants to be asked."""
    return {
        stage: Call(member, getattr(policy, method), stage, stage.value)
        for stage, (interface, method) in STAGE_INTERFACES.items()
        if interface.providedBy(policy)
    }


def facts_of(member: Member, policy: object) -> list[Call]:
    """The facts that ``policy`` wants to be told."""
    if not IOutcomeObserver.providedBy(policy):
        return []
    return [
        Call(member, getattr(policy, fact), None, fact) for fact in ("committed", "refused", "disconnected")
    ]


def route_of(member: Member, policy: object) -> Call | None:
    """How ``policy`` is asked on the way out, where it wants to be."""
    return Call(member, policy.route, None, ROUTE) if IDeliveryPolicy.providedBy(policy) else None


def attempted_of(member: Member, policy: object) -> Call | None:
    """How ``policy`` is told of attempts, where it wants to be."""
    if not IDeliveryObserver.providedBy(policy):
        return None
    return Call(member, policy.attempted, None, "attempted")


def as_deferred(answer: object) -> Deferred[Any] | None:
    """``answer`` as a Deferred where it is one or is a coroutine, else None. Runs a coroutine's beginning."""
    if isinstance(answer, Deferred):
        return answer
    if iscoroutine(answer):
        return Deferred.fromCoroutine(answer)
    return None


def problem_of(answer: object, judge: Callable[[object], str | None] = nonsense_in) -> str | None:
    """What is wrong with an answer that should be a verdict; None where it is one."""
    if answer is None:
        return "no verdict but None: does a method end without return CONTINUE?"
    return judge(answer)
