"""The calls that a policy provides: its stages, the route, the signature, and the facts that it observes."""

from __future__ import annotations

from collections.abc import Callable

from elemta.policy.breaker import PolicyBreaker
from elemta.policy.contract import takes
from elemta.policy.interfaces import (
    STAGE_INTERFACES,
    IDeliveryObserver,
    IDeliveryPolicy,
    ILoginObserver,
    IOutcomeObserver,
    ISigner,
)
from elemta.policy.runner import ROUTE, PolicyCall, PolicyRunner
from elemta.stage import Stage

SIGN = "sign"
"""The name, beside those of the stages, of the call that lets a policy sign."""


def calls_of(runner: PolicyRunner, policy: object) -> dict[Stage, PolicyCall]:
    """The calls of ``policy`` by stage."""
    return {
        stage: PolicyCall(runner, getattr(policy, method), stage, stage.value, runner.breaker_at(stage.value))
        for stage, (interface, method) in STAGE_INTERFACES.items()
        if interface.providedBy(policy)
    }


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


def facts_of(runner: PolicyRunner, policy: object) -> list[PolicyCall]:
    """The facts that ``policy`` observes."""
    facts: tuple[str, ...] = ()
    if IOutcomeObserver.providedBy(policy):
        facts += ("committed", "refused", "disconnected")
        # Those that later versions of the contract added.
        facts += tuple(fact for fact in ("decided", "refused_at") if hasattr(policy, fact))
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


def attempted_of(runner: PolicyRunner, policy: object) -> PolicyCall | None:
    """The call that tells ``policy`` of delivery attempts; None where it does not observe them."""
    if not IDeliveryObserver.providedBy(policy):
        return None
    return PolicyCall(runner, policy.attempted, None, "attempted", PolicyBreaker(runner.timeout))


def recording_of(runner: PolicyRunner, policy: object) -> PolicyCall | None:
    """The call that lets ``policy`` keep what is about to be recorded; None where it does not want to."""
    method = getattr(policy, "recording", None) if IDeliveryObserver.providedBy(policy) else None
    if method is None:
        return None
    return PolicyCall(runner, method, None, "recording", PolicyBreaker(runner.timeout))


def ended_of(runner: PolicyRunner, policy: object) -> PolicyCall | None:
    """The call that tells ``policy`` of the end of deliveries; None where it does not observe it.

    An observer of version 1 of the contract has no such method.
    """
    ended = getattr(policy, "ended", None) if IDeliveryObserver.providedBy(policy) else None
    return None if ended is None else PolicyCall(runner, ended, None, "ended", PolicyBreaker(runner.timeout))
