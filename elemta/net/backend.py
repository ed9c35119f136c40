"""Answers one session's questions: what policies say, if credentials are good, if a message is durable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from elemta.deferred_value import MaybeDeferred, Steps, fired_value, run, then
from elemta.errors import MailboxUnknown, SpoolError
from elemta.message.header_reader import HeaderReader
from elemta.message.trace import added_field
from elemta.net.context import ListenerContext
from elemta.net.login import LoginExchange
from elemta.net.mailbox_check import MailboxCheck
from elemta.net.message_commit import MessageCommit
from elemta.net.refusals import RefusalLimits
from elemta.net.submission import SubmissionRules, SubmittedHeader
from elemta.policy import CONTINUE, ChainDecision, Disconnect, Message
from elemta.policy.asking import NO_OPINION
from elemta.policy.message_view import MessageContent
from elemta.policy.verdicts import reply_of
from elemta.runtime.fast_logger import FastLogger
from elemta.smtp import replies
from elemta.smtp.events import (
    AuthQuestion,
    ConnectQuestion,
    CredentialsQuestion,
    DataQuestion,
    HeloQuestion,
    MailQuestion,
    MessageQuestion,
    Proceed,
    Question,
    RcptQuestion,
    Refuse,
    Response,
    StageQuestion,
)
from elemta.smtp.session_info import SessionInfo, TransactionInfo
from elemta.spool import MessageWriter
from elemta.stage import Stage

_log = FastLogger()

# RFC 5321 §6.3 asks for a limit of at least 100 Received fields before a message is called a loop.
MAX_HOPS = 100
MAX_HOPS_HERE = 2
"""Received fields that this host wrote: a message may come back twice, as from a filter, and no more."""

_PROCEED = Proceed()


class SessionBackend:
    """One session's way through policies, credentials and spool.

    It never raises: what goes wrong on our side becomes a 4xx answer and a log record.
    ``health_check`` sessions come from a load balancer itself (PROXY LOCAL): no policy is asked,
    no limit is charged, and no mail is taken from them.
    """

    def __init__(self, context: ListenerContext, facts: SessionInfo, *, health_check: bool) -> None:
        self._context = context
        self._facts = facts
        self._health_check = health_check
        self._policies = context.chain.open(facts)
        self._tells_refusals = self._policies.tells_refusals and not health_check
        #: The queue id of the message that the transaction has come to; "" before there is one.
        self.queue_id = ""
        #: The last question, unless a password is in it.
        self.asked: Question | None = None
        # Of the transaction
        self._rules: SubmissionRules | None = None
        self._writer: MessageWriter | None = None
        # Of the message that the writer takes
        self._header: HeaderReader
        self._submitted: SubmittedHeader | None = None
        self._login: LoginExchange | None = None
        self._refusal_limits = RefusalLimits(context, facts) if context.limiter.counts_refusals else None
        self._mailboxes = MailboxCheck(context, facts)
        self._commit = MessageCommit(context, facts, self._policies)

    def answer(self, question: Question) -> MaybeDeferred[Response]:
        """The answer to ``question``; it never fails."""
        self.asked = None if type(question) is CredentialsQuestion else question
        try:
            if self._health_check:
                answer = self._answer_health_check(question)
            elif self._refusal_limits is None:
                answer = _ANSWERS[type(question)](self, question)
            else:
                answer = run(self._answer_counted(question, self._refusal_limits))
        except Exception:  # whatever it is, it is ours, and the client may try again
            answer = self._internal_error(Failure())
        tells = self._tells_refusals
        # Nearly every answer is there at once.
        if isinstance(answer, Response):
            return self._tell_refusal(answer, question) if tells else answer
        answer.addErrback(self._internal_error)
        return fired_value(answer.addCallback(self._tell_refusal, question) if tells else answer)

    def _tell_refusal(self, answer: Response, question: Question) -> Response:
        if isinstance(answer, Refuse) and isinstance(question, StageQuestion):
            reply = answer.reply
            if type(question) is ConnectQuestion:
                reply = replies.in_place_of_greeting(reply)
            self._policies.refused_at(question, reply)
        return answer

    def _answer_counted(self, question: Question, limits: RefusalLimits) -> Steps[Response]:
        """The answer to a client whose refusals are counted."""
        if not isinstance(question, StageQuestion):
            credentials: Response = yield _ANSWERS[type(question)](self, question)
            return credentials
        refused: Response | None = yield from limits.refuse(question)
        if refused is not None:
            return refused
        answer: Response = yield _ANSWERS[type(question)](self, question)
        return (yield from limits.charge(question, answer))

    def _answer_health_check(self, question: Question) -> MaybeDeferred[Response]:
        if isinstance(question, CredentialsQuestion):
            return self._check_credentials(question)
        if isinstance(question, MailQuestion):
            return Refuse(
                replies.LOCAL_TROUBLE, close=True, reason="a health check connection carries no mail"
            )
        return _PROCEED

    def _ask_policies(self, question: StageQuestion) -> MaybeDeferred[Response]:
        if question.stage not in self._context.chain.asked:
            return _PROCEED
        decision = self._policies.ask(question)
        # Nearly every question is answered so.
        return _PROCEED if decision is NO_OPINION else then(decision, self._answer_of, question.stage)

    # Recipients

    def _answer_recipient(self, question: RcptQuestion) -> MaybeDeferred[Response]:
        count = self._mailboxes.count
        # RFC 5321 §4.5.3.1.10
        if count is not None and not count.admits(question.transaction, question.recipient):
            return Refuse(replies.TOO_MANY_RECIPIENTS, reason="an alias leads to too many mailboxes")
        answer = self._ask_policies(question)
        if answer is _PROCEED:
            return self._mailboxes.look(_PROCEED, question)
        return then(answer, self._mailboxes.look, question)

    def _answer_of(self, decision: ChainDecision, stage: Stage) -> Response:
        verdict = decision.verdict
        if verdict is CONTINUE:
            return _PROCEED
        reply = reply_of(verdict)
        if reply is None:
            return _PROCEED
        self._context.metrics.message_refused(stage.value, decision.policy, transient=reply.is_transient)
        by_limit = self._refusal_limits is not None and self._refusal_limits.is_limit(decision.policy)
        return Refuse(
            reply,
            close=isinstance(verdict, Disconnect),
            reason=f"policy {decision.policy}",
            by_limit=by_limit,
        )

    def _internal_error(self, failure: Failure) -> Response:
        if failure.check(CancelledError) is not None:
            return Refuse(replies.LOCAL_TROUBLE, reason="no answer in time")
        if failure.check(MailboxUnknown) is not None:
            _log.warn(
                "the mailbox of a recipient could not be checked",
                event="recipient.not_checked",
                session_id=self._facts.id,
                reason=failure.getErrorMessage(),
            )
            return Refuse(replies.LOCAL_TROUBLE, reason="mailbox unknown")
        _log.failure(
            "a session failed with an internal error",
            failure,
            event="session.internal_error",
            session_id=self._facts.id,
        )
        return Refuse(replies.LOCAL_TROUBLE, reason="local trouble")

    # Credentials

    def _check_credentials(self, question: CredentialsQuestion) -> Deferred[Response]:
        self._login = login = LoginExchange(self._context, self._policies, self._facts, question.username)
        return Deferred.fromCoroutine(login.answer(question.password))

    # Messages

    def _submission_rules(self) -> SubmissionRules | None:
        """What the mail of this client is subject to, where it is submitted."""
        rules = self._context.submission
        if rules is None or not rules.concern(self._facts, self._context.listener.role):
            return None
        return rules

    def _answer_mail(self, question: MailQuestion) -> MaybeDeferred[Response]:
        self.queue_id = ""
        # No client logs in between MAIL and its message, so they hold for that, too.
        self._rules = rules = self._submission_rules()
        refused = rules and rules.refuse_sender(self._facts, question.transaction.mail_from)
        if refused:
            return self._refuse_submission(refused, question.stage)
        spool = self._context.spool
        if not spool.healthy:
            return Refuse(replies.LOCAL_TROUBLE, reason="the spool is not healthy")
        if not spool.has_space(question.transaction.size):
            return Refuse(replies.STORAGE_FULL, reason="the spool's disk is below minimum_free")
        return self._ask_policies(question)

    def _refuse_submission(self, answer: Refuse, stage: Stage) -> Refuse:
        self._context.metrics.messages_rejected.labels(stage.value, "submission").inc()
        return answer

    def message_started(self, transaction: TransactionInfo) -> None:
        self._writer = self._context.spool.begin()
        self.queue_id = transaction.queue_id = self._writer.queue_id
        rules = self._rules
        if rules is None:
            self._submitted, self._header = None, HeaderReader(host=self._context.server.hostname)
        else:
            self._submitted = rules.message(self._facts, transaction.mail_from, self._writer.queue_id)
            self._header = self._submitted.reader

    def message_data(self, data: bytes) -> MessageWriter | None:
        """Take the next octets; returns the writer when the disk is behind and reading should pause."""
        writer = self._writer
        if writer is None:
            return None
        writer.write(self._header.feed(data))
        return writer if writer.in_file and writer.congested else None

    def _answer_message(self, question: MessageQuestion) -> MaybeDeferred[Response]:
        writer = self._writer
        if writer is None:
            return Refuse(replies.LOCAL_TROUBLE, reason="no message was begun")
        rest = self._header.finish()
        if rest:
            writer.write(rest)
        # All of the message was written, so this stays as it is.
        head = writer.head
        if self._header.received > MAX_HOPS or self._header.received_here > MAX_HOPS_HERE:
            return Refuse(replies.TOO_MANY_HOPS, reason="mail loop")
        if self._submitted is not None and self._submitted.refusal is not None:
            return self._refuse_submission(self._submitted.refusal, question.stage)
        if writer.in_file or writer.failure is not None or Stage.MESSAGE in self._context.chain.asked:
            return run(self._judge_message(question, writer, head))
        answer = self._commit.start(question.transaction, writer, self._submitted, head=head)
        self._writer = None
        return answer

    def _judge_message(
        self, question: MessageQuestion, writer: MessageWriter, head: bytes
    ) -> Steps[Response]:
        if writer.in_file:
            # A policy may read the message as a file, so all of it has to be there.
            yield writer.when_drained()
        if writer.failure is not None:
            # A policy could not read it, and what that policy's failure costs may be a 5xx.
            return self._commit.not_stored(writer.failure, writer.queue_id)
        if question.stage not in self._context.chain.asked:
            committed: Response = yield self._commit_if_awaited(question.transaction, writer)
            return committed
        content = self._content_for_policies(question.transaction, writer, head)
        try:
            answer: Response = yield from self._judge_content(question, writer, content)
        finally:
            content.close()
        return answer

    def _content_for_policies(
        self, transaction: TransactionInfo, writer: MessageWriter, head: bytes
    ) -> MessageContent:
        utf8 = transaction.parameters.smtputf8
        content = MessageContent(writer.size, head, writer.open, utf8=utf8)
        content.header.ours = [added_field(name, value) for name, value in transaction.added_headers]
        return content

    def _judge_content(
        self, question: MessageQuestion, writer: MessageWriter, content: MessageContent
    ) -> Steps[Response]:
        message = Message.of(content, observed=False)
        decision: ChainDecision = yield self._policies.ask(question, message)
        answer = self._answer_of(decision, question.stage)
        if not isinstance(answer, Proceed):
            # The disk may have failed under a policy that reads the message.
            return (
                answer if writer.failure is None else self._commit.not_stored(writer.failure, writer.queue_id)
            )
        if content.is_rewritten and not writer.ended:
            try:
                writer = yield from self._rewrite(writer, content)
            except SpoolError as error:
                return self._commit.not_stored(error, writer.queue_id)
        committed: Response = yield self._commit_if_awaited(question.transaction, writer, content)
        return committed

    def _commit_if_awaited(
        self, transaction: TransactionInfo, writer: MessageWriter, content: MessageContent | None = None
    ) -> MaybeDeferred[Response]:
        if writer.ended:
            # The client left, or got 451 because this took too long.
            return Refuse(replies.LOCAL_TROUBLE, reason="the session no longer waits for this message")
        answer = self._commit.start(transaction, writer, self._submitted, content)
        self._writer = None
        return answer

    def _rewrite(self, writer: MessageWriter, content: MessageContent) -> Steps[MessageWriter]:
        """The message as policies changed it, once and as a whole."""
        body, _ = content.open_body()
        spool = self._context.spool
        rewriting = Deferred.fromCoroutine(spool.rewrite(writer, content.header.stored, body))
        rewritten: MessageWriter = yield rewriting
        if self._writer is writer:
            self._writer = rewritten
        else:
            rewritten.discard()
        return rewritten

    def transaction_ended(self, transaction: TransactionInfo, accepted: bool) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.discard()
        if self._health_check:
            return
        # A client that leaves between its dot and our 250 has sent its message all the same: were it reported
        # as refused, its charges would come back and limits would be no bound.
        if accepted or transaction is self._commit.committing:
            self._policies.committed(transaction)
        else:
            self._policies.refused(transaction)

    def disconnected(self) -> None:
        if self._login is not None:
            self._login.leave()
        if self._writer is not None:
            self._writer.discard()
            self._writer = None
        if self._health_check:
            self._policies.leave()
        else:
            self._policies.disconnected()


_ANSWERS: dict[type[Question], Callable[[SessionBackend, Any], MaybeDeferred[Response]]] = {
    ConnectQuestion: SessionBackend._ask_policies,
    HeloQuestion: SessionBackend._ask_policies,
    AuthQuestion: SessionBackend._ask_policies,
    CredentialsQuestion: SessionBackend._check_credentials,
    MailQuestion: SessionBackend._answer_mail,
    RcptQuestion: SessionBackend._answer_recipient,
    DataQuestion: SessionBackend._ask_policies,
    MessageQuestion: SessionBackend._answer_message,
}
