"""Where a conversation stands, and its voice: what commands work on."""

from __future__ import annotations

import enum
from collections.abc import Callable

from elemta.smtp import replies
from elemta.smtp.content import Chunk, ChunkedContent, DataContent
from elemta.smtp.events import Answer, Close, Event, Question, Refuse, Replied, TransactionEnded
from elemta.smtp.facts import SessionFacts, Transaction
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

    def __init__(self, settings: SessionSettings, facts: SessionFacts) -> None:
        self.settings = settings
        self.facts = facts
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
        self._errors = 0
        self._junk = 0
        self._refusals = 0

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
        self.output.append(reply.encode())
        self.events.append(Replied(verb, reply, reason))

    def fault(self, verb: str, reply: Reply, reason: str = "") -> None:
        """Answer a protocol error of the client."""
        self._errors += 1
        if self._errors > self.settings.max_errors:
            self.say_goodbye(verb, replies.TOO_MANY_ERRORS, "too many errors")
        else:
            self.say(verb, reply, reason)

    def decline(self, verb: str, reply: Reply, reason: str = "") -> None:
        """Answer something that was well-formed and is refused."""
        self._refusals += 1
        if self._refusals > self.settings.max_refusals:
            self.say_goodbye(verb, replies.TOO_MANY_REFUSALS, "too many refusals")
        else:
            self.say(verb, reply, reason)

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
            self.decline(verb, answer.reply, answer.reason)

    def say_goodbye(self, verb: str, reply: Reply, reason: str, *, in_message: bool = False) -> None:
        self.say(verb, reply, reason)
        self.close(reason, in_message=in_message)

    def close(self, reason: str, *, in_message: bool = False) -> None:
        """End the transaction and the conversation; nothing is said or read any more."""
        if self.closed:
            return
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
            self.events.append(TransactionEnded(transaction, accepted))
        if accepted:
            self._errors = self._junk = self._refusals = 0

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
