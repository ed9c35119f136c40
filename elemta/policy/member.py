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
from elemta.policy.breaker import FAILURES, REST, Breaker, Cause
from elemta.policy.interfaces import STAGE_INTERFACES, IDeliveryObserver, IDeliveryPolicy, IOutcomeObserver
from elemta.policy.observer import FailureKind, PolicyObserver
from elemta.policy.verdicts import CONTINUE, Defer, Disconnect, Hold, Reject, Verdict, name_of, nonsense_in
from elemta.smtp.events import Stage

_log = Logger()

MAX_OUTSTANDING = 1000
"""So many calls of one policy may be unanswered at once, those that timed out and never ended included."""

_SHARE = 20

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
class ChainTerms:
    """What holds for every policy of a chain.

    ``failures`` of so many networks in a row open a policy's breaker, for which ``rest`` is how often it is
    tried with its whole timeout (:mod:`elemta.policy.breaker`); ``max_outstanding`` calls of one policy may
    be unanswered at once.
    """

    failures: int = FAILURES
    rest: float = REST
    max_outstanding: int = MAX_OUTSTANDING


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


class Outstanding:
    """The calls of one policy that were not answered yet: ``most`` altogether.

    From half of that on a network has a twentieth of it: one that makes a policy slow leaves room for others.
    """

    __slots__ = ("_by_network", "_most", "_total", "many")

    def __init__(self, most: int) -> None:
        self._most = most
        self._total = 0
        self._by_network: dict[str, int] = {}
        self.many = False

    def began(self, network: str) -> None:
        self._total += 1
        self._by_network[network] = self._by_network.get(network, 0) + 1
        self.many = self._total * 2 >= self._most

    def ended(self, network: str) -> None:
        self._total -= 1
        left = self._by_network[network] - 1
        if left:
            self._by_network[network] = left
        else:
            del self._by_network[network]
        self.many = self._total * 2 >= self._most

    def has_room(self, network: str) -> bool:
        """Whether one more call about a client of ``network`` may be made."""
        if self._total * 2 < self._most:
            return True
        return self._total < self._most and self._by_network.get(network, 0) < max(1, self._most // _SHARE)


class Member:
    """A policy with its breakers and the count of its unanswered calls, shared by all sessions.

    Questions and facts are counted apart: a policy that is slow with facts is asked all the same.
    """

    __slots__ = (
        "_clock",
        "_next_traceback",
        "_next_warning",
        "_observer",
        "_terms",
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
        observer: PolicyObserver,
        terms: ChainTerms,
        *,
        grants_relaying: bool = False,
    ) -> None:
        self.name = loaded.name
        self.listeners = frozenset(loaded.common.listeners)
        self.observed = loaded.common.mode is Mode.OBSERVE
        self.timeout = loaded.common.timeout
        self.on_error = loaded.common.on_error
        self.breakers: dict[str, Breaker] = {}
        self.questions = Outstanding(terms.max_outstanding)
        self.facts = Outstanding(terms.max_outstanding)
        self._terms = terms
        self.grants_relaying = grants_relaying
        self._clock = clock
        self._observer = observer
        self._next_traceback: dict[str, float] = {}
        self._next_warning = float("-inf")

    def cares_for(self, listener: str) -> bool:
        """Whether the policy is asked about clients of this listener."""
        return not self.listeners or listener in self.listeners

    @property
    def is_open(self) -> bool:
        """Whether it is waited for shortly at any stage."""
        return any(breaker.is_open for breaker in self.breakers.values())

    def breaker_at(self, stage_name: str) -> Breaker:
        """The breaker of one stage: what a policy asks elsewhere may be well while this is lost."""
        breaker = self.breakers.get(stage_name)
        if breaker is None:
            terms = self._terms
            breaker = self.breakers[stage_name] = Breaker(self.timeout, terms.failures, terms.rest)
        return breaker

    def too_busy(self, call: Call) -> Verdict:
        """The verdict of a policy that is not asked because too many of its calls are unanswered."""
        self._observer.failed(self.name, call.stage_name, FailureKind.BUSY)
        self._warn("a policy has too many unanswered calls and is not asked", call, event="policy.busy")
        return self._verdict_of_failure(call)

    def failed(self, call: Call, trouble: Trouble, session_id: str, queue_id: str = "") -> Verdict:
        """Log and count a failure; returns what it costs. On the way out it is about a queued message."""
        self._observer.failed(self.name, call.stage_name, trouble.kind)
        verdict = self._verdict_of_failure(call)
        if trouble.kind is FailureKind.OPEN:
            # Told once, when the breaker opened.
            return verdict
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

    def answered(self, call: Call, verdict: Verdict, seconds: float) -> None:
        """Count a good answer."""
        self._observer.asked(self.name, call.stage_name, name_of(verdict), seconds)

    def waited_well(self, call: Call, cause: Cause, seconds: float) -> None:
        """A good answer was waited for."""
        if call.breaker.succeeded(cause, seconds, self._clock.seconds()):
            _log.info(
                "a policy answers again",
                event="policy.breaker-closed",
                policy=self.name,
                stage=call.stage_name,
            )

    def waited_in_vain(self, call: Call, cause: Cause) -> None:
        """A failure cost :data:`SLOW` seconds at least.

        A breaker saves waiting. A failure that cost none costs only its own verdict, however often.
        """
        if call.breaker.failed(cause, self._clock.seconds()):
            _log.error(
                "a policy answers nobody and is waited for shortly",
                event="policy.breaker-open",
                policy=self.name,
                stage=call.stage_name,
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
    breaker: Breaker


def calls_of(member: Member, policy: object) -> dict[Stage, Call]:
    """The stages at which ``policy`` wants to be asked."""
    return {
        stage: Call(member, getattr(policy, method), stage, stage.value, member.breaker_at(stage.value))
        for stage, (interface, method) in STAGE_INTERFACES.items()
        if interface.providedBy(policy)
    }


def facts_of(member: Member, policy: object) -> list[Call]:
    """The facts that ``policy`` wants to be told."""
    if not IOutcomeObserver.providedBy(policy):
        return []
    # Nobody waits for what is done with a fact, so its breaker has nothing to save.
    return [
        Call(member, getattr(policy, fact), None, fact, Breaker(member.timeout))
        for fact in ("committed", "refused", "disconnected")
    ]


def route_of(member: Member, policy: object) -> Call | None:
    """How ``policy`` is asked on the way out, where it wants to be."""
    if not IDeliveryPolicy.providedBy(policy):
        return None
    return Call(member, policy.route, None, ROUTE, member.breaker_at(ROUTE))


def attempted_of(member: Member, policy: object) -> Call | None:
    """How ``policy`` is told of attempts, where it wants to be."""
    if not IDeliveryObserver.providedBy(policy):
        return None
    return Call(member, policy.attempted, None, "attempted", Breaker(member.timeout))


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
