"""One session's way through the chain: what each policy is shown, asked and told.

The straight way has no Deferred in it: as long as policies answer at once, :meth:`Conversation.ask`
returns a decision. From the first answer that is not there yet, an :class:`~elemta.policy.asking.Asking`
goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.limits.identity import network_identity
from elemta.policy.asking import Asking, Decision, Turn
from elemta.policy.breaker import Cause
from elemta.policy.member import SLOW, Call, Member, Trouble, problem_of
from elemta.policy.observer import FailureKind
from elemta.policy.relay_permission import MAY_RELAY, RELAY_DENIED, RelayPermission
from elemta.policy.telling import tell
from elemta.policy.verdicts import (
    CONTINUE,
    Accept,
    Continue,
    Disconnect,
    Quarantine,
    Verdict,
    name_of,
    reply_of,
)
from elemta.policy.views import Message, Session, Transaction
from elemta.policy.walking import NO_OPINION, go_on, walk
from elemta.smtp.events import (
    DataQuestion,
    MailQuestion,
    MessageQuestion,
    RcptQuestion,
    Stage,
    StageQuestion,
)
from elemta.smtp.facts import SessionFacts
from elemta.smtp.facts import Transaction as TransactionFacts

_log = Logger()

# A session that is over gets nothing accepted any more.
_GONE = Decision(Disconnect("The connection is closed", code=421, enhanced="4.4.2"), "")

_SESSION_STAGES = frozenset({Stage.CONNECT, Stage.HELO, Stage.AUTH})


class _TransactionViews:
    """What belongs to one transaction: the policies' views of it, what they published, why it is held."""

    __slots__ = ("board", "facts", "held", "views")

    def __init__(self, facts: TransactionFacts) -> None:
        self.facts = facts
        self.board: dict[tuple[str, str], Any] = {}
        self.views: dict[Member, Transaction] = {}
        self.held: list[str] = []

    def of(self, member: Member) -> Transaction:
        view = self.views.get(member)
        if view is None:
            view = Transaction(self.facts, member.name, self.board, observed=member.observed)
            self.views[member] = view
        return view


class Conversation:
    """The policies of one session. Made by :meth:`elemta.policy.chain.PolicyChain.open`.

    One question is asked at a time. Nothing here raises because of a policy: one that fails costs its
    ``on_error`` verdict.
    """

    __slots__ = (
        "_accepted",
        "_asking",
        "_board",
        "_calls",
        "_clock",
        "_facts",
        "_gone",
        "_held",
        "_marks",
        "_message",
        "_question",
        "_relay",
        "_sessions",
        "_told",
        "_transaction",
    )

    def __init__(
        self,
        facts: SessionFacts,
        calls: Mapping[Stage, Sequence[Call]],
        told: Mapping[str, Sequence[Call]],
        clock: IReactorTime,
        relay: RelayPermission,
    ) -> None:
        self._facts = facts
        self._calls = calls
        self._told = told
        self._clock = clock
        self._relay = relay
        self._board: dict[tuple[str, str], Any] = {}
        self._sessions: dict[Member, Session] = {}
        self._transaction: _TransactionViews | None = None
        self._held: list[str] = []
        self._asking: Asking | None = None
        self._question: StageQuestion | None = None
        self._message: Message | None = None
        # Of the question that is asked now: marks, and an acceptance that grants no relaying
        self._marks: list[Decision] = []
        self._accepted: Decision | None = None
        self._gone = False

    def ask(self, question: StageQuestion, message: Message | None = None) -> Decision | Deferred[Decision]:
        """Ask the policies of the question's stage in their order; the first decisive verdict wins.

        At RCPT a recipient that may not be relayed to is refused at the end, whatever the policies said.

        ``message`` is given at the stage MESSAGE. The decision comes at once where all policies answered
        at once. A Deferred never fails; it never fires where :meth:`disconnected` came first, and
        cancelling it gives the question up.
        """
        if self._gone:
            return _GONE
        calls = self._calls.get(question.stage, ())
        if not calls and question.stage is not Stage.RCPT:
            return NO_OPINION
        self._question, self._message = question, message
        self._marks, self._accepted = [], None
        step = walk(self, self._clock, calls)
        if isinstance(step, Decision):
            return step
        self._asking = asking = Asking(self, self._clock, partial(go_on, self, self._clock, calls))
        asking.wait(step)
        return asking.decision or asking.result

    def hold_reason(self, transaction: TransactionFacts) -> str | None:
        """Why the message of ``transaction`` goes to the hold queue; None where it does not.

        It does when a policy answered ``Quarantine`` at any stage of the transaction, or of the session
        before it. Several reasons are joined.
        """
        views = self._transaction
        held = self._held + (views.held if views is not None and views.facts is transaction else [])
        return "; ".join(dict.fromkeys(held)) or None

    def committed(self, transaction: TransactionFacts) -> None:
        """Tell the policies that observe it that the message is on stable storage."""
        self._tell_of_transaction("committed", transaction)

    def refused(self, transaction: TransactionFacts) -> None:
        """Tell the policies that observe it that the transaction ended without a message."""
        self._tell_of_transaction("refused", transaction)

    def disconnected(self) -> None:
        """The session is over: give up what is being asked, and tell the policies that observe it."""
        if self._gone:
            return
        self._gone = True
        if self._asking is not None:
            self._asking.give_up()
            self._asking = None
        for call in self._told["disconnected"]:
            tell(call, (self._session_of(call.member),), self._clock, self._facts.id, network=self.network)

    # What follows is for the walk through the chain.

    @property
    def network(self) -> str:
        """The network of the client."""
        return network_identity(self._facts.client_ip)

    def cause(self) -> Cause:
        """Everyone that the question is about."""
        question = self._question
        sender = recipient = None
        if isinstance(question, (MailQuestion, RcptQuestion, DataQuestion, MessageQuestion)):
            sender = question.transaction.sender.domain.lower()
        if isinstance(question, RcptQuestion):
            recipient = question.recipient.domain.lower()
        return Cause(self.network, self._facts.helo.lower() or None, sender, recipient)

    def decided(self) -> None:
        """Nothing is being asked any more."""
        self._asking = None

    def arguments(self, turn: Turn) -> tuple[Any, ...]:
        """What the policy of this turn is shown."""
        question, member = cast(StageQuestion, self._question), turn.call.member
        session = self._session_of(member)
        stage = question.stage
        if stage in _SESSION_STAGES:
            return (session,)
        # Every question of the other stages is about a transaction.
        turn.view = view = self._views(cast(MailQuestion, question).transaction).of(member)
        view.writable = True
        if stage is Stage.RCPT:
            return session, view, cast(RcptQuestion, question).recipient
        if stage is Stage.MESSAGE:
            return session, view, self._message
        return session, view

    def passes_over(self, call: Call) -> bool:
        """Behind an acceptance that grants no relaying only those are asked that may grant it."""
        return self._accepted is not None and not call.member.grants_relaying

    def decide(self, call: Call, verdict: Verdict) -> Decision | None:
        """What a verdict decides; None where the policies after it are still asked."""
        decision = Decision(verdict, call.member.name)
        if isinstance(verdict, Quarantine):
            self._marks.append(decision)
            return None
        if not isinstance(verdict, Accept):
            # A refusal: what was refused is no part of the message, so its marks count for nothing.
            return decision
        if self._asks_to_relay() and not call.member.grants_relaying:
            self._accepted = self._accepted or decision
            return None
        self._hold()
        return decision

    def conclude(self) -> Decision:
        """No policy refused, and none that may granted relaying."""
        question = self._question
        if isinstance(question, RcptQuestion) and not self._relay.allows(
            self._facts, question.recipient.address
        ):
            _log.info(
                "a recipient was refused because this client may not relay",
                event="relay.denied",
                session_id=self._facts.id,
                client_ip=str(self._facts.client_ip),
                recipient=str(question.recipient),
                accepted_by=None if self._accepted is None else self._accepted.policy,
            )
            return Decision(RELAY_DENIED, MAY_RELAY)
        self._hold()
        if self._accepted is not None:
            return self._accepted
        return self._marks[0] if self._marks else NO_OPINION

    def _asks_to_relay(self) -> bool:
        question = self._question
        return isinstance(question, RcptQuestion) and self._relay.concerns(
            self._facts, question.recipient.address
        )

    def _hold(self) -> None:
        """Note what was marked at this question until the end of the message, or of the session."""
        if not self._marks:
            return
        question = cast(StageQuestion, self._question)
        held = self._held
        if question.stage not in _SESSION_STAGES:
            held = self._views(cast(MailQuestion, question).transaction).held
        held += [mark.verdict.reason for mark in self._marks if isinstance(mark.verdict, Quarantine)]

    def answered(self, turn: Turn, answer: object) -> Verdict:
        """Judge what a policy answered; returns what it counts for."""
        if answer is not CONTINUE:
            problem = problem_of(answer)
            if problem is not None:
                return self.failed(turn, FailureKind.NONSENSE, problem=problem)
        verdict = cast(Verdict, answer)
        member = turn.call.member
        seconds = self._clock.seconds() - turn.began
        member.answered(turn.call, verdict, seconds)
        if turn.patience is not None:
            member.waited_well(turn.call, self.cause(), seconds)
        if turn.view is not None:
            turn.view.writable = False
        if isinstance(verdict, Continue):
            return CONTINUE
        self._log_verdict(turn.call, verdict)
        return CONTINUE if member.observed else verdict

    def failed(
        self, turn: Turn, kind: FailureKind, failure: Failure | None = None, problem: str = ""
    ) -> Verdict:
        """Note that a policy failed; returns what that costs."""
        if turn.view is not None:
            turn.view.writable = False
        member = turn.call.member
        seconds = self._clock.seconds() - turn.began
        if seconds >= SLOW:
            member.waited_in_vain(turn.call, self.cause())
        return member.failed(turn.call, Trouble(kind, seconds, failure, problem), self._facts.id)

    def _session_of(self, member: Member) -> Session:
        view = self._sessions.get(member)
        if view is None:
            view = self._sessions[member] = Session(self._facts, member.name, self._board)
        return view

    def _views(self, transaction: TransactionFacts) -> _TransactionViews:
        views = self._transaction
        if views is None or views.facts is not transaction:
            views = self._transaction = _TransactionViews(transaction)
        return views

    def _log_verdict(self, call: Call, verdict: Verdict) -> None:
        facts = {
            "event": "policy.verdict",
            "policy": call.member.name,
            "stage": call.stage_name,
            "verdict": name_of(verdict),
            "session_id": self._facts.id,
            "client_ip": str(self._facts.client_ip),
        }
        if isinstance(self._question, (MailQuestion, RcptQuestion, DataQuestion, MessageQuestion)):
            facts["sender"] = str(self._question.transaction.sender)
        if isinstance(self._question, RcptQuestion):
            facts["recipient"] = str(self._question.recipient)
        if call.member.observed:
            facts["mode"] = "observe"
        reply = reply_of(verdict)
        if reply is not None:
            _log.info("a policy refused", reply=str(reply), **facts)
        elif isinstance(verdict, Quarantine):
            _log.info("a policy put the message on hold", reason=verdict.reason, **facts)
        elif isinstance(verdict, Accept):
            _log.debug("a policy accepted", **facts)

    # Telling

    def _tell_of_transaction(self, fact: str, transaction: TransactionFacts) -> None:
        calls = self._told[fact]
        if calls:
            views = self._views(transaction)
            for call in calls:
                member = call.member
                told = self._session_of(member), views.of(member)
                tell(call, told, self._clock, self._facts.id, network=self.network)
        if self._transaction is not None and self._transaction.facts is transaction:
            self._transaction = self._message = None
