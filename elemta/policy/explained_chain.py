"""A chain of the same policies for one explanation: each built once more, with services that change nothing.

One with a life is asked itself (:mod:`elemta.policy.explained_services`).

No observer hears of it, no metric is counted, and no breaker of the real chain is fed. A backend that
only answers is asked: DNS, HTTP, and connections of the policy's own, which are closed at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import ILogObserver, LogEvent, Logger
from zope.interface import implementer

from elemta.errors import ExplanationFailed
from elemta.metrics import PolicyMetrics
from elemta.policy.call_context import CallContext
from elemta.policy.chain import PolicyChain
from elemta.policy.explained_services import ExplainedStores, RunningPolicy
from elemta.policy.interfaces import STAGE_INTERFACES, FailureKind, IDeliveryPolicy, ILifecycle, ISigner
from elemta.policy.overlay_store import OverlayStore
from elemta.policy.runner import LoadedPolicy, PolicyCall
from elemta.policy.services import Counter, Histogram, Limits, PrefixedMetrics, Services
from elemta.policy.session import PolicySession
from elemta.policy.streams import StreamConnector
from elemta.policy.verdicts import Verdict
from elemta.smtp.session_info import SessionInfo
from elemta.stage import Stage


@dataclass(frozen=True, slots=True)
class PolicyAnswer:
    """What one policy answered at one stage.

    ``failure`` is why its ``on_error`` verdict counts in place of its own; None where it answered. What an
    ``observed`` policy answers decides nothing.
    """

    stage: Stage
    policy: str
    verdict: Verdict
    observed: bool
    failure: FailureKind | None = None


class ExplainedSession(PolicySession):
    """A session of an explained chain. ``answers`` are those of its policies, in order."""

    __slots__ = ("answers",)

    def __init__(self, *args: Any, answers: list[PolicyAnswer], **named: Any) -> None:
        super().__init__(*args, **named)
        self.answers = answers

    def judged(
        self,
        call: PolicyCall,
        answer: object,
        took: float,
        *,
        waited: bool = False,
        context: CallContext | None = None,
    ) -> Verdict:
        noted = len(self.answers)
        verdict = super().judged(call, answer, took, waited=waited, context=context)
        if len(self.answers) == noted and call.stage is not None and isinstance(answer, Verdict):
            # Else it was no verdict, and was noted as a failure.
            self.answers.append(PolicyAnswer(call.stage, call.runner.name, answer, call.runner.observed))
        return verdict

    def too_busy(self, call: PolicyCall) -> Verdict:
        verdict = super().too_busy(call)
        self._note_failure(call, verdict, FailureKind.STOPPED)
        return verdict

    def failed(self, call: PolicyCall, kind: FailureKind, took: float, *args: Any, **named: Any) -> Verdict:
        verdict = super().failed(call, kind, took, *args, **named)
        self._note_failure(call, verdict, kind)
        return verdict

    def _note_failure(self, call: PolicyCall, verdict: Verdict, kind: FailureKind) -> None:
        if call.stage is not None:
            self.answers.append(
                PolicyAnswer(call.stage, call.runner.name, verdict, call.runner.observed, kind)
            )


class ExplainedChain(PolicyChain):
    """The policies of ``chain``, built once more. ``answers`` are those of all its sessions.

    Raises :class:`~elemta.errors.ExplanationFailed` where a policy can't be built now.
    """

    def __init__(self, chain: PolicyChain, limits: Limits, clock: IReactorTime) -> None:
        self._connectors: list[StreamConnector] = []
        self._stores = ExplainedStores(clock.seconds)
        asked = [(loaded, runner) for loaded, runner in chain.members if _is_asked(loaded.policy)]
        twins = [self._twin(loaded, limits) for loaded, _ in asked]
        super().__init__(twins, clock, PolicyMetrics(), relay=chain.relay)
        for (_, real), (_, runner) in zip(asked, self.members, strict=True):
            if real.questions.closed:
                runner.close_to_questions()
        self.answers: list[PolicyAnswer] = []

    def _twin(self, loaded: LoadedPolicy, limits: Limits) -> LoadedPolicy:
        if ILifecycle.providedBy(loaded.policy):
            return replace(loaded, policy=RunningPolicy(loaded.policy, self._stores))
        if loaded.build is None or loaded.services is None:
            return loaded
        real = loaded.services
        connector = StreamConnector(real.reactor, loaded.common.timeout)
        self._connectors.append(connector)
        services = replace(
            real,
            limits=limits,
            store=OverlayStore(real.store, real.reactor.seconds),
            metrics=PrefixedMetrics(loaded.name, NoMetrics()),
            log=Logger(namespace=f"elemta.policy.{loaded.name}", observer=_drop),
            connect=connector,
        )
        return replace(loaded, policy=_built(loaded.name, loaded.build, services), services=services)

    def close(self) -> None:
        """Close the connections that were made for the explanation."""
        for connector in self._connectors:
            connector.close_all()

    def open(self, facts: SessionInfo) -> ExplainedSession:
        calls = self._calls_at(facts.listener)
        unheard: Mapping[str, Sequence[PolicyCall]] = dict.fromkeys(calls.notified, ())
        self.sessions += 1
        return ExplainedSession(
            facts, calls.asked, unheard, self._clock, self.relay, count=self, answers=self.answers
        )


def _is_asked(policy: object) -> bool:
    """Whether a policy decides anything: what only observes is not needed."""
    stages = [interface for interface, _ in STAGE_INTERFACES.values()]
    return any(interface.providedBy(policy) for interface in (*stages, IDeliveryPolicy, ISigner))


def _built(name: str, build: Callable[[Services], object], services: Services) -> object:
    try:
        return build(services)
    except BaseException as error:  # a policy's code may raise anything
        raise ExplanationFailed(f"the policy {name} can't be built now: {error}") from error


class NoMetrics:
    """Metrics that are not counted."""

    def counter(self, name: str, words: str, labels: Sequence[str] = ()) -> Counter:  # noqa: ARG002
        return _NO_METRIC

    def histogram(
        self,
        name: str,  # noqa: ARG002
        words: str,  # noqa: ARG002
        labels: Sequence[str] = (),  # noqa: ARG002
        buckets: Sequence[float] | None = None,  # noqa: ARG002
    ) -> Histogram:
        return _NO_METRIC


class _NoMetric:
    def inc(self, amount: float = 1) -> None:
        """Not counted."""

    def observe(self, amount: float) -> None:
        """Not counted."""

    def labels(self, *_values: str) -> _NoMetric:
        return self


_NO_METRIC = _NoMetric()


@implementer(ILogObserver)
def _drop(event: LogEvent) -> None:
    """What a policy logs while it explains is not written."""
