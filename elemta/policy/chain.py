"""The chain: the policies of the configuration in their order, ready to be asked by many sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from twisted.internet.interfaces import IReactorTime

from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.policy.interfaces import PolicyObserver, SilentPolicyObserver
from elemta.policy.relay_permission import RelayPermission
from elemta.policy.runner import (
    ChainSettings,
    LoadedPolicy,
    PolicyCall,
    PolicyRunner,
    attempted_of,
    calls_of,
    facts_of,
    route_of,
)
from elemta.policy.session import PolicySession
from elemta.smtp.facts import SessionFacts
from elemta.stage import Stage


@dataclass(frozen=True, slots=True)
class _ListenerCalls:
    """The calls for the sessions of one listener, by stage and by fact."""

    asked: Mapping[Stage, Sequence[PolicyCall]] = field(default_factory=dict)
    told: Mapping[str, Sequence[PolicyCall]] = field(default_factory=dict)


class PolicyChain:
    """The policies in the configured order. A chain is replaced as a whole at a reload.

    Each policy has one breaker a stage and one bound on unanswered calls for all its sessions; sessions that
    began with a chain end with it. ``relay`` decides about each recipient whether it may be relayed to;
    without it every recipient is refused.
    """

    def __init__(
        self,
        policies: Sequence[LoadedPolicy],
        clock: IReactorTime,
        observer: PolicyObserver | None = None,
        settings: ChainSettings | None = None,
        relay: RelayPermission | None = None,
    ) -> None:
        self.policies = tuple(policies)
        self._clock = clock
        self._calls: dict[str, _ListenerCalls] = {}
        observer = observer or SilentPolicyObserver()
        settings = settings or ChainSettings()
        self._relay = relay or RelayPermission()
        granting = self._relay.granted_by
        self._runners = [
            (
                loaded,
                PolicyRunner(loaded, clock, observer, settings, grants_relaying=loaded.name in granting),
            )
            for loaded in policies
        ]
        self._stages = frozenset(
            stage for loaded, runner in self._runners for stage in calls_of(runner, loaded.policy)
        )
        self._delivery_hooks = DeliveryHooks(
            [call for loaded, runner in self._runners if (call := route_of(runner, loaded.policy))],
            [call for loaded, runner in self._runners if (call := attempted_of(runner, loaded.policy))],
            clock,
        )

    @property
    def delivery_hooks(self) -> DeliveryHooks:
        """The same policies on the way out."""
        return self._delivery_hooks

    def open_breakers(self) -> dict[str, bool]:
        """For each policy by name whether its breaker is open: it answered no party and gets a short time."""
        return {runner.name: runner.is_open for _, runner in self._runners}

    def asks(self, stage: Stage) -> bool:
        """Whether anything is decided at ``stage``: at RCPT always, elsewhere where a policy is asked."""
        return stage is Stage.RCPT or stage in self._stages

    def open(self, facts: SessionFacts) -> PolicySession:
        """The policies of one new session; those that its listener has."""
        calls = self._calls.get(facts.listener)
        if calls is None:
            calls = self._calls[facts.listener] = self._calls_at(facts.listener)
        return PolicySession(facts, calls.asked, calls.told, self._clock, self._relay)

    def _calls_at(self, listener: str) -> _ListenerCalls:
        asked: dict[Stage, list[PolicyCall]] = {}
        told: dict[str, list[PolicyCall]] = {
            fact: [] for fact in ("committed", "refused", "disconnected", "login_ended")
        }
        for loaded, runner in self._runners:
            if not runner.serves(listener):
                continue
            for stage, call in calls_of(runner, loaded.policy).items():
                asked.setdefault(stage, []).append(call)
            for call in facts_of(runner, loaded.policy):
                told[call.stage_name].append(call)
        return _ListenerCalls(asked, told)
