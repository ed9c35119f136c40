"""What MAIL, RCPT, DATA and BDAT check, ask and do: a transaction from its beginning to its end."""

from __future__ import annotations

from functools import partial

from elemta.envelope import Recipient
from elemta.smtp import replies
from elemta.smtp.content import Chunk, ChunkedContent, DataContent
from elemta.smtp.events import (
    DataQuestion,
    MailQuestion,
    MessageData,
    MessageQuestion,
    MessageStarted,
    Proceed,
    Queued,
    RcptQuestion,
    Refuse,
    Response,
)
from elemta.smtp.grammar import BdatCommand, MailCommand
from elemta.smtp.leniency import Leniency, forgive
from elemta.smtp.memory import EnvelopeMemory, Shortage, memory_of_mail, memory_of_recipient
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import TransactionInfo
from elemta.smtp.session_state import ExpectedInput, SessionState

#: The verb under which the reply to the end of DATA is reported.
END_OF_DATA = "."

_PROCEED = Proceed()


def _current(session: SessionState) -> TransactionInfo:
    transaction = session.transaction
    if transaction is None:
        raise RuntimeError("no transaction is under way")
    return transaction


# MAIL


def check_mail(session: SessionState, command: MailCommand) -> Reply | None:
    # RFC 4954 §6, RFC 6409 §4.3
    if session.settings.require_auth and session.facts.user is None:
        return replies.AUTH_REQUIRED
    # RFC 1870 §6.1
    if (command.parameters.size or 0) > session.settings.max_message_size:
        return replies.MESSAGE_TOO_BIG
    return None


def mail_rejected(session: SessionState, _command: MailCommand | None, reply: Reply) -> None:
    session.reject_command("MAIL", reply)
    if session.transaction is None:
        session.transaction_failed = True


def ask_mail(session: SessionState, command: MailCommand) -> MailQuestion:
    """The transaction begins with the question: all that are asked about it learn of its end."""
    sender, parameters = command.sender, command.parameters
    memory = EnvelopeMemory(session.envelopes, session.settings.max_envelope)
    # No MAIL takes more than a small envelope, and that is always free.
    memory.take(memory_of_mail(sender, parameters))
    transaction = TransactionInfo(
        sender,
        parameters,
        memory=memory,
        size=parameters.size or 0,
        max_recipients=session.settings.max_recipients,
    )
    session.transaction = transaction
    session.transaction_failed = False
    return MailQuestion(session.facts, transaction)


def sender_accepted(session: SessionState, _command: MailCommand) -> None:
    session.reply("MAIL", replies.SENDER_OK)


def sender_refused(session: SessionState, _command: MailCommand, answer: Refuse) -> None:
    session.refuse("MAIL", answer)
    _fail(session)


# RCPT


def check_rcpt(session: SessionState, recipient: Recipient) -> Reply | None:
    transaction = session.transaction
    assert transaction is not None  # noqa: S101 - the table of commands says so
    # RFC 6531 §3.5
    if not transaction.parameters.smtputf8 and recipient.address.needs_smtputf8:
        return replies.NEEDS_SMTPUTF8
    # RFC 5321 §4.5.3.1.10
    if len(transaction.recipients) + transaction.dropped >= session.settings.max_recipients:
        return replies.TOO_MANY_RECIPIENTS
    octets = memory_of_recipient(recipient)
    shortage = transaction.memory.shortage(octets)
    if shortage is not None:
        return replies.ENVELOPE_FULL if shortage is Shortage.ENVELOPE else replies.ENVELOPES_FULL
    # It is counted while policies are asked about it.
    transaction.memory.take(octets)
    return None


def ask_rcpt(session: SessionState, recipient: Recipient) -> RcptQuestion:
    transaction = session.transaction
    assert transaction is not None  # noqa: S101 - as in check_rcpt
    transaction.replacement = None
    return RcptQuestion(session.facts, transaction, recipient)


def recipient_accepted(session: SessionState, recipient: Recipient) -> None:
    transaction = session.transaction
    assert transaction is not None  # noqa: S101 - a session with an open question keeps it
    if transaction.replacement is None:
        transaction.recipients.append(recipient)
    else:
        _replace_recipient(transaction, recipient)
    session.reply("RCPT", replies.RECIPIENT_OK)


def _replace_recipient(transaction: TransactionInfo, recipient: Recipient) -> None:
    """The recipient is accepted, and becomes others, or nothing."""
    replacement, transaction.replacement = transaction.replacement or (), None
    transaction.memory.give_back(memory_of_recipient(recipient))
    for each in replacement:
        transaction.memory.take(memory_of_recipient(each))
    transaction.recipients.extend(replacement)
    transaction.dropped += not replacement


def recipient_refused(session: SessionState, recipient: Recipient, answer: Refuse) -> None:
    _current(session).memory.give_back(memory_of_recipient(recipient))
    session.refuse("RCPT", answer)


# DATA


def ask_data(session: SessionState, _arguments: object) -> DataQuestion:
    return DataQuestion(session.facts, _current(session))


def start_data(session: SessionState, _arguments: object) -> None:
    transaction = session.transaction
    assert transaction is not None  # noqa: S101 - as in recipient_accepted
    session.message = DataContent(transaction, session.settings, normalize=session.normalizes_newlines)
    session.reading = ExpectedInput.DATA
    session.reply("DATA", replies.START_MAIL_INPUT)
    session.events.append(MessageStarted(transaction))


def data_refused(session: SessionState, _arguments: object, answer: Refuse) -> None:
    session.refuse("DATA", answer)
    _fail(session)


def take_data(session: SessionState, block: bytes) -> int:
    """Take octets of the message; returns how many of them were used."""
    message = session.message
    if not isinstance(message, DataContent):
        raise RuntimeError("no message of DATA is under way")  # noqa: TRY004 - a state, not a type
    content, used = message.feed(block)
    if content:
        session.events.append(MessageData(content))
    if message.refusal is None:
        if used is None:
            return len(block)
        session.reading = ExpectedInput.COMMAND
        _message_received(session, END_OF_DATA)
        return used
    if message.end_is_unknown:
        # RFC 5321 §4.1.1.4: it is no end, and a client that means it for one would wait for our timeout.
        session.reply_and_close(
            END_OF_DATA, replies.BARE_NEWLINE_IN_MESSAGE, "a lone dot and a bare CR or LF", in_message=True
        )
    elif message.far_too_large:
        refusal = message.refusal
        session.reply_and_close(END_OF_DATA, refusal, "message far beyond the size limit", in_message=True)
    elif used is not None:
        session.reading = ExpectedInput.COMMAND
        _message_received(session, END_OF_DATA)
    return len(block) if used is None else used


# BDAT


def start_chunk(session: SessionState, command: BdatCommand) -> None:
    """A chunk follows; at the first one the policies are asked, while it waits in the input."""
    if command.size is None:
        chunk_rejected(session, command, replies.BDAT_SYNTAX)
    elif session.message is None:
        question = ask_data(session, command)
        if question.stage in session.settings.unasked:
            _first_chunk_judged(session, command, _PROCEED)
        else:
            session.ask(question, partial(_first_chunk_judged, session, command))
    else:
        _read_chunk(session, Chunk(command.size, command.last))


def chunk_rejected(session: SessionState, command: BdatCommand, reply: Reply) -> None:
    """A chunk that can't be used comes all the same: its octets must not be read as commands."""
    if command.size is None:
        end_at_unreadable_chunk(session)
    else:
        _read_chunk(session, Chunk(command.size, command.last, refusal=reply))


def end_at_unreadable_chunk(session: SessionState) -> None:
    """Answer a line that may be a BDAT command and says no size, and end the session.

    RFC 3030 §2 has the chunk follow at once: where it ends is not known, so nothing behind the line is read.
    """
    reason = "where this chunk ends is not known"
    session.reply_and_close("BDAT", replies.BDAT_SYNTAX, reason, in_message=True)


def take_chunk(session: SessionState, block: bytes) -> int:
    """Take octets of the chunk; returns how many of them were used."""
    chunk = session.chunk
    if chunk is None:
        raise RuntimeError("no chunk is under way")
    octets = block[: chunk.left] if len(block) > chunk.left else block
    chunk.left -= len(octets)
    if chunk.refusal is None:
        _hand_on(session, octets)
    if not chunk.left:
        _chunk_received(session, chunk)
    return len(octets)


def _first_chunk_judged(session: SessionState, command: BdatCommand, answer: Response) -> None:
    size = command.size or 0
    if isinstance(answer, Proceed):
        transaction = _current(session)
        session.message = ChunkedContent(transaction, session.settings, normalize=session.normalizes_newlines)
        session.events.append(MessageStarted(transaction))
        _read_chunk(session, Chunk(size, command.last))
    elif isinstance(answer, Refuse):
        _read_chunk(session, Chunk(size, command.last, refusal=answer))
    else:
        raise TypeError(f"the policies' word is Proceed or Refuse, not {answer!r}")


def _read_chunk(session: SessionState, chunk: Chunk) -> None:
    settings = session.settings
    message = session.message
    if chunk.size > settings.max_message_size + settings.oversize_slack:
        # Nothing waits for its end
        session.reply_and_close(
            "BDAT", replies.MESSAGE_TOO_BIG, "chunk far beyond the size limit", in_message=True
        )
    elif isinstance(message, ChunkedContent) and not message.allows(chunk):
        session.reply_and_close("BDAT", replies.TOO_MANY_CHUNKS, "too many small chunks")
    else:
        session.chunk = chunk
        session.reading = ExpectedInput.CHUNK


def _hand_on(session: SessionState, octets: bytes) -> None:
    message = session.message
    if isinstance(message, ChunkedContent):
        content = message.feed(octets)
        if content:
            session.events.append(MessageData(content))


def _chunk_received(session: SessionState, chunk: Chunk) -> None:
    session.chunk = None
    session.reading = ExpectedInput.COMMAND
    if chunk.refusal is not None:
        _refuse_chunk(session, chunk.refusal)
        return
    message = session.message
    if not isinstance(message, ChunkedContent):
        raise RuntimeError("no message of BDAT is under way")  # noqa: TRY004 - a state, not a type
    if chunk.last:
        rest = message.finish()
        if rest:
            session.events.append(MessageData(rest))
        _message_received(session, "BDAT")
    elif message.refusal is not None:
        session.reject("BDAT", message.refusal)
        _fail(session)
    else:
        session.reply("BDAT", replies.chunk_received(chunk.size))


def _refuse_chunk(session: SessionState, refusal: Reply | Refuse) -> None:
    if isinstance(refusal, Refuse):
        session.refuse("BDAT", refusal)
        _fail(session)
    else:
        session.reject_command("BDAT", refusal)


# The end


def _message_received(session: SessionState, verb: str) -> None:
    message = session.message
    if message is not None and message.refusal is not None:
        session.reject(verb, message.refusal)
        _fail(session)
        return
    if message is not None and message.was_normalized and not session.settings.normalize_newlines:
        forgive(session.kinds, Leniency.BARE_NEWLINE)
        session.report_forgiven(verb)
    question = MessageQuestion(session.facts, _current(session))
    session.ask(question, partial(_message_judged, session, verb))


def _message_judged(session: SessionState, verb: str, answer: Response) -> None:
    if isinstance(answer, Queued):
        session.reply(verb, replies.queued(answer.queue_id))
        session.end_transaction(accepted=True)
    elif isinstance(answer, Refuse):
        session.refuse(verb, answer)
        _fail(session)
    else:
        raise TypeError(f"a message is answered by Queued or Refuse, not {answer!r}")


def _fail(session: SessionState) -> None:
    session.end_transaction(accepted=False)
    session.transaction_failed = True
