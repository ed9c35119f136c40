"""What MAIL, RCPT, DATA and BDAT check, ask and do: a transaction from its beginning to its end."""

from __future__ import annotations

from functools import partial

from elemta.envelope import Recipient
from elemta.smtp import replies
from elemta.smtp.content import Chunk, ChunkedContent, DataContent
from elemta.smtp.dialogue import Dialogue, Reading
from elemta.smtp.events import (
    Answer,
    DataQuestion,
    MailQuestion,
    MessageData,
    MessageQuestion,
    MessageStarted,
    Proceed,
    Queued,
    RcptQuestion,
    Refuse,
)
from elemta.smtp.facts import Transaction
from elemta.smtp.grammar import BdatCommand, MailCommand
from elemta.smtp.memory import EnvelopeMemory, Shortage, memory_of_mail, memory_of_recipient
from elemta.smtp.reply import Reply

#: The verb under which the reply to the end of DATA is reported.
END_OF_DATA = "."


def _current(dialogue: Dialogue) -> Transaction:
    transaction = dialogue.transaction
    if transaction is None:
        raise RuntimeError("no transaction is under way")
    return transaction


# MAIL


def check_mail(dialogue: Dialogue, command: MailCommand) -> Reply | None:
    # RFC 4954 §6, RFC 6409 §4.3
    if dialogue.settings.require_auth and dialogue.facts.user is None:
        return replies.AUTH_REQUIRED
    # RFC 1870 §6.1
    if (command.parameters.size or 0) > dialogue.settings.max_message_size:
        return replies.MESSAGE_TOO_BIG
    if not dialogue.envelopes.has_room_for(0, memory_of_mail(command.sender, command.parameters)):
        return replies.ENVELOPES_FULL
    return None


def mail_rebuffed(dialogue: Dialogue, command: MailCommand | None, reply: Reply) -> None:  # noqa: ARG001
    dialogue.rebuff("MAIL", reply)
    if dialogue.transaction is None:
        dialogue.transaction_failed = True


def ask_mail(dialogue: Dialogue, command: MailCommand) -> MailQuestion:
    """The transaction begins with the question: all that are asked about it learn of its end."""
    sender, parameters = command.sender, command.parameters
    memory = EnvelopeMemory(dialogue.envelopes, dialogue.settings.max_envelope)
    memory.take(memory_of_mail(sender, parameters))
    transaction = Transaction(sender, parameters, memory=memory, size=parameters.size or 0)
    dialogue.transaction = transaction
    dialogue.transaction_failed = False
    return MailQuestion(dialogue.facts, transaction)


def sender_accepted(dialogue: Dialogue, command: MailCommand) -> None:  # noqa: ARG001
    dialogue.say("MAIL", replies.SENDER_OK)


def sender_refused(dialogue: Dialogue, command: MailCommand, answer: Refuse) -> None:  # noqa: ARG001
    dialogue.refuse("MAIL", answer)
    _fail(dialogue)


# RCPT


def check_rcpt(dialogue: Dialogue, recipient: Recipient) -> Reply | None:
    transaction = _current(dialogue)
    # RFC 6531 §3.5
    if recipient.address.needs_smtputf8 and not transaction.parameters.smtputf8:
        return replies.NEEDS_SMTPUTF8
    # RFC 5321 §4.5.3.1.10
    if len(transaction.recipients) >= dialogue.settings.max_recipients:
        return replies.TOO_MANY_RECIPIENTS
    octets = memory_of_recipient(recipient)
    shortage = transaction.memory.shortage(octets)
    if shortage is not None:
        return replies.ENVELOPE_FULL if shortage is Shortage.ENVELOPE else replies.ENVELOPES_FULL
    # It is counted while policies are asked about it.
    transaction.memory.take(octets)
    return None


def ask_rcpt(dialogue: Dialogue, recipient: Recipient) -> RcptQuestion:
    return RcptQuestion(dialogue.facts, _current(dialogue), recipient)


def recipient_accepted(dialogue: Dialogue, recipient: Recipient) -> None:
    _current(dialogue).recipients.append(recipient)
    dialogue.say("RCPT", replies.RECIPIENT_OK)


def recipient_refused(dialogue: Dialogue, recipient: Recipient, answer: Refuse) -> None:
    _current(dialogue).memory.give_back(memory_of_recipient(recipient))
    dialogue.refuse("RCPT", answer)


# DATA


def ask_data(dialogue: Dialogue, arguments: object) -> DataQuestion:  # noqa: ARG001
    return DataQuestion(dialogue.facts, _current(dialogue))


def start_data(dialogue: Dialogue, arguments: object) -> None:  # noqa: ARG001
    transaction = _current(dialogue)
    dialogue.message = DataContent(transaction, dialogue.settings)
    dialogue.reading = Reading.DATA
    dialogue.say("DATA", replies.START_MAIL_INPUT)
    dialogue.events.append(MessageStarted(transaction))


def data_refused(dialogue: Dialogue, arguments: object, answer: Refuse) -> None:  # noqa: ARG001
    dialogue.refuse("DATA", answer)
    _fail(dialogue)


def take_data(dialogue: Dialogue, block: bytes) -> int:
    """Take octets of the message; returns how many of them were used."""
    message = dialogue.message
    if not isinstance(message, DataContent):
        raise RuntimeError("no message of DATA is under way")  # noqa: TRY004 - a state, not a type
    content, used = message.feed(block)
    if content:
        dialogue.events.append(MessageData(content))
    if message.out_of_patience:
        refusal = message.refusal or replies.MESSAGE_TOO_BIG
        dialogue.say_goodbye(END_OF_DATA, refusal, "message far beyond the size limit", in_message=True)
    elif used is not None:
        dialogue.reading = Reading.COMMAND
        _message_received(dialogue, END_OF_DATA)
    return len(block) if used is None else used


# BDAT


def start_chunk(dialogue: Dialogue, command: BdatCommand) -> None:
    """A chunk follows; at the first one the policies are asked, while it waits in the input."""
    if command.size is None:
        chunk_rebuffed(dialogue, command, replies.BDAT_SYNTAX)
    elif dialogue.message is None:
        transaction = _current(dialogue)
        question = DataQuestion(dialogue.facts, transaction)
        dialogue.ask(question, partial(_first_chunk_judged, dialogue, command))
    else:
        _read_chunk(dialogue, Chunk(command.size, command.last))


def chunk_rebuffed(dialogue: Dialogue, command: BdatCommand, reply: Reply) -> None:
    """A chunk that can't be used comes all the same: its octets must not be read as commands."""
    if command.size is None:
        end_at_unreadable_chunk(dialogue)
    else:
        _read_chunk(dialogue, Chunk(command.size, command.last, refusal=reply))


def end_at_unreadable_chunk(dialogue: Dialogue) -> None:
    """Answer a line that may be a BDAT command and says no size, and end the session.

    RFC 3030 §2 has the chunk follow at once: where it ends is not known, so nothing behind the line is read.
    """
    reason = "where this chunk ends is not known"
    dialogue.say_goodbye("BDAT", replies.BDAT_SYNTAX, reason, in_message=True)


def take_chunk(dialogue: Dialogue, block: bytes) -> int:
    """Take octets of the chunk; returns how many of them were used."""
    chunk = dialogue.chunk
    if chunk is None:
        raise RuntimeError("no chunk is under way")
    octets = block[: chunk.left] if len(block) > chunk.left else block
    chunk.left -= len(octets)
    if chunk.refusal is None:
        _hand_on(dialogue, octets)
    if not chunk.left:
        _chunk_received(dialogue, chunk)
    return len(octets)


def _first_chunk_judged(dialogue: Dialogue, command: BdatCommand, answer: Answer) -> None:
    size = command.size or 0
    if isinstance(answer, Proceed):
        transaction = _current(dialogue)
        dialogue.message = ChunkedContent(transaction, dialogue.settings)
        dialogue.events.append(MessageStarted(transaction))
        _read_chunk(dialogue, Chunk(size, command.last))
    elif isinstance(answer, Refuse):
        _read_chunk(dialogue, Chunk(size, command.last, refusal=answer))
    else:
        raise TypeError(f"the policies' word is Proceed or Refuse, not {answer!r}")


def _read_chunk(dialogue: Dialogue, chunk: Chunk) -> None:
    settings = dialogue.settings
    message = dialogue.message
    if chunk.size > settings.max_message_size + settings.oversize_slack:
        # Nothing waits for its end
        dialogue.say_goodbye(
            "BDAT", replies.MESSAGE_TOO_BIG, "chunk far beyond the size limit", in_message=True
        )
    elif isinstance(message, ChunkedContent) and not message.allows(chunk):
        dialogue.say_goodbye("BDAT", replies.TOO_MANY_CHUNKS, "too many small chunks")
    else:
        dialogue.chunk = chunk
        dialogue.reading = Reading.CHUNK


def _hand_on(dialogue: Dialogue, octets: bytes) -> None:
    message = dialogue.message
    if isinstance(message, ChunkedContent):
        content = message.feed(octets)
        if content:
            dialogue.events.append(MessageData(content))


def _chunk_received(dialogue: Dialogue, chunk: Chunk) -> None:
    dialogue.chunk = None
    dialogue.reading = Reading.COMMAND
    if chunk.refusal is not None:
        _refuse_chunk(dialogue, chunk.refusal)
        return
    message = dialogue.message
    if not isinstance(message, ChunkedContent):
        raise RuntimeError("no message of BDAT is under way")  # noqa: TRY004 - a state, not a type
    if chunk.last:
        rest = message.finish()
        if rest:
            dialogue.events.append(MessageData(rest))
        _message_received(dialogue, "BDAT")
    elif message.refusal is not None:
        dialogue.decline("BDAT", message.refusal)
        _fail(dialogue)
    else:
        dialogue.say("BDAT", replies.chunk_received(chunk.size))


def _refuse_chunk(dialogue: Dialogue, refusal: Reply | Refuse) -> None:
    if isinstance(refusal, Refuse):
        dialogue.refuse("BDAT", refusal)
        _fail(dialogue)
    else:
        dialogue.rebuff("BDAT", refusal)


# The end


def _message_received(dialogue: Dialogue, verb: str) -> None:
    message = dialogue.message
    if message is not None and message.refusal is not None:
        dialogue.decline(verb, message.refusal)
        _fail(dialogue)
        return
    question = MessageQuestion(dialogue.facts, _current(dialogue))
    dialogue.ask(question, partial(_message_judged, dialogue, verb))


def _message_judged(dialogue: Dialogue, verb: str, answer: Answer) -> None:
    if isinstance(answer, Queued):
        dialogue.say(verb, replies.queued(answer.queue_id))
        dialogue.end_transaction(accepted=True)
    elif isinstance(answer, Refuse):
        dialogue.refuse(verb, answer)
        _fail(dialogue)
    else:
        raise TypeError(f"a message is answered by Queued or Refuse, not {answer!r}")


def _fail(dialogue: Dialogue) -> None:
    dialogue.end_transaction(accepted=False)
    dialogue.transaction_failed = True
