"""The chain: the policies of the configuration in their order, ready to be asked by many sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from twisted.internet.interfaces import IReactorTime

from elemta.policy.asking import Decision
from elemta.policy.conversation import Conversation
from elemta.policy.departing import DeliveryHooks
from elemta.policy.member import (
    Call,
    ChainTerms,
    LoadedPolicy,
    Member,
    attempted_of,
    calls_of,
    facts_of,
    route_of,
)
from elemta.policy.observer import PolicyObserver, SilentPolicyObserver
from elemta.policy.relay_permission import RelayPermission
from elemta.policy.walking import NO_OPINION
from elemta.smtp.events import Stage
from elemta.smtp.facts import SessionFacts

__all__ = ["NO_OPINION", "ChainTerms", "Conversation", "Decision", "LoadedPolicy", "PolicyChain"]


@dataclass(frozen=True, slots=True)
class _Calls:
    """Whom a session of one listener asks and tells."""

    asked: Mapping[Stage, Sequence[Call]] = field(default_factory=dict)
    told: Mapping[str, Sequence[Call]] = field(default_factory=dict)


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
        terms: ChainTerms | None = None,
        relay: RelayPermission | None = None,
    ) -> None:
        self.policies = tuple(policies)
        self._clock = clock
        self._calls: dict[str, _Calls] = {}
        observer = observer or SilentPolicyObserver()
        terms = terms or ChainTerms()
        self._relay = relay or RelayPermission()
        self._members = [
            (
                loaded,
                Member(loaded, clock, observer, terms, grants_relaying=loaded.name in self._relay.granted_by),
            )
            for loaded in policies
        ]
        self._stages = frozenset(
            stage for loaded, member in self._members for stage in calls_of(member, loaded.policy)
        )
        self._delivery_hooks = DeliveryHooks(
            [call for loaded, member in self._members if (call := route_of(member, loaded.policy))],
            [call for loaded, member in self._members if (call := attempted_of(member, loaded.policy))],
            clock,
        )

    @property
    def delivery_hooks(self) -> DeliveryHooks:
        """The same policies on the way out."""
        return self._delivery_hooks

    def open_breakers(self) -> dict[str, bool]:
        """For each policy by name whether it is waited for shortly now because it answered nobody."""
        return {member.name: member.is_open for _, member in self._members}

    def asks(self, stage: Stage) -> bool:
        """Whether anything is decided at ``stage``: at RCPT always, elsewhere where a policy is asked."""
        return stage is Stage.RCPT or stage in self._stages

    def open(self, facts: SessionFacts) -> Conversation:
        """The policies of one new session; those that its listener has."""
        calls = self._calls.get(facts.listener)
        if calls is None:
            calls = self._calls[facts.listener] = self._calls_at(facts.listener)
        return Conversation(facts, calls.asked, calls.told, self._clock, self._relay)

    def _calls_at(self, listener: str) -> _Calls:
        asked: dict[Stage, list[Call]] = {}
        told: dict[str, list[Call]] = {"committed": [], "refused": [], "disconnected": []}
        for loaded, member in self._members:
            if not member.cares_for(listener):
                continue
            for stage, call in calls_of(member, loaded.policy).items():
                asked.setdefault(stage, []).append(call)
            for call in facts_of(member, loaded.policy):
                told[call.stage_name].append(call)
        return _Calls(asked, told)
