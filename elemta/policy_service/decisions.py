"""What the limits say to a request of Postfix's, as an action of Postfix's access(5)."""

from __future__ import annotations

from collections.abc import Callable

from elemta.config import ChargeMessagesAt, Counts
from elemta.deferred_value import MaybeDeferred
from elemta.limits import Charge, Limiter
from elemta.policy import Defer, Disconnect, Reject, limit_verdict
from elemta.policy_service.requests import PolicyRequest
from elemta.stage import Stage

DUNNO = "DUNNO"
MAX_REMEMBERED = 100_000
"""Charges of messages that are remembered at least, so that a second question about one charges nothing."""
REMEMBERED_SECONDS = 3600.0
_GRAIN = 10

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
        self._remembered = ChargedMessages()

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
        if isinstance(charge, Charge):
            return _decided(charge, charged, question)
        return charge.addCallback(_decided, charged, question)


class ChargedMessages:
    """Hashes of what was charged: the last :data:`MAX_REMEMBERED` and some more, for an hour.

    Two dictionaries take turns, since one in which the oldest are removed one by one is twice as large.
    """

    __slots__ = ("_old", "_time", "_young")

    def __init__(self) -> None:
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._time = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def find(self, mark: int, now: float) -> bool:
        """Whether it was charged within the time."""
        time = self._young.get(mark)
        if time is None:
            time = self._old.get(mark)
        return time is not None and now - time <= REMEMBERED_SECONDS

    def keep(self, mark: int, now: float) -> None:
        """It was charged now."""
        if len(self._young) >= MAX_REMEMBERED:
            self._old, self._young = self._young, {}
        if now - self._time >= _GRAIN:
            self._time = int(now)
        self._young[mark] = self._time  # the same object for all within the grain


class _ChargedBefore:
    """What one message was charged and which questions it was, where it has an instance."""

    __slots__ = ("_instance", "_now", "_remembered")

    def __init__(self, remembered: ChargedMessages, instance: str, now: float) -> None:
        self._remembered = remembered
        self._instance = instance
        self._now = now

    def __contains__(self, text: object) -> bool:
        return bool(self._instance) and self._remembered.find(hash((self._instance, text)), self._now)

    def add(self, text: str) -> None:
        if self._instance:
            # A hash, since a client chose how long both are. Its key is secret: no client can aim at one.
            self._remembered.keep(hash((self._instance, text)), self._now)


def _decided(charge: Charge, before: _ChargedBefore, question: str) -> str:
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
