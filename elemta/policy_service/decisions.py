"""What the limits say to a request of Postfix's, as an action of Postfix's access(5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from elemta.bounded_map import BoundedMap
from elemta.config import ChargeMessagesAt, Counts
from elemta.deferred_value import MaybeDeferred, Steps, run
from elemta.limits import Charge, Limiter
from elemta.policy import Defer, Disconnect, Reject, limit_verdict
from elemta.policy_service.requests import PolicyRequest
from elemta.stage import Stage

DUNNO = "DUNNO"
MAX_INSTANCES = 100_000
"""Messages whose charges are remembered, so that a second question about one is not charged again."""
INSTANCE_SECONDS = 3600.0

_CONNECTION = frozenset({Counts.CONNECTIONS})
_RECIPIENT = frozenset({Counts.RECIPIENTS})
_MESSAGE = frozenset({Counts.MESSAGES, Counts.BYTES})
_NOTHING: frozenset[Counts] = frozenset()

_CHARGED = {
    ChargeMessagesAt.END_OF_MESSAGE: {
        "CONNECT": _CONNECTION,
        "RCPT": _RECIPIENT,
        "END-OF-MESSAGE": _MESSAGE,
    },
    ChargeMessagesAt.RCPT: {
        "CONNECT": _CONNECTION,
        "RCPT": _RECIPIENT | _MESSAGE,
    },
}
"""What each state of the protocol charges. The others charge nothing."""


@dataclass(slots=True)
class _Instance:
    """What one message has been charged."""

    began: float
    keys: set[str] = field(default_factory=set)
    answered: set[tuple[str, str]] = field(default_factory=set)


class PolicyDecider:
    """Decides the requests of one service. ``limiter`` gives the limits that are in force now."""

    def __init__(self, charge_messages_at: ChargeMessagesAt, limiter: Callable[[], Limiter]) -> None:
        self.charge_messages_at = charge_messages_at
        self._limiter = limiter
        self._instances: BoundedMap[str, _Instance] = BoundedMap(MAX_INSTANCES)

    def decide(self, request: PolicyRequest) -> MaybeDeferred[str]:
        """The action to answer with."""
        counts = _CHARGED[self.charge_messages_at].get(request.state, _NOTHING)
        if not counts:
            return DUNNO
        instance = self._instance(request)
        question = request.state, str(request.recipient.address) if request.recipient is not None else ""
        if instance is not None and question in instance.answered:
            return DUNNO
        already = instance.keys if instance is not None else frozenset()
        limiter = self._limiter()
        charged = limiter.charge_counts(counts, request, request, request.recipient, already=already)
        return run(_decided(charged, instance, question))

    def _instance(self, request: PolicyRequest) -> _Instance | None:
        if not request.instance:
            return None
        now = self._limiter().seconds()
        known = self._instances.get(request.instance)
        if known is None or now - known.began > INSTANCE_SECONDS:
            known = _Instance(now)
            self._instances.keep(request.instance, known)
        return known


def _decided(
    charged: MaybeDeferred[Charge], instance: _Instance | None, question: tuple[str, str]
) -> Steps[str]:
    charge: Charge = yield charged
    if charge.refusal is not None:
        return _action(limit_verdict(charge.refusal, Stage.RCPT))
    if instance is not None:
        instance.answered.add(question)
        instance.keys.update(receipt.key for receipt in charge.receipts)
    return DUNNO


def _action(verdict: object) -> str:
    if isinstance(verdict, Disconnect):
        return f"421 {verdict.enhanced} {verdict.text}"
    if isinstance(verdict, Reject):
        return f"REJECT {verdict.enhanced} {verdict.text}"
    if isinstance(verdict, Defer):
        return f"DEFER_IF_PERMIT {verdict.enhanced} {verdict.text}"
    raise TypeError(f"no answer of a limit: {verdict!r}")
