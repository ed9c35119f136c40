"""Plays a conversation, written down as a transcript, against a server session.

``C: text`` is a line from the client, CRLF added; ``C> text`` octets with Python escapes and nothing added.
``S: text`` is a line of the server, compared exactly, or as a beginning where it ends in ``...``.
``X:`` the server closes. ``T:`` the TLS handshake is done. ``Q:`` nothing is said yet.
Client lines that follow each other are pipelined: they are sent as one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from elemta.smtp.events import (
    Authenticated,
    Close,
    CredentialsQuestion,
    Event,
    MessageData,
    MessageQuestion,
    MessageStarted,
    Proceed,
    Question,
    Queued,
    Replied,
    Response,
    StartTLS,
    TransactionEnded,
)
from elemta.smtp.session import ServerSession, SessionSettings
from elemta.smtp.session_info import SessionInfo, TLSInfo

Answering = Callable[[Question], Response]
Splitting = Callable[[bytes], Iterator[bytes]]

TLS = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")


def settings(**changes: Any) -> SessionSettings:
    """What the tests' server offers, changed as told."""
    values: dict[str, Any] = {
        "hostname": "mx.test",
        "max_message_size": 1000,
        "max_recipients": 5,
        "normalize_newlines": False,
        "starttls": True,
        "auth": True,
        "auth_needs_tls": True,
        "require_auth": False,
        "postmaster_domain": "home.test",
    }
    return SessionSettings(**(values | changes))


def proceed(question: Question) -> Response:
    """Everything is fine."""
    if isinstance(question, MessageQuestion):
        return Queued("Q1")
    if isinstance(question, CredentialsQuestion):
        return Authenticated(question.username)
    return Proceed()


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


def in_pieces(sizes: Sequence[int]) -> Splitting:
    """Pieces of these sizes, again and again."""

    def cut(data: bytes) -> Iterator[bytes]:
        at = turn = 0
        while at < len(data):
            size = sizes[turn % len(sizes)]
            yield data[at : at + size]
            at, turn = at + size, turn + 1

    return cut


@dataclass
class Conversation:
    """A session and what it has said. ``late``: questions are answered only when all of a piece was sent."""

    session: ServerSession
    answering: Answering = proceed
    splitting: Splitting = whole
    late: bool = False
    events: list[Event] = field(default_factory=list)
    output: bytes = b""

    @classmethod
    def begin(
        cls,
        answering: Answering = proceed,
        splitting: Splitting = whole,
        late: bool = False,
        tls: TLSInfo | None = None,
        **changes: Any,
    ) -> Conversation:
        facts = SessionInfo("S1", ip_address("192.0.2.1"), 40000, "mx", tls=tls)
        conversation = cls(ServerSession(settings(**changes), facts), answering, splitting, late)
        conversation.take(conversation.session.open())
        conversation.settle()
        return conversation

    def send(self, data: bytes) -> None:
        for piece in self.splitting(data):
            self.take(self.session.receive(piece))
            if not self.late:
                self.settle()
        self.settle()

    def take(self, events: list[Event]) -> None:
        assert not any(isinstance(event, Question) for event in events[:-1])
        self.events += events
        self.output += self.session.take_output()
        while self.session.held_up:
            self.events += self.session.go_on()
            self.output += self.session.take_output()

    def settle(self) -> None:
        """Answer until there is no question."""
        while (question := self.session.question) is not None:
            self.take(self.session.answer(self.answering(question)))

    def said(self) -> str:
        """What the server has said since the last call."""
        said, self.output = self.output.decode("ascii"), b""
        return said

    @property
    def message(self) -> bytes:
        """All message content there was."""
        return b"".join(event.data for event in self.events if isinstance(event, MessageData))

    @property
    def closed(self) -> bool:
        return any(isinstance(event, Close) for event in self.events)

    def facts_told(self) -> list[object]:
        """The facts, in a shape that does not depend on how the input was cut.

        Content is reported at once, before the question about it; what of a refused message came before its
        flaw was found does not matter.
        """
        told: list[object] = []
        content = b""
        for event in self.events:
            if isinstance(event, MessageData):
                content += event.data
            elif isinstance(event, MessageQuestion):
                told += [content, ("asked", "MessageQuestion")]
                content = b""
            elif isinstance(event, Replied):
                told.append((event.verb, str(event.reply)))
            elif isinstance(event, TransactionEnded):
                told.append(("ended", event.accepted, str(event.transaction.sender), event.transaction.size))
                content = b""
            elif isinstance(event, (MessageStarted, StartTLS, Close)):
                told.append(type(event).__name__)
            else:
                told.append(("asked", type(event).__name__))
        return told


def play(script: str, conversation: Conversation) -> Conversation:
    """Play ``script``, which begins with the greeting, and compare every word."""
    sending, mark = b"", ""
    for number, line in enumerate(script.strip().splitlines(), 1):
        if not line.strip():
            continue
        mark, text = line.lstrip()[:2], line.lstrip()[3:]
        if mark == "C:":
            sending += text.encode() + b"\r\n"
            continue
        if mark == "C>":
            sending += text.encode("latin-1").decode("unicode_escape").encode("latin-1")
            continue
        if sending:
            conversation.send(sending)
            sending = b""
        if mark == "S:":
            said, _, rest = conversation.output.partition(b"\r\n")
            conversation.output = rest
            told = said.decode("ascii")
            matches = told.startswith(text[:-3]) if text.endswith("...") else told == text
            assert matches, f"line {number}: expected {text!r}, the server said {told!r} (then {rest!r})"
        elif mark == "X:":
            assert not conversation.output, f"line {number}: {conversation.output!r}"
            assert conversation.closed, f"line {number}: the connection is still open"
        elif mark == "T:":
            conversation.take(conversation.session.tls_started(TLS))
        elif mark == "Q:":
            assert not conversation.output, f"line {number}: {conversation.output!r}"
        else:
            raise ValueError(f"line {number} has no mark: {line!r}")
    if sending:
        conversation.send(sending)
    assert not conversation.output, f"the server also said {conversation.output!r}"
    assert conversation.closed == conversation.session.closed == (mark == "X:")
    return conversation


def converse(script: str, answering: Answering = proceed, **changes: Any) -> Conversation:
    """Play ``script`` whole, with late answers, and byte by byte, with equal results; return the first."""
    first = play(script, Conversation.begin(answering, whole, **changes))
    late = play(script, Conversation.begin(answering, whole, late=True, **changes))
    bytewise = play(script, Conversation.begin(answering, byte_by_byte, **changes))
    assert first.facts_told() == late.facts_told()
    assert first.facts_told() == bytewise.facts_told()
    return first


GREETING = "S: 220 mx.test ESMTP Elemta\n"
HELLO = GREETING + "C: HELO client.test\nS: 250 mx.test\n"
SENDER = HELLO + "C: MAIL FROM:<a@b.test>\nS: 250 2.1.0 Sender OK\n"
ENVELOPE = SENDER + "C: RCPT TO:<c@home.test>\nS: 250 2.1.5 Recipient OK\n"
DATA = ENVELOPE + "C: DATA\nS: 354 Start mail input; end with <CRLF>.<CRLF>\n"
QUEUED = "S: 250 2.0.0 Message accepted for delivery; queued as Q1\n"
