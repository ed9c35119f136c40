"""One session's policies: what each gets, is asked and is called with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from elemta.deferred_value import MaybeDeferred
from elemta.history.events import VerdictNote
from elemta.limits.identity import network_identity
from elemta.policy.asking import NO_OPINION, ChainDecision, ChainQuestion
from elemta.policy.breaker import CallParties
from elemta.policy.interfaces import LoginOutcome
from elemta.policy.policy_fact import PolicyFact, tell
from elemta.policy.relay_permission import MAY_RELAY, RELAY_DENIED, RELAY_UNKNOWN, RelayPermission
from elemta.policy.results import Results
from elemta.policy.runner import PolicyCall, PolicyRunner
from elemta.policy.transaction_state import TransactionState
from elemta.policy.verdicts import Accept, Discard, Disconnect, Quarantine, Verdict, name_of, reply_of
from elemta.policy.views import Message, Session
from elemta.smtp.events import (
    DataQuestion,
    MailQuestion,
    MessageQuestion,
    RcptQuestion,
    StageQuestion,
)
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import SessionInfo
from elemta.smtp.session_info import TransactionInfo as TransactionFacts
from elemta.stage import Stage
from elemta.value_type import value_type

_log = Logger()

# The answer to any question of a session that has ended.
_GONE = ChainDecision(Disconnect("The connection is closed", code=421, enhanced="4.4.2"), "")

# Reasons to hold one message, or all of one session.
_MOST_REASONS = 100

# Verdicts on one message, or on one session, that the history has.
_MOST_NOTED = 20

_SESSION_STAGES = frozenset({Stage.CONNECT, Stage.HELO, Stage.LOGIN, Stage.AUTH})


@value_type
class LoginQuestion(StageQuestion):
    """May the client try to log in as ``username``? The password was not looked at yet."""

    stage = Stage.LOGIN
    username: str


class SessionCount(Protocol):
    """What counts the sessions that are open: a chain."""

    sessions: int


class PolicySession(ChainQuestion[StageQuestion]):
    """The policies of one session. Made by :meth:`elemta.policy.chain.PolicyChain.open`.

    At RCPT, a recipient that the client may not relay to is refused after all policies, whatever they
    answered. No decision comes after :meth:`disconnected`.
    """

    __slots__ = (
        "_board",
        "_calls",
        "_count",
        "_discarded",
        "_facts",
        "_gone",
        "_grant_failed",
        "_held",
        "_marks",
        "_message",
        "_network",
        "_noted",
        "_notified",
        "_question",
        "_relay",
        "_results",
        "_sessions",
        "_transaction",
        "session_id",
    )

    def __init__(
        self,
        facts: SessionInfo,
        calls: Mapping[Stage, Sequence[PolicyCall]],
        notified: Mapping[str, Sequence[PolicyCall]],
        clock: IReactorTime,
        relay: RelayPermission,
        *,
        count: SessionCount,
    ) -> None:
        super().__init__(clock)
        self._count = count
        self.session_id = facts.id
        self._facts = facts
        self._calls = calls
        self._notified = notified
        self._relay = relay
        self._board: dict[tuple[str, str], Any] = {}
        self._results = Results()
        # Of a few policies, and of one in most sessions: a dictionary takes twice the memory.
        self._sessions: tuple[tuple[PolicyRunner, Session], ...] = ()
        self._transaction: TransactionState | None = None
        self._held: tuple[str, ...] = ()
        self._noted: tuple[VerdictNote, ...] = ()
        self._discarded: ChainDecision | None = None
        # A StageQuestion. What a stage has beside it is read without a cast, once for each policy.
        self._question: Any = None
        self._message: Message | None = None
        # The marks of the question that is asked now
        self._marks: tuple[ChainDecision, ...] = ()
        # Whether a policy that may grant relaying failed, so that its verdict is not known
        self._grant_failed = False
        self._gone = False
        self._network = ""

    def ask_login(self, username: str) -> MaybeDeferred[ChainDecision]:
        """Ask whether the client may try to log in as ``username``, before its password is looked at."""
        return self.ask(LoginQuestion(self._facts, username))

    def login_ended(self, username: str, outcome: LoginOutcome) -> None:
        """Tell the policies that observe it how the attempt ended that :meth:`ask_login` was about."""
        if self._gone:
            return
        for call in self._notified["login_ended"]:
            shown = self._session_of(call.runner), username, outcome
            tell(call, PolicyFact(shown, self.network, self.session_id), self._clock)

    def hold_reason(self, transaction: TransactionFacts) -> str | None:
        """Why the message of ``transaction`` goes to the hold queue; None where it does not go there.

        It goes there when a policy answered ``Quarantine`` at any stage of the transaction, or of the
        session before it. Several reasons are joined.
        """
        views = self._transaction
        own = views.held if views is not None and views.facts is transaction else ()
        if not (self._held or own):
            return None
        held = (*self._held, *own)
        return "; ".join(dict.fromkeys(held)) or None

    def committed(self, transaction: TransactionFacts) -> None:
        """Tell the policies that observe it that the message is on stable storage."""
        self._notify_of_transaction("committed", transaction)

    def refused(self, transaction: TransactionFacts) -> None:
        """Tell the policies that observe it that the transaction ended without a message."""
        self._notify_of_transaction("refused", transaction)

    @property
    def tells_refusals(self) -> bool:
        """Whether any policy observes the refusals of the session."""
        return bool(self._notified["refused_at"])

    def refused_at(self, question: StageQuestion, reply: Reply) -> None:
        """Tell the policies that observe it that the client gets a reply that refuses."""
        if self._gone:
            return
        transaction = None if question.stage in _SESSION_STAGES else getattr(question, "transaction", None)
        recipient = question.recipient if isinstance(question, RcptQuestion) else None
        for call in self._notified["refused_at"]:
            view = None if transaction is None else self._views(transaction).of(call.runner)
            shown = self._session_of(call.runner), question.stage, reply, view, recipient
            tell(call, PolicyFact(shown, self.network, self.session_id), self._clock)

    def disconnected(self) -> None:
        """The session is over: give up what is being asked, and tell the policies that observe it."""
        if self._gone:
            return
        self.leave()
        for call in self._notified["disconnected"]:
            fact = PolicyFact((self._session_of(call.runner),), self.network, self.session_id)
            tell(call, fact, self._clock)

    def leave(self) -> None:
        """The session is over; no policy knew it, and none hears of it."""
        if self._gone:
            return
        self._gone = True
        self._count.sessions -= 1
        self.give_up()

    # What ChainQuestion asks for

    def _calls_for(self, question: StageQuestion, message: Message | None) -> Iterator[PolicyCall]:
        self._question, self._message = question, message
        self._marks, self._accepted, self._grant_failed = (), None, False
        return iter(() if self._gone else self._calls.get(question.stage, ()))

    def _decided(self, decision: ChainDecision) -> ChainDecision:
        for call in () if self._gone else self._notified["decided"]:
            shown = self._session_of(call.runner), decision.policy, self._question.stage, decision.verdict
            tell(call, PolicyFact(shown, self.network, self.session_id), self._clock)
        return decision

    @property
    def network(self) -> str:
        """The network of the client."""
        if not self._network:
            self._network = network_identity(self._facts.client_ip)
        return self._network

    def parties(self) -> CallParties:
        """The parties that the question is about."""
        question = self._question
        sender = recipient = None
        if isinstance(question, (MailQuestion, RcptQuestion, DataQuestion, MessageQuestion)):
            sender = question.transaction.sender.domain.lower()
        if isinstance(question, RcptQuestion):
            recipient = question.recipient.domain.lower()
        return CallParties(self.network, self._facts.helo.lower() or None, sender, recipient)

    def _note_missing_verdict(self, call: PolicyCall) -> None:
        """A grant of relaying may be missing."""
        self._grant_failed |= call.runner.grants_relaying and not call.runner.observed

    def _arguments(self, call: PolicyCall) -> tuple[Any, ...]:
        question, runner = self._question, call.runner
        session = self._session_of(runner)
        stage = question.stage
        if stage is Stage.LOGIN:
            return session, question.username
        if stage in _SESSION_STAGES:
            return (session,)
        # Every question of the other stages is about a transaction.
        self._view = view = self._views(question.transaction).of(runner)
        view.writable = True
        if stage is Stage.RCPT:
            view.asked = question.recipient
            replacement = question.transaction.replacement
            return session, view, replacement[0] if replacement else question.recipient
        if stage is Stage.MESSAGE and self._message is not None:
            view.message = Message.of(self._message.content, observed=runner.observed)
            return session, view, view.message
        return session, view

    def _decide(self, call: PolicyCall, verdict: Verdict) -> ChainDecision | None:
        decision = ChainDecision(verdict, call.runner.name)
        if isinstance(verdict, Quarantine):
            self._marks += (decision,)
            return None
        if not isinstance(verdict, (Accept, Discard)):
            # A refusal: what was refused is no part of the message, so its marks count for nothing.
            return decision
        if self._asks_to_relay() and not call.runner.grants_relaying:
            self._accepted = self._accepted or decision
            return None
        return self._settle(decision)

    def _settle(self, decision: ChainDecision) -> ChainDecision:
        """The question is decided, and not by a refusal."""
        self._hold()
        if isinstance(decision.verdict, Discard):
            self._discard(decision)
        return decision

    def _discard(self, decision: ChainDecision) -> None:
        question = self._question
        if isinstance(question, RcptQuestion):
            question.transaction.replacement = ()
        elif question.stage in _SESSION_STAGES:
            self._discarded = decision
        else:
            self._views(question.transaction).discarded = decision

    def discarded_by(self, transaction: TransactionFacts) -> ChainDecision | None:
        """The decision to discard the message of ``transaction``; None where it is to be stored."""
        views = self._transaction
        if views is not None and views.facts is transaction and views.discarded is not None:
            return views.discarded
        return self._discarded

    def _conclude(self) -> ChainDecision:
        if self._gone:
            return _GONE
        question = self._question
        if (
            isinstance(question, RcptQuestion)
            # What replaces it was checked for each recipient.
            and not question.transaction.replacement
            and not self._relay.allows(self._facts, question.recipient.address)
        ):
            _log.info(
                "a recipient was refused: the client may not relay",
                event="relay.denied",
                session_id=self._facts.id,
                client_ip=str(self._facts.client_ip),
                recipient=str(question.recipient),
                accepted_by=None if self._accepted is None else self._accepted.policy,
            )
            # An unknown verdict is no reason to refuse for good.
            return ChainDecision(RELAY_UNKNOWN if self._grant_failed else RELAY_DENIED, MAY_RELAY)
        if self._accepted is not None:
            return self._settle(self._accepted)
        if not self._marks:
            return NO_OPINION
        self._hold()
        return self._marks[0]

    def _asks_to_relay(self) -> bool:
        question = self._question
        return (
            isinstance(question, RcptQuestion)
            and not question.transaction.replacement
            and self._relay.concerns(self._facts, question.recipient.address)
        )

    def _hold(self) -> None:
        """Keep the marks of this question until the end of the transaction, or of the session."""
        question = self._question
        views = None if question.stage in _SESSION_STAGES else self._views(question.transaction)
        held = self._held if views is None else views.held
        reasons = [mark.verdict.reason for mark in self._marks if isinstance(mark.verdict, Quarantine)]
        # A session has no end: what a policy says at each HELO of it must not add up.
        held = (*held, *reasons[: _MOST_REASONS - len(held)])
        if views is None:
            self._held = held
        else:
            views.held = held

    def _session_of(self, runner: PolicyRunner) -> Session:
        for known, view in self._sessions:
            if known is runner:
                return view
        view = Session(self._facts, runner.name, self._board, self._results)
        self._sessions += ((runner, view),)
        return view

    def _views(self, transaction: TransactionFacts) -> TransactionState:
        views = self._transaction
        if views is None or views.facts is not transaction:
            views = self._transaction = TransactionState(transaction, self._facts, self._relay, self._results)
        return views

    def _log_verdict(self, call: PolicyCall, verdict: Verdict) -> None:
        facts = {
            "event": "policy.verdict",
            "policy": call.runner.name,
            "stage": call.stage_name,
            "verdict": name_of(verdict),
            "session_id": self._facts.id,
            "client_ip": str(self._facts.client_ip),
        }
        if isinstance(self._question, (MailQuestion, RcptQuestion, DataQuestion, MessageQuestion)):
            transaction = self._question.transaction
            facts["sender"] = str(transaction.sender)
            if transaction.queue_id:
                facts["queue_id"] = transaction.queue_id
        if isinstance(self._question, RcptQuestion):
            facts["recipient"] = str(self._question.recipient)
        if call.runner.observed:
            facts["mode"] = "observe"
        reply = reply_of(verdict)
        reason = getattr(verdict, "reason", "") if reply is None else str(reply)
        self._note_verdict(call, verdict, facts, reason)
        if reply is not None:
            _log.info("a policy refused", reply=str(reply), **facts)
        elif isinstance(verdict, Quarantine):
            _log.info("a policy put the message on hold", reason=verdict.reason, **facts)
        elif isinstance(verdict, Discard):
            _log.info("a policy discarded what it was asked about", reason=verdict.reason, **facts)
        elif isinstance(verdict, Accept):
            _log.debug("a policy accepted", **facts)

    def _note_verdict(
        self, call: PolicyCall, verdict: Verdict, facts: Mapping[str, Any], reason: str
    ) -> None:
        """Keep it for the history of the message that it is about."""
        question = self._question
        views = None if question.stage in _SESSION_STAGES else self._views(question.transaction)
        noted = self._noted if views is None else views.noted
        if len(noted) >= _MOST_NOTED:
            return
        note = VerdictNote(
            call.stage_name,
            call.runner.name,
            name_of(verdict),
            reason,
            facts.get("recipient", ""),
            call.runner.observed,
        )
        if views is None:
            self._noted += (note,)
        else:
            views.noted += (note,)

    def verdicts(self, transaction: TransactionFacts) -> tuple[VerdictNote, ...]:
        """What policies said of the message of ``transaction``, and of the session before it."""
        views = self._transaction
        own = views.noted if views is not None and views.facts is transaction else ()
        return (*self._noted, *own) if self._noted or own else ()

    # Telling

    def _notify_of_transaction(self, fact: str, transaction: TransactionFacts) -> None:
        calls = self._notified[fact]
        if calls:
            views = self._views(transaction)
            for call in calls:
                shown: tuple[Any, ...] = self._session_of(call.runner), views.of(call.runner)
                if fact == "committed":
                    shown += (transaction.queue_id,)
                tell(call, PolicyFact(shown, self.network, self.session_id), self._clock)
        if self._transaction is not None and self._transaction.facts is transaction:
            self._transaction = self._message = None
