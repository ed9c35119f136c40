"""What holds in every conversation, however mad the client, the answers and the cutting."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from elemta.smtp import replies
from elemta.smtp.events import (
    Authenticated,
    Close,
    CredentialsQuestion,
    MailQuestion,
    MessageData,
    MessageQuestion,
    MessageStarted,
    Proceed,
    Question,
    Queued,
    Refuse,
    Replied,
    Response,
    StageQuestion,
    StartTLS,
    TransactionEnded,
)
from elemta.smtp.reply import Reply
from tests.smtp.transcript import TLS, Conversation, in_pieces

PIECES = [
    b"EHLO x\r\n",
    b"HELO x\r\n",
    b"MAIL FROM:<a@b.test>\r\n",
    b"MAIL FROM:<> SIZE=10\r\n",
    b"RCPT TO:<c@home.test>\r\n",
    b"DATA\r\n",
    b"hello\r\n.\r\n",
    b".\r\n",
    b"a\nb",
    b"EHLO Annas PC\n",
    b"\tMAIL  FROM : a..b@c_d.test X=1\r\n",
    b"RCPT TO:root\n",
    b"a\n.\n",
    b"BDAT 4\r\nab\r\n",
    b"BDAT 6 LAST\r\nQUIT\r\n",
    b"BDAT 0 LAST\r\n",
    b"BDAT x\r\n",
    b"BDAT 99999999\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"AUTH PLAIN AGEAYg==\r\n",
    b"AUTH LOGIN\r\n",
    b"YQ==\r\n",
    b"*\r\n",
    b"STARTTLS\r\n",
    b"VRFY x\r\n",
    b"QUIT\r\n",
    b"GET / HTTP/1.1\r\n",
    b"\xff\xfe\r\n",
    b"\0\r\n",
    b"\n",
    b"x" * 3000 + b"\r\n",
    b"",
]
REFUSALS = [
    Refuse(Reply.of(450, "4.7.1", "Later")),
    Refuse(Reply.of(550, "5.7.1", "No")),
    Refuse(Reply.of(421, "4.7.0", "Enough")),
    Refuse(Reply.of(550, "5.7.1", "No"), close=True),
]
REPLY_LINE = re.compile(rb"[2-5][0-5][0-9][ -][ -~]*")


class Answers:
    """Mostly yes; where ``noes`` says so, one of the refusals."""

    def __init__(self, noes: list[int]) -> None:
        self._noes = iter(noes)

    def __call__(self, question: Question) -> Response:
        no = next(self._noes, -1)
        if 0 <= no < len(REFUSALS):
            return REFUSALS[no]
        if isinstance(question, MessageQuestion):
            return Queued("Q1")
        if isinstance(question, CredentialsQuestion):
            return Authenticated(question.username)
        assert isinstance(question, StageQuestion)
        return Proceed()


def check_order(told: Conversation) -> None:
    """Each transaction ends once; content comes only between the start of a message and its question."""
    open_transaction, receiving, closed = None, False, False
    for event in told.events:
        assert not closed, "something was said after the end"
        if isinstance(event, MailQuestion):
            assert open_transaction is None
            open_transaction = event.transaction
        elif isinstance(event, MessageStarted):
            assert event.transaction is open_transaction
            receiving = True
        elif isinstance(event, MessageData):
            assert receiving
            assert event.data
        elif isinstance(event, MessageQuestion):
            assert event.transaction is open_transaction
            receiving = False
        elif isinstance(event, TransactionEnded):
            assert event.transaction is open_transaction
            open_transaction, receiving = None, False
        elif isinstance(event, Close):
            closed = True
    assert open_transaction is told.session.transaction
    assert closed == told.session.closed


@given(
    st.lists(st.sampled_from(PIECES), max_size=40),
    st.lists(st.integers(-1, 12), max_size=40),
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
)
@example(
    [b"EHLO x\r\n", b"STARTTLS\r\n", b"EHLO x\r\n", b"AUTH LOGIN\r\n", b"YQ==\r\n", b"YQ==\r\n"],
    [],
    [100],
    False,
    False,
)
def test_no_conversation_breaks_the_rules(
    pieces: list[bytes], noes: list[int], sizes: list[int], late: bool, normalize: bool
) -> None:
    told = Conversation.begin(
        Answers(noes),
        in_pieces(sizes),
        late,
        normalize_newlines=normalize,
        strict=len(pieces) % 4 == 0,
        may_relay=lambda _: normalize,
        max_errors=5,
        max_idle_commands=8,
        max_refusals=6,
        quick_refusals=2,
    )
    for piece in pieces:
        told.send(piece)
        if told.events and isinstance(told.events[-1], StartTLS):
            told.take(told.session.tls_started(TLS))
    check_order(told)
    assert told.session.question is None
    lines = told.output.split(b"\r\n")
    assert lines.pop() == b""
    assert all(REPLY_LINE.fullmatch(line) for line in lines)
    spoken = b"".join(event.reply.encode() for event in told.events if isinstance(event, Replied))
    assert spoken == told.output
    told.take(told.session.shut(replies.SHUTTING_DOWN, "drain"))
    told.take(told.session.lost())
    check_order(told)
    assert told.session.closed
    assert told.session.transaction is None
    assert told.session.buffered == 0


@given(st.lists(st.binary(max_size=80), max_size=10), st.booleans())
def test_no_octets_at_all_break_the_session(pieces: list[bytes], late: bool) -> None:
    told = Conversation.begin(late=late)
    for piece in pieces:
        told.send(piece)
    check_order(told)
