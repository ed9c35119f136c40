"""A conversation that no client holds: the same session and the same backend, without a transport.

What is asked of the spool, the limits and the policies is up to the :class:`ListenerContext` that it gets.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from elemta.auth.names import counted_name
from elemta.deferred_value import MaybeDeferred, Steps, run, value_of
from elemta.net.backend import SessionBackend
from elemta.net.context import ListenerContext
from elemta.policy import ChainDecision, Disconnect, PolicySession
from elemta.policy.verdicts import reply_of
from elemta.smtp.events import (
    Authenticated,
    Close,
    CredentialsQuestion,
    Event,
    MessageData,
    MessageStarted,
    PauseQuestion,
    Proceed,
    Question,
    Refuse,
    Replied,
    Response,
    StartTLS,
    TransactionEnded,
)
from elemta.smtp.reply import Reply
from elemta.smtp.session import ServerSession
from elemta.smtp.session_info import SessionInfo, TLSInfo, TransactionInfo

_PIECE = 64 * 1024

TLS = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
"""What a client with TLS is taken to have negotiated."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One command and its replies, and why the server answered as it did where it said so."""

    command: str
    replies: tuple[Reply, ...]
    reasons: tuple[str, ...] = ()
    closed: bool = False

    @property
    def reply(self) -> Reply | None:
        """The last reply; None where the server says nothing."""
        return self.replies[-1] if self.replies else None

    @property
    def accepted(self) -> bool:
        """Whether the client may go on."""
        return not self.closed and bool(self.replies) and all(each.code < 400 for each in self.replies)


class _ExplainedBackend(SessionBackend):
    """A backend that believes the password of every user, once the policies let it be looked at."""

    #: Whether the last message was accepted and would be stored nowhere.
    discarded = False

    @property
    def policies(self) -> PolicySession:
        """Those of this session."""
        return self._policies

    def transaction_ended(self, transaction: TransactionInfo, accepted: bool) -> None:
        self.discarded = accepted and (
            self._policies.discarded_by(transaction) is not None
            or (transaction.dropped > 0 and not transaction.recipients)
        )
        super().transaction_ended(transaction, accepted)

    def answer(self, question: Question) -> MaybeDeferred[Response]:
        if isinstance(question, CredentialsQuestion):
            return run(self._log_in(question.username))
        return super().answer(question)

    def _log_in(self, username: str) -> Steps[Response]:
        decision: ChainDecision = yield self._policies.ask_login(counted_name(username))
        reply = reply_of(decision.verdict)
        if reply is None:
            return Authenticated(username)
        closes = isinstance(decision.verdict, Disconnect)
        return Refuse(reply, close=closes, reason=f"policy {decision.policy}")


class ExplainedConversation:
    """One client's conversation. Each method returns what the server answers.

    No pause is waited for. ``end`` is to be called at the end, whatever happened.
    """

    def __init__(self, context: ListenerContext, facts: SessionInfo) -> None:
        if context.implicit_tls:
            facts.tls = TLS
        self.facts = facts
        self._session = ServerSession(context.session, facts)
        self._backend = _ExplainedBackend(context, facts, health_check=False)
        self._replies: list[Replied] = []
        self._closed = False

    @property
    def transaction(self) -> TransactionInfo | None:
        """The transaction under way."""
        return self._session.transaction

    @property
    def accepted_recipients(self) -> int:
        """How many recipients of the transaction under way were accepted."""
        transaction = self.transaction
        return 0 if transaction is None else len(transaction.recipients) + transaction.dropped

    @property
    def held(self) -> str | None:
        """Why a message of the transaction under way would be held, as far as that is known."""
        transaction = self.transaction
        return None if transaction is None else self._backend.policies.hold_reason(transaction)

    @property
    def discarded(self) -> bool:
        """Whether the message was accepted and would be stored nowhere."""
        return self._backend.discarded

    async def connect(self) -> Exchange:
        """The client connects."""
        return await self._exchange("", self._session.open())

    async def say(self, command: str, shown: str = "") -> Exchange:
        """The client sends a command; it stands as ``shown`` in what is returned."""
        line = command.encode("utf-8", "surrogateescape") + b"\r\n"
        return await self._exchange(shown or command, self._session.receive(line))

    async def start_tls(self) -> Exchange:
        """The client starts TLS, where that is offered."""
        exchange = await self.say("STARTTLS")
        if exchange.accepted:
            await self._run(self._session.tls_started(TLS))
        return exchange

    async def log_in(self, user: str) -> Exchange:
        """The client logs in with the right password."""
        response = base64.b64encode(f"\0{user}\0explained".encode()).decode("ascii")
        return await self.say(f"AUTH PLAIN {response}", "AUTH PLAIN …")

    async def send(self, content: Iterable[bytes]) -> Exchange:
        """The client sends the message behind 354, in pieces that are dot-stuffed, and the end of data."""
        events: list[Event] = []
        for piece in content:
            for start in range(0, len(piece), _PIECE):
                await self._run(self._session.receive(piece[start : start + _PIECE]))
        return await self._exchange(".", events)

    def end(self) -> None:
        """The client is gone."""
        for event in self._session.lost():
            if isinstance(event, TransactionEnded):
                self._backend.transaction_ended(event.transaction, event.accepted)
        self._backend.disconnected()

    async def _exchange(self, command: str, events: list[Event]) -> Exchange:
        await self._run(events)
        replied, self._replies = self._replies, []
        reasons = tuple(each.reason for each in replied if each.reason)
        return Exchange(command, tuple(each.reply for each in replied), reasons, self._closed)

    async def _run(self, events: list[Event]) -> None:
        session = self._session
        while True:
            question = await self._act_on(events)
            session.take_output()
            if question is None:
                if not session.held_up:
                    return
                events = session.go_on()
            elif isinstance(question, PauseQuestion):
                events = session.answer(Proceed())
            else:
                events = session.answer(await value_of(self._backend.answer(question)))

    async def _act_on(self, events: list[Event]) -> Question | None:
        for event in events:
            if isinstance(event, Question):
                return event
            if isinstance(event, Replied):
                self._replies.append(event)
            elif isinstance(event, MessageStarted):
                self._backend.message_started(event.transaction)
            elif isinstance(event, MessageData):
                behind = self._backend.message_data(event.data)
                if behind is not None:
                    await behind.when_drained()
            elif isinstance(event, TransactionEnded):
                self._backend.transaction_ended(event.transaction, event.accepted)
            elif isinstance(event, Close):
                self._closed = True
            elif isinstance(event, StartTLS):
                pass  # The handshake is the caller's.
        return None
