"""The state of a session, its output and its counts of errors: what commands work on."""

from __future__ import annotations

from collections.abc import Callable

from elemta.fast_enum import FastEnum
from elemta.smtp import replies
from elemta.smtp.content import Chunk, ChunkedContent, DataContent
from elemta.smtp.events import (
    Close,
    Event,
    Forgave,
    PauseQuestion,
    Question,
    Refuse,
    Replied,
    Response,
    TransactionEnded,
)
from elemta.smtp.leniency import Kinds
from elemta.smtp.memory import MemoryBudget
from elemta.smtp.reply import Reply
from elemta.smtp.sasl import Mechanism
from elemta.smtp.session_info import SessionInfo, TransactionInfo
from elemta.smtp.settings import SessionSettings
from elemta.smtp.trace_lines import Trace


class SessionPhase(FastEnum):
    """Which commands make sense now (RFC 5321 §4.1.4)."""

    GREETED = "before HELO or EHLO"
    READY = "no transaction"
    MAIL = "a sender"
    RCPT = "a sender and recipients"
    CHUNKS = "between two chunks"


class ExpectedInput(FastEnum):
    """What the next octets from the client are."""

    COMMAND = "a command"
    AUTH = "an authentication response"
    DATA = "a message"
    CHUNK = "a chunk"
    HANDSHAKE = "a TLS handshake, which is not for us"
    NOTHING = "nothing"


class SessionState:
    """One session: its facts, its transaction, its output, and the counts of errors and refusals."""

    def __init__(self, settings: SessionSettings, facts: SessionInfo, envelopes: MemoryBudget) -> None:
        self.settings = settings
        self.facts = facts
        #: The budget of all envelopes of the process.
        self.envelopes = envelopes
        self.transaction: TransactionInfo | None = None
        #: The client does not know yet that its transaction failed: what it pipelined for it is no error.
        self.transaction_failed = False
        self.rejected_at_connect = False
        self.closed = False
        self.reading = ExpectedInput.COMMAND
        self.message: DataContent | ChunkedContent | None = None
        self.chunk: Chunk | None = None
        self.exchange: Mechanism | None = None
        #: What was forgiven in the line that is being read, and not reported yet.
        self.kinds: Kinds = []
        self.auth_failures = 0
        self.question: Question | None = None
        self.resume: Callable[[Response], None] | None = None
        self.events: list[Event] = []
        #: The replies that were not sent yet.
        self.output = b""
        self._errors = 0
        self._idle_commands = 0
        self._declined = 0
        self._refusals = 0
        #: The reply that is held back until a :meth:`pause` is over.
        self.held: Replied | None = None
        #: Gets each command and reply as a watcher may see it, while something watches.
        self.trace: Trace | None = None

    @property
    def phase(self) -> SessionPhase:
        transaction = self.transaction
        if transaction is None:
            return SessionPhase.READY if self.facts.helo else SessionPhase.GREETED
        if self.message is not None:
            return SessionPhase.CHUNKS
        accepted = transaction.recipients or transaction.dropped
        return SessionPhase.RCPT if accepted else SessionPhase.MAIL

    # What is said

    def reply(self, verb: str, reply: Reply, reason: str = "") -> None:
        if self.held is not None:
            self._release_reply()
        # They are few at a time: with more than `max_output` the shell sends them first.
        self.output += reply.wire or reply.encode()
        self.events.append(Replied(verb, reply, reason))
        if self.trace is not None:
            self.trace.said(False, str(reply))

    def _release_reply(self) -> None:
        """Send the reply that is held back, if there is one: nothing is ever sent before it."""
        held, self.held = self.held, None
        if held is not None:
            self.reply(held.verb, held.reply, held.reason)

    def pause(self) -> None:
        """Ask for the pause that the reply which is held back has to wait for."""
        self.ask(PauseQuestion(self.facts, self.settings.refusal_seconds), lambda _: self._release_reply())

    def protocol_error(self, verb: str, reply: Reply, reason: str = "") -> None:
        """Answer a protocol error of the client."""
        self._errors += 1
        if self._errors > self.settings.max_errors:
            self.reply_and_close(verb, replies.TOO_MANY_ERRORS, "too many errors")
        else:
            self.reply(verb, reply, reason)

    def reject(self, verb: str, reply: Reply, reason: str = "", *, for_good: bool | None = None) -> None:
        """Answer something that was well-formed and is refused; slower after some, and then no more.

        ``for_good`` is whether the refusal counts as one for good; the reply's code says so unless given.
        """
        settings = self.settings
        self._declined += 1
        if for_good is None:
            for_good = not reply.is_transient and reply not in replies.CONSEQUENCES
        if for_good:
            self._refusals += 1
        slow = for_good and self._refusals > settings.quick_refusals and not self.is_trusted
        if self._declined > settings.max_declined or (slow and self._refusals > settings.max_refusals):
            self.reply_and_close(verb, replies.TOO_MANY_REFUSALS, "too many refusals")
        elif slow:
            self._release_reply()
            self.held = Replied(verb, reply, reason)
        else:
            self.reply(verb, reply, reason)

    @property
    def is_trusted(self) -> bool:
        """Whether the client may relay: as a user that logged in, or by its address."""
        return self.facts.user is not None or self.settings.may_relay(self.facts.client_ip)

    @property
    def normalizes_newlines(self) -> bool:
        """Whether a bare CR or LF in a message of this client becomes CRLF."""
        settings = self.settings
        return settings.normalize_newlines or (not settings.strict and self.is_trusted)

    def report_forgiven(self, verb: str, text: str = "") -> None:
        """Report what was forgiven in the line that was just read; ``text`` is for the log."""
        self.events.append(Forgave(verb, tuple(self.kinds), text))
        self.kinds.clear()

    def reject_command(self, verb: str, reply: Reply) -> None:
        """Answer a command that can't be done now: whose fault that is depends."""
        # RFC 2920 §3.1: what a client pipelined behind a MAIL that failed is no error of its
        if reply in replies.DECLINES or (reply is replies.MAIL_FIRST and self.transaction_failed):
            self.reject(verb, reply)
        else:
            self.protocol_error(verb, reply)

    def refuse(self, verb: str, answer: Refuse) -> None:
        """Answer what the shell refused, and close where it or the code says so."""
        # RFC 5321 §3.8: 421 announces that the connection is closed
        if answer.close or answer.reply.code == 421:
            self.reply_and_close(verb, answer.reply, answer.reason or "refused")
        else:
            for_good = answer.of_refused_client or not answer.reply.is_transient
            self.reject(verb, answer.reply, answer.reason, for_good=for_good)

    def reply_and_close(self, verb: str, reply: Reply, reason: str, *, in_message: bool = False) -> None:
        self.reply(verb, reply, reason)
        self.close(reason, in_message=in_message)

    def close(self, reason: str, *, in_message: bool = False) -> None:
        """End the transaction and the session; nothing is sent or read any more."""
        if self.closed:
            return
        if self.held is not None:
            self._release_reply()
        self.end_transaction(accepted=False)
        self.stop()
        self.events.append(Close(reason, in_message))

    def stop(self) -> None:
        """Nothing is said, asked or read from now on."""
        self.closed = True
        self.reading = ExpectedInput.NOTHING
        self.question = self.resume = self.exchange = self.chunk = None

    def ask(self, question: Question, resume: Callable[[Response], None]) -> None:
        """Ask the shell; ``resume`` is called with its answer."""
        self.question = question
        self.resume = resume
        self.events.append(question)

    # What a transaction and a session come to

    def end_transaction(self, *, accepted: bool) -> None:
        """The transaction is over, if there was one."""
        transaction, self.transaction = self.transaction, None
        self.message = None
        if transaction is not None:
            transaction.memory.end()
            self.events.append(TransactionEnded(transaction, accepted))
        if accepted:
            self._errors = self._idle_commands = self._declined = 0

    def count_idle_command(self) -> bool:
        """Count a command that brings no message nearer; False when it is one too many."""
        self._idle_commands += 1
        return self._idle_commands <= self.settings.max_idle_commands

    def reset_after_tls(self) -> None:
        """Forget what the client said so far; the counts of errors and refusals stay."""
        # RFC 3207 §4.2
        self.end_transaction(accepted=False)
        self.transaction_failed = False
        self.facts.helo = ""
        self.facts.esmtp = False
        self.facts.user = None
