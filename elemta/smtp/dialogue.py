"""Where a conversation stands, and its voice: what commands work on."""

from __future__ import annotations

import enum
from collections.abc import Callable

from elemta.smtp import replies
from elemta.smtp.content import Chunk, ChunkedContent, DataContent
from elemta.smtp.events import (
    Answer,
    Close,
    Event,
    PauseQuestion,
    Question,
    Refuse,
    Replied,
    TransactionEnded,
)
from elemta.smtp.facts import SessionFacts, Transaction
from elemta.smtp.memory import MemoryBudget
from elemta.smtp.reply import Reply
from elemta.smtp.sasl import Mechanism
from elemta.smtp.settings import SessionSettings


class State(enum.Enum):
    """Which commands make sense now (RFC 5321 §4.1.4)."""

    GREETED = "before HELO or EHLO"
    READY = "no transaction"
    MAIL = "a sender"
    RCPT = "a sender and recipients"
    CHUNKS = "between two chunks"


class Reading(enum.Enum):
    """What the next octets from the client are."""

    COMMAND = "a command"
    AUTH = "an authentication response"
    DATA = "a message"
    CHUNK = "a chunk"
    HANDSHAKE = "a TLS handshake, which is not for us"
    NOTHING = "nothing"


class Dialogue:
    """One conversation: its facts, its transaction, what was said, and how patient we still are."""

    def __init__(self, settings: SessionSettings, facts: SessionFacts, envelopes: MemoryBudget) -> None:
        self.settings = settings
        self.facts = facts
        #: The budget of all envelopes of the process.
        self.envelopes = envelopes
        self.transaction: Transaction | None = None
        #: The client does not know yet that its transaction failed: what it pipelined for it is no error.
        self.transaction_failed = False
        self.unwelcome = False
        self.closed = False
        self.reading = Reading.COMMAND
        self.message: DataContent | ChunkedContent | None = None
        self.chunk: Chunk | None = None
        self.exchange: Mechanism | None = None
        self.auth_failures = 0
        self.question: Question | None = None
        self.resume: Callable[[Answer], None] | None = None
        self.events: list[Event] = []
        self.output: list[bytes] = []
        self.output_size = 0
        self._errors = 0
        self._junk = 0
        self._declined = 0
        self._refusals = 0
        self._held: Replied | None = None

    @property
    def state(self) -> State:
        transaction = self.transaction
        if transaction is None:
            return State.READY if self.facts.helo else State.GREETED
        if self.message is not None:
            return State.CHUNKS
        return State.RCPT if transaction.recipients else State.MAIL

    # What is said

    def say(self, verb: str, reply: Reply, reason: str = "") -> None:
        self._release_reply()
        self._send(Replied(verb, reply, reason))

    def _send(self, replied: Replied) -> None:
        encoded = replied.reply.encode()
        self.output.append(encoded)
        self.output_size += len(encoded)
        self.events.append(replied)

    def _release_reply(self) -> None:
        """Send the reply that is held back, if there is one: nothing is ever sent before it."""
        held, self._held = self._held, None
        if held is not None:
            self._send(held)

    def pause(self) -> None:
        """Ask for the pause that a reply which is held back has to wait for, if there is one."""
        if self._held is not None:
            self.ask(
                PauseQuestion(self.facts, self.settings.refusal_seconds), lambda _: self._release_reply()
            )

    def fault(self, verb: str, reply: Reply, reason: str = "") -> None:
        """Answer a protocol error of the client."""
        self._errors += 1
        if self._errors > self.settings.max_errors:
            self.say_goodbye(verb, replies.TOO_MANY_ERRORS, "too many errors")
        else:
            self.say(verb, reply, reason)

    def decline(self, verb: str, reply: Reply, reason: str = "", *, for_good: bool | None = None) -> None:
        """Answer something that was well-formed and is refused; slower after some, and then no more.

        ``for_good`` is whether the refusal counts as one for good; the reply's code says so unless given.
        """
        settings = self.settings
        self._declined += 1
        if for_good is None:
            for_good = not reply.is_transient and reply not in replies.CONSEQUENCES
        if for_good:
            self._refusals += 1
        slow = for_good and self._refusals > settings.quick_refusals and not self._is_trusted()
        if self._declined > settings.max_declined or (slow and self._refusals > settings.max_refusals):
            self.say_goodbye(verb, replies.TOO_MANY_REFUSALS, "too many refusals")
        elif slow:
            self._release_reply()
            self._held = Replied(verb, reply, reason)
        else:
            self.say(verb, reply, reason)

    def _is_trusted(self) -> bool:
        return self.facts.user is not None or self.settings.may_relay(self.facts.client_ip)

    def rebuff(self, verb: str, reply: Reply) -> None:
        """Answer a command that can't be done now: whose fault that is depends."""
        # RFC 2920 §3.1: what a client pipelined behind a MAIL that failed is no error of its
        if reply in replies.DECLINES or (reply is replies.MAIL_FIRST and self.transaction_failed):
            self.decline(verb, reply)
        else:
            self.fault(verb, reply)

    def refuse(self, verb: str, answer: Refuse) -> None:
        """Answer what the shell refused, and close where it or the code says so."""
        # RFC 5321 §3.8: 421 announces that the connection is closed
        if answer.close or answer.reply.code == 421:
            self.say_goodbye(verb, answer.reply, answer.reason or "refused")
        else:
            for_good = answer.of_refused_client or not answer.reply.is_transient
            self.decline(verb, answer.reply, answer.reason, for_good=for_good)

    def say_goodbye(self, verb: str, reply: Reply, reason: str, *, in_message: bool = False) -> None:
        self.say(verb, reply, reason)
        self.close(reason, in_message=in_message)

    def close(self, reason: str, *, in_message: bool = False) -> None:
        """End the transaction and the conversation; nothing is said or read any more."""
        if self.closed:
            return
        self._release_reply()
        self.end_transaction(accepted=False)
        self.hush()
        self.events.append(Close(reason, in_message))

    def hush(self) -> None:
        """Nothing is said, asked or read from now on."""
        self.closed = True
        self.reading = Reading.NOTHING
        self.question = self.resume = self.exchange = self.chunk = None

    def ask(self, question: Question, resume: Callable[[Answer], None]) -> None:
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
            self._errors = self._junk = self._declined = 0

    def count_junk(self) -> bool:
        """Count a command that brings no message nearer; False when it is one too many."""
        self._junk += 1
        return self._junk <= self.settings.max_junk

    def forget(self) -> None:
        """Forget what the client said so far; how patient we still are is ours, and stays."""
        # RFC 3207 §4.2
        self.end_transaction(accepted=False)
        self.transaction_failed = False
        self.facts.helo = ""
        self.facts.esmtp = False
        self.facts.user = None
