"""What a server session says to its shell (facts, instructions, questions) and what it is answered.

The shell gives bytes to the session and gets events back, in order. A :class:`Question` is always
the last event of a batch: the session does nothing more, and keeps what the client pipelined
behind it, until the shell has given exactly one answer.
"""

from __future__ import annotations

from typing import ClassVar

from elemta.envelope import Recipient
from elemta.smtp.leniency import Leniency
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import SessionInfo, TransactionInfo
from elemta.stage import Stage as Stage  # noqa: PLC0414 - part of what is said here
from elemta.value_type import value_type


@value_type
class Event:
    """Anything that a session tells its shell."""


@value_type
class Replied(Event):
    """A fact: this reply was put into the outgoing bytes.

    ``verb`` is the command it answers in upper case, ``""`` for the greeting, ``"?"`` for an unknown
    command (a client never chooses a metric's label), ``"."`` for the end of a message.
    ``reason`` is for the log where the reply's text is generic.
    """

    verb: str
    reply: Reply
    reason: str = ""


@value_type
class Forgave(Event):
    """A fact: something outside of the grammar was taken for what it can only mean.

    ``text`` is what the client wrote behind MAIL, RCPT, HELO and EHLO; it is empty elsewhere.
    """

    verb: str
    kinds: tuple[Leniency, ...]
    text: str = ""


@value_type
class MessageStarted(Event):
    """A fact: the client may send the message now (354 was sent, or the first BDAT accepted)."""

    transaction: TransactionInfo


@value_type
class MessageData(Event):
    """A fact: the next octets of the message, dot-stuffing removed, line endings CRLF."""

    data: bytes


@value_type
class TransactionEnded(Event):
    """A fact: the transaction is over. ``accepted`` only after the answer was :class:`Queued`.

    When it is false and the message had started, the shell throws away what it had written of it.
    """

    transaction: TransactionInfo
    accepted: bool


@value_type
class StartTLS(Event):
    """An instruction: send the outgoing bytes, start TLS, then call ``tls_started``."""


@value_type
class Close(Event):
    """An instruction: send the outgoing bytes and close. ``reason`` is for the log.

    ``in_message``: the client is sending a message and does not look for a reply yet, so what it still
    sends should be taken and thrown away for a while: a reset could destroy the reply.
    """

    reason: str
    in_message: bool = False


@value_type
class Question(Event):
    """The session waits for one answer."""

    session: SessionInfo


@value_type
class CredentialsQuestion(Question):
    """Are these credentials good? Answered by :class:`Authenticated` or :class:`Refuse`."""

    username: str
    password: bytes

    def __repr__(self) -> str:
        return "CredentialsQuestion(...)"


@value_type
class PauseQuestion(Question):
    """Are so many seconds over? Answered by :class:`Proceed` when they are."""

    seconds: float


@value_type
class StageQuestion(Question):
    """What do the policies of :attr:`stage` say? Answered by :class:`Proceed` or :class:`Refuse`."""

    stage: ClassVar[Stage]


@value_type
class ConnectQuestion(StageQuestion):
    stage = Stage.CONNECT


@value_type
class HeloQuestion(StageQuestion):
    stage = Stage.HELO


@value_type
class AuthQuestion(StageQuestion):
    """The credentials were good and ``session.user`` is set; 235 was not sent yet."""

    stage = Stage.AUTH


@value_type
class MailQuestion(StageQuestion):
    stage = Stage.MAIL
    transaction: TransactionInfo


@value_type
class RcptQuestion(StageQuestion):
    stage = Stage.RCPT
    transaction: TransactionInfo
    recipient: Recipient


@value_type
class DataQuestion(StageQuestion):
    stage = Stage.DATA
    transaction: TransactionInfo


@value_type
class MessageQuestion(StageQuestion):
    """The whole message was received. Answered by :class:`Queued` once it is durable, or :class:`Refuse`."""

    stage = Stage.MESSAGE
    transaction: TransactionInfo


@value_type
class Response:
    """What the shell answers to a question."""


@value_type
class Proceed(Response):
    """Go on: the session sends its own positive reply."""


@value_type
class Refuse(Response):
    """Send this reply instead; ``close`` ends the connection after it.

    ``by_limit``: a limit was exceeded, so the reply says nothing of what was asked for.
    ``of_refused_client``: it was a limit of refusals, and the session counts this as a refusal for good.
    """

    reply: Reply
    close: bool = False
    reason: str = ""
    by_limit: bool = False
    of_refused_client: bool = False


@value_type
class Authenticated(Response):
    """The credentials are those of ``user``."""

    user: str


@value_type
class Queued(Response):
    """The message is on stable storage under this id."""

    queue_id: str
