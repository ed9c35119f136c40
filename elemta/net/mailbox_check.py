"""Whether a mailbox that a recipient leads to is there, and can be reached."""

from __future__ import annotations

from collections.abc import Sequence

from elemta.address import Address
from elemta.deferred_value import MaybeDeferred, Steps, run, then
from elemta.delivery.routes import MaildirRoute
from elemta.envelope import Recipient
from elemta.net.context import ListenerContext
from elemta.net.recipients import RecipientCount
from elemta.runtime.fast_logger import FastLogger
from elemta.smtp import replies
from elemta.smtp.events import Proceed, RcptQuestion, Refuse, Response
from elemta.smtp.session_info import SessionInfo

_log = FastLogger()

_PROCEED = Proceed()


class MailboxCheck:
    """Looks for the mailboxes of the recipients of one session.

    ``count`` counts those of a transaction; None without aliases, where a recipient is one mailbox and the
    session has counted it.
    """

    __slots__ = ("_context", "_facts", "count")

    def __init__(self, context: ListenerContext, facts: SessionInfo) -> None:
        self._context = context
        self._facts = facts
        self.count: RecipientCount | None = None
        if context.domains.aliases.lines:
            self.count = RecipientCount(context.domains, context.session.max_recipients)

    def look(self, answer: Response, question: RcptQuestion) -> MaybeDeferred[Response]:
        """Refuse a recipient where none of the mailboxes that get its mail is there, or can be reached."""
        if not isinstance(answer, Proceed):
            return answer
        recipient, replacement = question.recipient, question.transaction.replacement
        if replacement is not None:
            return self._look_for_replacement(replacement, question) if replacement else answer
        if self.count is None:
            targets: tuple[Address, ...] = (recipient.address,)
        else:
            targets = self._context.domains.expand(recipient.address, self._context.session.max_recipients)
        # Without aliases no address is beyond ASCII where the client did not say SMTPUTF8.
        utf8 = question.transaction.parameters.smtputf8 or self.count is not None
        if utf8 and self._is_not_taken(question.transaction.sender, targets):
            return self._refuse_internationalized(recipient.address)
        if len(targets) == 1:
            exists = self._has_mailbox(targets[0])
            if exists is True and self.count is None:
                return _PROCEED
            return then(exists, self._answer_of_mailbox, recipient)
        return run(self._look_for_one(targets, recipient))

    def _look_for_replacement(
        self, replacement: Sequence[Recipient], question: RcptQuestion
    ) -> MaybeDeferred[Response]:
        most = self._context.session.max_recipients
        targets = [
            target for each in replacement for target in self._context.domains.expand(each.address, most)
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
        if self.count is not None:
            self.count.accepted(recipient)
        return _PROCEED

    def _is_not_taken(self, sender: Address, targets: Sequence[Address]) -> bool:
        """Whether no next hop takes addresses beyond ASCII that it would get, as far as that is known."""
        routes, memory = self._context.routes, self._context.hop_memory
        if routes is None or memory is None or not targets:
            return False
        return all(
            (each.needs_smtputf8 or sender.needs_smtputf8)
            and memory.route_lacks_smtputf8(routes.route(each), each)
            for each in targets
        )

    def _refuse_internationalized(self, address: Address) -> Response:
        # RFC 6531 §3.2: it could only be returned later.
        self._context.metrics.messages_rejected.labels("rcpt", "smtputf8").inc()
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
        routes, mailboxes = self._context.routes, self._context.mailboxes
        if routes is None or mailboxes is None:
            return True
        route = routes.route(address)
        if not isinstance(route, MaildirRoute) or route.makes(address):
            return True
        return mailboxes.exists(route, address)

    def _refuse_unknown(self, address: Address) -> Response:
        self._context.metrics.messages_rejected.labels("rcpt", "mailboxes").inc()
        _log.info(
            "a recipient has no mailbox",
            event="recipient.unknown",
            session_id=self._facts.id,
            client_ip=str(self._facts.client_ip),
            recipient=str(address),
        )
        return Refuse(replies.NO_MAILBOX, reason="no such mailbox")
