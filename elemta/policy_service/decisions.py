"""What the limits say to a request of Postfix's, as an action of Postfix's access(5)."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from elemta.bounded_map import BoundedMap
from elemta.config import ChargeMessagesAt, Counts
from elemta.deferred_value import MaybeDeferred, Steps, run
from elemta.limits import Charge, Limiter
from elemta.policy import Defer, Disconnect, Reject, limit_verdict
from elemta.policy_service.requests import PolicyRequest
from elemta.stage import Stage

DUNNO = "DUNNO"
MAX_REMEMBERED = 200_000
"""Charges of messages that are remembered, so that a second question about one is not charged again."""
REMEMBERED_SECONDS = 3600.0

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


class PolicyDecider:
    """Decides the requests of one service. ``limiter`` gives the limits that are in force now."""

    def __init__(self, charge_messages_at: ChargeMessagesAt, limiter: Callable[[], Limiter]) -> None:
        self.charge_messages_at = charge_messages_at
        self._limiter = limiter
        self._remembered: BoundedMap[bytes, float] = BoundedMap(MAX_REMEMBERED)

    def decide(self, request: PolicyRequest) -> MaybeDeferred[str]:
        """The action to answer with."""
        counts = _CHARGED[self.charge_messages_at].get(request.state, _NOTHING)
        if not counts:
            return DUNNO
        limiter = self._limiter()
        charged = _ChargedBefore(self._remembered, request.instance, limiter.seconds())
        recipient = request.recipient
        question = f"{request.state} {recipient.address if recipient is not None else ''}"
        if question in charged:
            return DUNNO
        charge = limiter.charge_counts(counts, request, request, recipient, already=charged)
        return run(_decided(charge, charged, question))


class _ChargedBefore:
    """What one message was charged and which questions it was, where it has an instance."""

    def __init__(self, remembered: BoundedMap[bytes, float], instance: str, now: float) -> None:
        self._remembered = remembered
        self._instance = instance
        self._now = now

    def __contains__(self, text: object) -> bool:
        at = self._remembered.get(self._place(str(text))) if self._instance else None
        return at is not None and self._now - at <= REMEMBERED_SECONDS

    def add(self, text: str) -> None:
        if self._instance:
            self._remembered.keep(self._place(text), self._now)

    def _place(self, text: str) -> bytes:
        # A digest, since a client chose how long both are.
        octets = f"{self._instance}\0{text}".encode("utf-8", "surrogateescape")
        return blake2b(octets, digest_size=16).digest()


def _decided(charged: MaybeDeferred[Charge], before: _ChargedBefore, question: str) -> Steps[str]:
    charge: Charge = yield charged
    if charge.refusal is not None:
        return _action(limit_verdict(charge.refusal, Stage.RCPT))
    before.add(question)
    for receipt in charge.receipts:
        before.add(receipt.key)
    return DUNNO


def _action(verdict: object) -> str:
    if isinstance(verdict, Disconnect):
        return f"421 {verdict.enhanced} {verdict.text}"
    if isinstance(verdict, Reject):
        return f"REJECT {verdict.enhanced} {verdict.text}"
    if isinstance(verdict, Defer):
        return f"DEFER_IF_PERMIT {verdict.enhanced} {verdict.text}"
    raise TypeError(f"no answer of a limit: {verdict!r}")
