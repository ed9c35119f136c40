"""The chain: the policies of the configuration in their order, shared by all sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from twisted.internet.interfaces import IReactorTime

from elemta.metrics import PolicyMetrics
from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.policy.policy_calls import (
    attempted_of,
    calls_of,
    ended_of,
    facts_of,
    recording_of,
    route_of,
    sign_of,
)
from elemta.policy.relay_permission import RelayPermission
from elemta.policy.runner import ChainSettings, LoadedPolicy, PolicyCall, PolicyRunner
from elemta.policy.session import PolicySession
from elemta.smtp.session_info import SessionInfo
from elemta.stage import Stage


@dataclass(frozen=True, slots=True)
class _ListenerCalls:
    """The calls for the sessions of one listener, by stage and by fact."""

    asked: Mapping[Stage, Sequence[PolicyCall]] = field(default_factory=dict)
    notified: Mapping[str, Sequence[PolicyCall]] = field(default_factory=dict)


class PolicyChain:
    """The policies in the configured order. A reload replaces the chain as a whole.

    Each policy has one breaker per stage and one bound on unanswered calls for all sessions. A session keeps
    the chain that it began with. ``relay`` decides for each recipient whether the client may relay to it;
    without ``relay`` every recipient is refused.
    """

    def __init__(
        self,
        policies: Sequence[LoadedPolicy],
        clock: IReactorTime,
        metrics: PolicyMetrics | None = None,
        settings: ChainSettings | None = None,
        relay: RelayPermission | None = None,
    ) -> None:
        self.policies = tuple(policies)
        self._clock = clock
        self.sessions = 0
        """Sessions that began with this chain and are open."""
        self._calls: dict[str, _ListenerCalls] = {}
        metrics = metrics or PolicyMetrics()
        settings = settings or ChainSettings()
        self.relay = relay or RelayPermission()
        """Which clients may relay."""
        granting = self.relay.granted_by
        self._runners = [
            (
                loaded,
                PolicyRunner(loaded, clock, metrics, settings, grants_relaying=loaded.name in granting),
            )
            for loaded in policies
        ]
        asked = {stage for loaded, runner in self._runners for stage in calls_of(runner, loaded.policy)}
        self.asked = frozenset({Stage.RCPT, *asked})
        """The stages at which :meth:`PolicySession.ask` decides anything: RCPT is always one."""
        self.delivery_hooks = DeliveryHooks(
            [call for loaded, runner in self._runners if (call := route_of(runner, loaded.policy))],
            [call for loaded, runner in self._runners if (call := attempted_of(runner, loaded.policy))],
            clock,
            [call for loaded, runner in self._runners if (call := sign_of(runner, loaded.policy))],
            [call for loaded, runner in self._runners if (call := ended_of(runner, loaded.policy))],
            recording=[
                call for loaded, runner in self._runners if (call := recording_of(runner, loaded.policy))
            ],
        )
        """The same policies in delivery."""

    def open_breakers(self) -> dict[str, bool]:
        """For each policy by name, whether one of its breakers is open."""
        return {runner.name: runner.is_open for _, runner in self._runners}

    @property
    def unasked(self) -> frozenset[Stage]:
        """The stages that a session need not ask about, because no policy says anything there."""
        return frozenset({Stage.HELO, Stage.DATA}) - self.asked

    def open(self, facts: SessionInfo) -> PolicySession:
        """Begin a session with the policies of its listener."""
        calls = self._calls.get(facts.listener)
        if calls is None:
            calls = self._calls[facts.listener] = self._calls_at(facts.listener)
        self.sessions += 1
        return PolicySession(facts, calls.asked, calls.notified, self._clock, self.relay, count=self)

    @property
    def members(self) -> Sequence[tuple[LoadedPolicy, PolicyRunner]]:
        """Each policy, and what runs it."""
        return self._runners

    @property
    def idle(self) -> bool:
        """Whether no session is open, and no policy has a call that is not answered yet."""
        return not self.sessions and all(
            runner.questions.none and runner.facts.none for _, runner in self._runners
        )

    def _calls_at(self, listener: str) -> _ListenerCalls:
        asked: dict[Stage, list[PolicyCall]] = {}
        notified: dict[str, list[PolicyCall]] = {
            fact: []
            for fact in ("committed", "refused", "refused_at", "disconnected", "decided", "login_ended")
        }
        for loaded, runner in self._runners:
            if not runner.serves(listener):
                continue
            for stage, call in calls_of(runner, loaded.policy).items():
                asked.setdefault(stage, []).append(call)
            for call in facts_of(runner, loaded.policy):
                notified[call.stage_name].append(call)
        return _ListenerCalls(asked, notified)
