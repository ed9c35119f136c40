"""Limits of refusals: a client that was refused too often is refused everything for a while."""

from __future__ import annotations

from elemta.deferred_value import Steps
from elemta.envelope import Recipient
from elemta.limits import Charge, LimitRefusal
from elemta.net.context import ListenerContext
from elemta.policy import Disconnect, ILimitPolicy, limit_verdict
from elemta.policy.verdicts import reply_of
from elemta.smtp import replies
from elemta.smtp.events import (
    DataQuestion,
    MailQuestion,
    MessageQuestion,
    RcptQuestion,
    Refuse,
    Response,
    StageQuestion,
)
from elemta.smtp.session_info import SessionInfo, TransactionInfo
from elemta.stage import Stage

_ASKED_AT = frozenset({Stage.CONNECT, Stage.MAIL, Stage.RCPT})


class RefusalLimits:
    """The limits of refusals for one session."""

    def __init__(self, context: ListenerContext, facts: SessionInfo) -> None:
        self._context = context
        self._facts = facts
        self._limit_policies = frozenset(
            loaded.name for loaded in context.chain.policies if ILimitPolicy.providedBy(loaded.policy)
        )

    def is_limit(self, policy: str) -> bool:
        """Whether a policy of this name speaks for limits."""
        return policy in self._limit_policies

    def refuse(self, question: StageQuestion) -> Steps[Refuse | None]:
        """The answer where the client was refused too often to be heard."""
        if question.stage not in _ASKED_AT:
            return None
        asked = self._context.limiter.ask_about_refusals(
            self._facts, _transaction(question), _recipient(question)
        )
        refusal: LimitRefusal | None = yield asked
        return None if refusal is None else self._answer(refusal, question.stage)

    def charge(self, question: StageQuestion, answer: Response) -> Steps[Response]:
        """``answer``, charged where it refuses for good; another one where that exceeds a limit."""
        if not isinstance(answer, Refuse) or answer.by_limit or answer.reply.is_transient:
            return answer
        charge: Charge = yield self._context.limiter.charge_refusal(
            self._facts, _transaction(question), _recipient(question)
        )
        return answer if charge.refusal is None else self._answer(charge.refusal, question.stage)

    def _answer(self, refusal: LimitRefusal, stage: Stage) -> Refuse:
        verdict = limit_verdict(refusal, stage)
        reply = reply_of(verdict) or replies.LOCAL_TROUBLE
        self._context.metrics.message_refused(stage.value, "limits", transient=reply.is_transient)
        return Refuse(
            reply,
            close=isinstance(verdict, Disconnect),
            reason=f"limit {refusal.limit}",
            by_limit=True,
            of_refused_client=True,
        )


def _transaction(question: StageQuestion) -> TransactionInfo | None:
    if isinstance(question, (MailQuestion, RcptQuestion, DataQuestion, MessageQuestion)):
        return question.transaction
    return None


def _recipient(question: StageQuestion) -> Recipient | None:
    return question.recipient if isinstance(question, RcptQuestion) else None
