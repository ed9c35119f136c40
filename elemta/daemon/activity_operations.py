"""The admin calls about what a node has done: its traffic of the last hour and day, and its policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from elemta.metric_registry import counts_of, histogram_quantile
from elemta.metrics import PolicyMetrics
from elemta.ops.admin_calls import route
from elemta.ops.traffic import TrafficHistory, TrafficSeries
from elemta.policy.chain import PolicyChain
from elemta.policy.runner import LoadedPolicy, PolicyRunner


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """What this node accepted, deferred and refused: an hour by minutes, and 24 hours by quarters."""

    hour: TrafficSeries
    day: TrafficSeries


@dataclass(frozen=True, slots=True)
class LastPolicyFailure:
    """The last failure of a policy, so many ``seconds`` ago."""

    seconds: float
    stage: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class StageActivity:
    """What a policy did at one stage since the start of the daemon.

    ``answers`` are the valid ones; half of them took at most about ``p50`` seconds and 95 % about ``p95``,
    as the buckets of the metric tell it. Both are null without an answer. ``breaker`` is ``closed``, or
    ``open`` while calls wait only shortly because the policy answered no network.
    """

    stage: str
    answers: int
    p50: float | None
    p95: float | None
    verdicts: Mapping[str, int]
    failures: Mapping[str, int]
    breaker: str


@dataclass(frozen=True, slots=True)
class PolicyActivity:
    """One policy of the chain: its settings, and the stages at which it did something.

    ``asked`` is False where it could not start, so that its ``on_error`` applies. ``timeout`` is in seconds.
    ``listeners`` are empty where it is asked at all of them.
    """

    name: str
    plugin: str
    mode: str
    on_error: str
    timeout: float
    listeners: tuple[str, ...]
    asked: bool
    breaker: str
    stages: tuple[StageActivity, ...]
    last_failure: LastPolicyFailure | None


@dataclass(frozen=True, slots=True)
class PolicyActivities:
    """The policies of the chain, in its order."""

    policies: tuple[PolicyActivity, ...]


class ActivityOperations:
    """Reports the traffic and the policies of this node; ``now`` is the clock of the chain."""

    def __init__(
        self,
        traffic: TrafficHistory,
        chain: Callable[[], PolicyChain],
        metrics: PolicyMetrics,
        now: Callable[[], float],
    ) -> None:
        self._traffic = traffic
        self._chain = chain
        self._metrics = metrics
        self._now = now

    @route("GET", "/v1/traffic")
    async def traffic(self) -> TrafficReport:
        """What this node accepted, deferred and refused in the last hour and the last day."""
        return TrafficReport(self._traffic.hour(), self._traffic.day())

    @route("GET", "/v1/policies")
    async def policies(self) -> PolicyActivities:
        """The chain of policies: latency, verdicts, failures, and the state of each breaker."""
        return PolicyActivities(tuple(self._activity(*each) for each in self._chain().members))

    def _activity(self, loaded: LoadedPolicy, runner: PolicyRunner) -> PolicyActivity:
        common = loaded.common
        failure = runner.last_failure
        return PolicyActivity(
            name=loaded.name,
            plugin=loaded.plugin or loaded.name,
            mode=common.mode.value,
            on_error=common.on_error.value,
            timeout=common.timeout,
            listeners=tuple(common.listeners),
            asked=not runner.questions.closed,
            breaker=_breaker(open_=runner.is_open),
            stages=tuple(self._stage(runner, stage) for stage in self._stages_of(runner)),
            last_failure=None
            if failure is None
            else LastPolicyFailure(
                max(0.0, self._now() - failure.at), failure.stage, failure.kind, failure.reason
            ),
        )

    def _stages_of(self, runner: PolicyRunner) -> list[str]:
        metrics = self._metrics
        counted = (metrics.duration, metrics.failures)
        named = (labels for each in counted for labels, _ in each.children())
        return list(dict.fromkeys(stage for policy, stage, *_ in named if policy == runner.name))

    def _stage(self, runner: PolicyRunner, stage: str) -> StageActivity:
        metrics = self._metrics
        of_stage = (runner.name, stage)
        verdicts = {
            labels[2]: count for labels, count in counts_of(metrics.verdicts) if labels[:2] == of_stage
        }
        failures = {
            labels[2]: count for labels, count in counts_of(metrics.failures) if labels[:2] == of_stage
        }
        durations = [child for labels, child in metrics.duration.children() if labels == of_stage]
        breaker = runner.breakers.get(stage)
        return StageActivity(
            stage=stage,
            answers=sum(verdicts.values()),
            p50=histogram_quantile(0.5, durations[0]) if durations else None,
            p95=histogram_quantile(0.95, durations[0]) if durations else None,
            verdicts=verdicts,
            failures=failures,
            breaker=_breaker(open_=breaker is not None and breaker.is_open),
        )


def _breaker(*, open_: bool) -> str:
    return "open" if open_ else "closed"
