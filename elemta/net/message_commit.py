"""The end of a message that was accepted: what is stored of it, the commit, and the answer."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from elemta.deferred_value import MaybeDeferred
from elemta.envelope import Client, Envelope, Recipient
from elemta.errors import NotSigned, SpoolFull
from elemta.message.notice import NoticeSettings
from elemta.message.summary import read_summary
from elemta.message.trace import added_field, protocol_name, received_field
from elemta.net.context import ListenerContext
from elemta.net.expansion_notices import expansion_notice, queue_notice
from elemta.net.recipients import ExpandedAlias, FinalRecipients, final_recipients
from elemta.net.submission import SubmittedHeader
from elemta.policy import ChainDecision, Discard, PolicySession
from elemta.policy.message_view import MessageContent
from elemta.runtime.fast_logger import FastLogger
from elemta.smtp import replies
from elemta.smtp.events import Queued, Refuse, Response
from elemta.smtp.session_info import SessionInfo, TransactionInfo
from elemta.spool import HoldCause, MessageWriter, Submission

_log = FastLogger()

# Aliases of a message that stand in the log, and addresses of each.
_MOST_LOGGED = 20
# Recipients of a message that stand in the log.
_MOST_RECIPIENTS = 10


class MessageCommit:
    """Puts the messages of one session into the spool, one after the other.

    ``committing`` is the transaction whose message was given to the spool last; None where that is surely
    not stored.
    """

    __slots__ = ("_client", "_context", "_facts", "_policies", "committing")

    def __init__(self, context: ListenerContext, facts: SessionInfo, policies: PolicySession) -> None:
        self._context = context
        self._facts = facts
        self._policies = policies
        self._client: Client | None = None
        self.committing: TransactionInfo | None = None

    def start(
        self,
        transaction: TransactionInfo,
        writer: MessageWriter,
        submitted: SubmittedHeader | None,
        content: MessageContent | None = None,
        *,
        head: bytes | None = None,
    ) -> MaybeDeferred[Response]:
        """Store the message, and answer for it. The writer is used up, unless this raises.

        ``head`` is that of the writer, where it is known.
        """
        discarded = self._policies.discarded_by(transaction)
        if discarded is not None or (transaction.dropped and not transaction.recipients):
            return self._discard(transaction, writer, discarded)
        final = final_recipients(
            self._context.domains, transaction.recipients, self._context.session.max_recipients
        )
        if final is None:
            # Each RCPT was counted, so that policies added these.
            writer.discard()
            return Refuse(replies.TOO_MANY_RECIPIENTS, reason="policies added too many recipients")
        if not final.recipients:
            writer.discard()
            return Refuse(replies.LOCAL_TROUBLE, reason="policies removed every recipient")
        if head is None:
            head = writer.head
        submission = self._submission(
            transaction, writer.queue_id, head, final, submitted=submitted, content=content
        )
        # Without its content, if no notice needs it.
        head = submission.header_block + head if final.aliases and final.wants_notice else b""
        committed = self._context.spool.commit(writer, submission)
        self.committing = transaction
        return committed.addCallbacks(
            self._queued, self._not_queued, callbackArgs=(submission, final.aliases, head)
        )

    def _discard(
        self, transaction: TransactionInfo, writer: MessageWriter, decision: ChainDecision | None
    ) -> Response:
        """Accept a message, and store it nowhere: a policy said so, of it or of each of its recipients."""
        size = writer.size
        self._keep_discarded(transaction, writer)
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

    def _keep_discarded(self, transaction: TransactionInfo, writer: MessageWriter) -> None:
        """The history has it all the same: the client was given its queue id."""
        submission = Submission(
            sender=transaction.sender,
            recipients=tuple(transaction.recipients),
            parameters=transaction.parameters,
            client=self._client_now(),
            header_block=b"",
            received_at=self._context.now(),
            summary=read_summary(writer.head),
            verdicts=self._policies.verdicts(transaction),
        )
        self._context.spool.keep_discarded(writer.queue_id, writer.size, submission)

    def _submission(
        self,
        transaction: TransactionInfo,
        queue_id: str,
        head: bytes,
        final: FinalRecipients,
        *,
        submitted: SubmittedHeader | None,
        content: MessageContent | None,
    ) -> Submission:
        facts = self._facts
        recipients = final.recipients
        at = self._context.now()
        client = self._client_now()
        received = received_field(
            hostname=self._context.server.hostname,
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
            hide_client=submitted is not None and submitted.hides_client,
        )
        if content is None:
            block = [received, *(added_field(*field) for field in transaction.added_headers)]
        else:
            block = [*content.header.top, received, *content.header.ours]
        quarantined = self._policies.hold_reason(transaction)
        header_block = b"".join(block)
        return Submission(
            sender=transaction.sender,
            recipients=recipients,
            parameters=transaction.parameters,
            client=client,
            header_block=header_block,
            received_at=at,
            hold_reason=quarantined or self._held_by_routes(recipients),
            hold=HoldCause.QUARANTINE if quarantined else HoldCause.ROUTE,
            summary=read_summary(head, header_block),
            verdicts=self._policies.verdicts(transaction),
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
        routes = self._context.routes
        return routes.hold_reason(recipients) if routes is not None else None

    def _queued(
        self, envelope: Envelope, submission: Submission, aliases: Sequence[ExpandedAlias], head: bytes
    ) -> MaybeDeferred[Response]:
        if aliases:
            self._log_aliases(envelope, aliases)
        metrics, listener = self._context.metrics, self._facts.listener
        metrics.messages_accepted.labels(listener).inc()
        metrics.message_size.labels(listener).observe(envelope.size)
        _log.info(
            "message accepted",
            event="message.accepted",
            session_id=self._facts.id,
            queue_id=envelope.queue_id,
            client_ip=submission.client.ip,
            message_id=submission.summary.message_id or None,
            sender=str(envelope.sender),
            recipients=[str(each.address) for each in envelope.recipients[:_MOST_RECIPIENTS]],
            recipient_count=len(envelope.recipients),
            size=envelope.size,
            user=self._facts.user,
            held=submission.hold_reason,
        )
        queued = Queued(envelope.queue_id)
        # A message on hold may never be delivered.
        if not head or submission.hold_reason is not None:
            return queued
        context = self._context
        notice = expansion_notice(envelope, aliases)
        if notice is None:
            return queued
        # Before the 250: a client that does not get it sends the message again, and the notice comes again.
        settings = NoticeSettings(context.server.hostname, expand=context.domains.expand)
        noticed = Deferred.fromCoroutine(queue_notice(context.spool, notice, settings, head))
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
        transaction, self.committing = self.committing, None
        return self.not_stored(failure.value, "" if transaction is None else transaction.queue_id)

    def not_stored(self, error: BaseException | None, queue_id: str) -> Response:
        """The answer to a message that could not be stored."""
        self._context.metrics.messages_deferred.labels("spool", "spool").inc()
        _log.error(
            "message could not be stored",
            event="message.not_stored",
            session_id=self._facts.id,
            queue_id=queue_id,
            error=str(error),
        )
        reply = replies.STORAGE_FULL if isinstance(error, SpoolFull) else replies.LOCAL_TROUBLE
        if isinstance(error, NotSigned) and error.refused:
            reply = replies.REFUSED_BY_POLICY
        return Refuse(reply, reason=f"spool: {error}")
