"""Answers one session's questions: what policies say, if credentials are good, if a message is durable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from elemta.address import NULL, Address
from elemta.deferred_value import MaybeDeferred, Steps, fired_value, run, then
from elemta.delivery.routes import MaildirRoute
from elemta.envelope import Client, Envelope, Recipient
from elemta.errors import MailboxUnknown, NotSigned, SpoolError, SpoolFull
from elemta.message.header_reader import HeaderReader
from elemta.message.trace import added_field, protocol_name, received_field
from elemta.net.context import ListenerContext
from elemta.net.expansion_notices import expansion_notice, queue_notice
from elemta.net.login import LoginExchange
from elemta.net.recipients import ExpandedAlias, FinalRecipients, RecipientCount, final_recipients
from elemta.net.refusals import RefusalLimits
from elemta.net.submission import SubmissionRules, SubmittedHeader
from elemta.policy import CONTINUE, ChainDecision, Discard, Disconnect, Message
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
    Queued,
    RcptQuestion,
    Refuse,
    Response,
    StageQuestion,
)
from elemta.smtp.session_info import SessionInfo, TransactionInfo
from elemta.spool import HoldCause, MessageWriter, Submission
from elemta.stage import Stage

_log = FastLogger()

# RFC 5321 §6.3 asks for a limit of at least 100 Received fields before a message is called a loop.
MAX_HOPS = 100
MAX_HOPS_HERE = 2
"""Received fields that this host wrote: a message may come back twice, as from a filter, and no more."""

_PROCEED = Proceed()

# Aliases of a message that stand in the log, and addresses of each.
_MOST_LOGGED = 20


class SessionBackend:
    """One session's way through policies, credentials and spool.

    It never raises: what goes wrong on our side becomes a 4xx answer and a log record.
    ``health_check`` sessions come from a load balancer itself (PROXY LOCAL): no policy is asked,
    no limit is charged, and no mail is taken from them.
    """

    def __init__(self, terms: ListenerContext, facts: SessionInfo, *, health_check: bool) -> None:
        self._terms = terms
        self._facts = facts
        self._health_check = health_check
        self._policies = terms.chain.open(facts)
        self._writer: MessageWriter | None = None
        # Of the message that the writer takes
        self._header: HeaderReader
        self._submitted: SubmittedHeader | None = None
        self._named_sender = NULL
        self._committing: TransactionInfo | None = None
        self._login: LoginExchange | None = None
        self._client: Client | None = None
        self._refusal_limits = RefusalLimits(terms, facts) if terms.limiter.counts_refusals else None
        # Without aliases a recipient is one mailbox, and the session has counted it.
        self._recipient_count: RecipientCount | None = None
        if terms.domains.aliases:
            self._recipient_count = RecipientCount(terms.domains, terms.session.max_recipients)

    def answer(self, question: Question) -> MaybeDeferred[Response]:
        """The answer to ``question``; it never fails."""
        try:
            if self._health_check:
                answer = self._answer_health_check(question)
            elif self._refusal_limits is None:
                answer = _ANSWERS[type(question)](self, question)
            else:
                answer = run(self._answer_counted(question, self._refusal_limits))
        except Exception:  # whatever it is, it is ours, and the client may try again
            return self._internal_error(Failure())
        # Nearly every answer is there at once.
        if isinstance(answer, Response):
            return answer
        return fired_value(answer.addErrback(self._internal_error))

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
        if not self._terms.chain.asks(question.stage):
            return _PROCEED
        return then(self._policies.ask(question), self._answer_of, question.stage)

    # Recipients

    def _answer_recipient(self, question: RcptQuestion) -> MaybeDeferred[Response]:
        recipient, count = question.recipient, self._recipient_count
        # RFC 5321 §4.5.3.1.10
        if count is not None and not count.admits(question.transaction, recipient):
            return Refuse(replies.TOO_MANY_RECIPIENTS, reason="an alias leads to too many mailboxes")
        return then(self._ask_policies(question), self._look_for_mailbox, question)

    def _look_for_mailbox(self, answer: Response, question: RcptQuestion) -> MaybeDeferred[Response]:
        """Refuse a recipient where none of the mailboxes that get its mail is there, or can be reached."""
        if not isinstance(answer, Proceed):
            return answer
        recipient, replacement = question.recipient, question.transaction.replacement
        if replacement is not None:
            return self._look_for_replacement(replacement, question) if replacement else answer
        targets = self._terms.domains.expand(recipient.address, self._terms.session.max_recipients)
        if self._is_not_taken(question.transaction.sender, targets):
            return self._refuse_internationalized(recipient.address)
        if len(targets) == 1:
            return then(self._has_mailbox(targets[0]), self._answer_of_mailbox, recipient)
        return run(self._look_for_one(targets, recipient))

    def _look_for_replacement(
        self, replacement: Sequence[Recipient], question: RcptQuestion
    ) -> MaybeDeferred[Response]:
        most = self._terms.session.max_recipients
        targets = [
            target for each in replacement for target in self._terms.domains.expand(each.address, most)
        ]
        if self._is_not_taken(question.transaction.sender, targets):
            return self._refuse_internationalized(question.recipient.address)
        return run(self._look_for_one(targets, question.recipient))

    def _look_for_one(self, targets: Sequence[Address], recipient: Recipient) -> Steps[Response]:
        for each in targets:
            exists: bool = yield self._has_mailbox(each)
            if exists:
                return self._answer_of_mailbox(True, recipient)
        return self._answer_of_mailbox(False, recipient)

    def _answer_of_mailbox(self, exists: bool, recipient: Recipient) -> Response:
        if not exists:
            return self._refuse_unknown(recipient.address)
        if self._recipient_count is not None:
            self._recipient_count.accepted(recipient)
        return _PROCEED

    def _is_not_taken(self, sender: Address, targets: Sequence[Address]) -> bool:
        """Whether no next hop takes addresses beyond ASCII that it would get, as far as that is known."""
        routes, memory = self._terms.routes, self._terms.hop_memory
        if routes is None or memory is None or not targets:
            return False
        return all(
            (each.needs_smtputf8 or sender.needs_smtputf8)
            and memory.route_lacks_smtputf8(routes.route(each), each)
            for each in targets
        )

    def _refuse_internationalized(self, address: Address) -> Response:
        # RFC 6531 §3.2: it could only be returned later.
        self._terms.metrics.messages_rejected.labels("rcpt", "smtputf8").inc()
        _log.info(
            "a recipient's next hop takes no internationalized addresses",
            event="recipient.smtputf8_refused",
            session_id=self._facts.id,
            client_ip=str(self._facts.client_ip),
            recipient=str(address),
        )
        return Refuse(replies.NEXT_HOP_WITHOUT_SMTPUTF8, reason="the next hop takes no SMTPUTF8")

    def _has_mailbox(self, address: Address) -> MaybeDeferred[bool]:
        """False where the recipient's route leads to a Maildir that is missing and stays so."""
        routes, mailboxes = self._terms.routes, self._terms.mailboxes
        if routes is None or mailboxes is None:
            return True
        route = routes.route(address)
        if not isinstance(route, MaildirRoute) or route.makes(address):
            return True
        return mailboxes.exists(route, address)

    def _refuse_unknown(self, address: Address) -> Response:
        self._terms.metrics.messages_rejected.labels("rcpt", "mailboxes").inc()
        _log.info(
            "a recipient has no mailbox",
            event="recipient.unknown",
            session_id=self._facts.id,
            client_ip=str(self._facts.client_ip),
            recipient=str(address),
        )
        return Refuse(replies.NO_MAILBOX, reason="no such mailbox")

    def _answer_of(self, decision: ChainDecision, stage: Stage) -> Response:
        verdict = decision.verdict
        if verdict is CONTINUE:
            return _PROCEED
        reply = reply_of(verdict)
        if reply is None:
            return _PROCEED
        self._terms.metrics.message_refused(stage.value, decision.policy, transient=reply.is_transient)
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
        self._login = login = LoginExchange(self._terms, self._policies, self._facts, question.username)
        return Deferred.fromCoroutine(login.answer(question.password))

    # Messages

    def _submission_rules(self) -> SubmissionRules | None:
        """What the mail of this client is subject to, where it is submitted."""
        rules = self._terms.submission
        if rules is None or not rules.concern(self._facts, self._terms.listener.role):
            return None
        return rules

    def _answer_mail(self, question: MailQuestion) -> MaybeDeferred[Response]:
        # As the client named it: a policy may replace it.
        self._named_sender = question.transaction.sender
        rules = self._submission_rules()
        refused = rules and rules.refuse_sender(self._facts, self._named_sender)
        if refused:
            return self._refuse_submission(refused, question.stage)
        spool = self._terms.spool
        if not spool.healthy:
            return Refuse(replies.LOCAL_TROUBLE, reason="the spool is not healthy")
        if not spool.has_space(question.transaction.size):
            return Refuse(replies.STORAGE_FULL, reason="the spool's disk is below minimum_free")
        return self._ask_policies(question)

    def _refuse_submission(self, answer: Refuse, stage: Stage) -> Refuse:
        self._terms.metrics.messages_rejected.labels(stage.value, "submission").inc()
        return answer

    def message_started(self, transaction: TransactionInfo) -> None:
        self._writer = self._terms.spool.begin()
        transaction.queue_id = self._writer.queue_id
        rules = self._submission_rules()
        if rules is None:
            self._submitted, self._header = None, HeaderReader(host=self._terms.server.hostname)
        else:
            self._submitted = rules.message(self._facts, self._named_sender, self._writer.queue_id)
            self._header = self._submitted.reader

    def message_data(self, data: bytes) -> MessageWriter | None:
        """Take the next octets; returns the writer when the disk is behind and reading should pause."""
        writer = self._writer
        if writer is None:
            return None
        writer.write(self._header.feed(data))
        return writer if writer.congested else None

    def _answer_message(self, question: MessageQuestion) -> MaybeDeferred[Response]:
        writer = self._writer
        if writer is None:
            return Refuse(replies.LOCAL_TROUBLE, reason="no message was begun")
        writer.write(self._header.finish())
        # All of the message was written, so this stays as it is.
        head = writer.head
        if self._header.received > MAX_HOPS or self._header.received_here > MAX_HOPS_HERE:
            return Refuse(replies.TOO_MANY_HOPS, reason="mail loop")
        if self._submitted is not None and self._submitted.refusal is not None:
            return self._refuse_submission(self._submitted.refusal, question.stage)
        if writer.in_file or writer.failure is not None or self._terms.chain.asks(Stage.MESSAGE):
            return run(self._judge_message(question, writer, head))
        return self._commit(question.transaction, writer)

    def _judge_message(
        self, question: MessageQuestion, writer: MessageWriter, head: bytes
    ) -> Steps[Response]:
        if writer.in_file:
            # A policy may read the message as a file, so all of it has to be there.
            yield writer.when_drained()
        if writer.failure is not None:
            # A policy could not read it, and what that policy's failure costs may be a 5xx.
            return self._not_stored(writer.failure)
        if not self._terms.chain.asks(question.stage):
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
            return answer if writer.failure is None else self._not_stored(writer.failure)
        if content.is_rewritten and not writer.ended:
            try:
                writer = yield from self._rewrite(writer, content)
            except SpoolError as error:
                return self._not_stored(error)
        committed: Response = yield self._commit_if_awaited(question.transaction, writer, content)
        return committed

    def _commit_if_awaited(
        self, transaction: TransactionInfo, writer: MessageWriter, content: MessageContent | None = None
    ) -> MaybeDeferred[Response]:
        if writer.ended:
            # The client left, or got 451 because this took too long.
            return Refuse(replies.LOCAL_TROUBLE, reason="the session no longer waits for this message")
        return self._commit(transaction, writer, content)

    def _rewrite(self, writer: MessageWriter, content: MessageContent) -> Steps[MessageWriter]:
        """The message as policies changed it, once and as a whole."""
        body, _ = content.open_body()
        spool = self._terms.spool
        rewriting = Deferred.fromCoroutine(spool.rewrite(writer, content.header.stored, body))
        rewritten: MessageWriter = yield rewriting
        if self._writer is writer:
            self._writer = rewritten
        else:
            rewritten.discard()
        return rewritten

    def _commit(
        self, transaction: TransactionInfo, writer: MessageWriter, content: MessageContent | None = None
    ) -> MaybeDeferred[Response]:
        discarded = self._policies.discarded_by(transaction)
        if discarded is not None or (transaction.dropped and not transaction.recipients):
            return self._discard(transaction, writer, discarded)
        final = final_recipients(
            self._terms.domains, transaction.recipients, self._terms.session.max_recipients
        )
        if final is None:
            # Each RCPT was counted, so that policies added these.
            return Refuse(replies.TOO_MANY_RECIPIENTS, reason="policies added too many recipients")
        if not final.recipients:
            return Refuse(replies.LOCAL_TROUBLE, reason="policies removed every recipient")
        submission = self._submission(transaction, writer.queue_id, final, content)
        # Without its content, if no notice needs it.
        head = submission.header_block + writer.head if final.wants_notice else b""
        committed = self._terms.spool.commit(writer, submission)
        self._writer = None
        self._committing = transaction
        return committed.addCallbacks(
            self._queued, self._not_queued, callbackArgs=(submission, final.aliases, head)
        )

    def _discard(
        self, transaction: TransactionInfo, writer: MessageWriter, decision: ChainDecision | None
    ) -> Response:
        """Accept a message, and store it nowhere: a policy said so, of it or of each of its recipients."""
        self._writer = None
        size = writer.size
        writer.discard()
        verdict = None if decision is None else decision.verdict
        _log.info(
            "message discarded",
            event="message.discarded",
            session_id=self._facts.id,
            queue_id=writer.queue_id,
            client_ip=str(self._facts.client_ip),
            sender=str(transaction.sender),
            recipient_count=len(transaction.recipients) + transaction.dropped,
            size=size,
            policy=None if decision is None else decision.policy,
            reason=verdict.reason if isinstance(verdict, Discard) else "each recipient was discarded",
        )
        return Queued(writer.queue_id)

    def _submission(
        self,
        transaction: TransactionInfo,
        queue_id: str,
        final: FinalRecipients,
        content: MessageContent | None,
    ) -> Submission:
        facts = self._facts
        recipients = final.recipients
        at = self._terms.now()
        client = self._client_now()
        received = received_field(
            hostname=self._terms.server.hostname,
            client=client,
            protocol=protocol_name(
                esmtp=facts.esmtp,
                tls=facts.tls is not None,
                auth=facts.user is not None,
                smtputf8=transaction.parameters.smtputf8,
            ),
            queue_id=queue_id,
            at=at,
            only_recipient=None if final.only_named is None else str(final.only_named),
            hide_client=self._submitted is not None and self._submitted.hides_client,
        )
        if content is None:
            block = [received, *(added_field(*field) for field in transaction.added_headers)]
        else:
            block = [*content.header.top, received, *content.header.ours]
        quarantined = self._policies.hold_reason(transaction)
        return Submission(
            sender=transaction.sender,
            recipients=recipients,
            parameters=transaction.parameters,
            client=client,
            header_block=b"".join(block),
            received_at=at,
            hold_reason=quarantined or self._held_by_routes(recipients),
            hold=HoldCause.QUARANTINE if quarantined else HoldCause.ROUTE,
        )

    def _client_now(self) -> Client:
        """The client as it is now; the same object as long as nothing of it has changed."""
        facts, known = self._facts, self._client
        tls = facts.tls.version if facts.tls else None
        if known is None or (known.helo, known.user, known.tls) != (facts.helo, facts.user, tls):
            known = self._client = Client(
                ip=str(facts.client_ip),
                helo=facts.helo,
                listener=facts.listener,
                session_id=facts.id,
                user=facts.user,
                tls=tls,
            )
        return known

    def _held_by_routes(self, recipients: Sequence[Recipient]) -> str | None:
        routes = self._terms.routes
        return routes.hold_reason(recipients) if routes is not None else None

    def _queued(
        self, envelope: Envelope, submission: Submission, aliases: Sequence[ExpandedAlias], head: bytes
    ) -> MaybeDeferred[Response]:
        self._log_aliases(envelope, aliases)
        metrics, listener = self._terms.metrics, self._facts.listener
        metrics.messages_accepted.labels(listener).inc()
        metrics.message_size.labels(listener).observe(envelope.size)
        _log.info(
            "message accepted",
            event="message.accepted",
            session_id=self._facts.id,
            queue_id=envelope.queue_id,
            client_ip=submission.client.ip,
            sender=str(envelope.sender),
            recipients=len(envelope.recipients),
            size=envelope.size,
            user=self._facts.user,
            held=submission.hold_reason,
        )
        queued = Queued(envelope.queue_id)
        # A message on hold may never be delivered.
        if not head or submission.hold_reason is not None:
            return queued
        terms = self._terms
        notice = expansion_notice(envelope, aliases, terms.server.hostname, terms.domains)
        if notice is None:
            return queued
        # Before the 250: a client that does not get it sends the message again, and the notice comes again.
        noticed = Deferred.fromCoroutine(queue_notice(self._terms.spool, notice, head))
        return noticed.addCallback(lambda _: queued)

    def _log_aliases(self, envelope: Envelope, aliases: Sequence[ExpandedAlias]) -> None:
        for alias in aliases[:_MOST_LOGGED]:
            _log.info(
                "a recipient is an alias",
                event="recipient.expanded",
                session_id=self._facts.id,
                queue_id=envelope.queue_id,
                recipient=str(alias.recipient),
                targets=[str(each) for each in alias.targets[:_MOST_LOGGED]],
                count=len(alias.targets),
            )

    def _not_queued(self, failure: Failure) -> Response:
        if failure.check(CancelledError) is not None:
            # It may yet be committed, so it stays charged.
            return Refuse(replies.LOCAL_TROUBLE, reason="the commit takes too long")
        self._committing = None
        return self._not_stored(failure.value)

    def _not_stored(self, error: BaseException | None) -> Response:
        self._terms.metrics.messages_deferred.labels("spool", "spool").inc()
        _log.error(
            "message could not be stored",
            event="message.not_stored",
            session_id=self._facts.id,
            error=str(error),
        )
        reply = replies.STORAGE_FULL if isinstance(error, SpoolFull) else replies.LOCAL_TROUBLE
        if isinstance(error, NotSigned) and error.refused:
            reply = replies.REFUSED_BY_POLICY
        return Refuse(reply, reason=f"spool: {error}")

    def transaction_ended(self, transaction: TransactionInfo, accepted: bool) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.discard()
        if self._health_check:
            return
        # A client that leaves between its dot and our 250 has sent its message all the same: were it reported
        # as refused, its charges would come back and limits would be no bound.
        if accepted or transaction is self._committing:
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
