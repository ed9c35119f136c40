"""One transaction after the other: the envelope, the content by DATA or BDAT, and what the answers mean."""

from __future__ import annotations

from elemta.outcome import Status
from elemta.smtp.client_commands import mail_line, rcpt_line
from elemta.smtp.client_content import ChunkEncoder, ContentEncoder
from elemta.smtp.client_dialogue import ClientDialogue, Command, Phase
from elemta.smtp.client_events import ContentWanted, Extent, Ready
from elemta.smtp.client_results import TransactionResults
from elemta.smtp.reply import Reply

# How many commands may wait for their replies: enough to save the round trips, and far below what
# fills the buffers of both sides and blocks both (RFC 2920 §3.1).
_PIPELINED = 50
# RFC 3030 §4.2: chunks can be pipelined too; so many may be out.
_PIPELINED_CHUNKS = 4


class Mailing:
    """What a client does with a server that is ready."""

    def __init__(self, dialogue: ClientDialogue) -> None:
        self._dialogue = dialogue
        self._encoder: ContentEncoder | ChunkEncoder = ContentEncoder()
        # The server may still hold an envelope that came to no end.
        self._left_open = False

    @property
    def _chunking(self) -> bool:
        return "CHUNKING" in self._dialogue.features

    @property
    def congested(self) -> bool:
        """Whether so many chunks wait for their replies that the next has to wait."""
        most = _PIPELINED_CHUNKS if "PIPELINING" in self._dialogue.features else 1
        return self._dialogue.phase is Phase.CONTENT and len(self._dialogue.sent) >= most

    # The course of a transaction

    def become_ready(self) -> None:
        self._dialogue.phase = Phase.READY
        self._dialogue.events.append(Ready())
        if self._dialogue.results is not None:
            self.open(self._dialogue.results)

    def open(self, results: TransactionResults) -> None:
        """Settle what can't go to this server; send the rest its envelope."""
        dialogue = self._dialogue
        dialogue.phase = Phase.ENVELOPE
        dialogue.extent = Extent.UNANSWERED
        results.refuse_impossible(dialogue.features)
        if results.complete:
            dialogue.extent = Extent.ANSWERED
        else:
            self._queue_envelope(results)
        self.advance()

    def _queue_envelope(self, results: TransactionResults) -> None:
        transaction, pending = results.transaction, results.pending
        features, waiting = self._dialogue.features, self._dialogue.waiting
        recipients = [transaction.recipients[index] for index in pending]
        smtputf8 = "SMTPUTF8" in features and (
            transaction.parameters.smtputf8 or transaction.wants_smtputf8(recipients)
        )
        if self._left_open:
            waiting.append(Command("RSET", b"RSET\r\n"))
        waiting.append(Command("MAIL", mail_line(transaction, features, smtputf8=smtputf8)))
        for index, recipient in zip(pending, recipients, strict=True):
            waiting.append(Command("RCPT", rcpt_line(recipient, features), (index,)))
        if not self._chunking:
            waiting.append(Command("DATA", b"DATA\r\n"))

    def advance(self) -> None:
        """Send what may be sent now; settle when all recipients have a result and no reply is due."""
        dialogue = self._dialogue
        window = _PIPELINED if "PIPELINING" in dialogue.features else 1
        complete = dialogue.results is None or dialogue.results.complete
        while dialogue.waiting and len(dialogue.sent) < window:
            if complete:
                dialogue.waiting.clear()
            else:
                dialogue.send(dialogue.waiting.popleft())
        if dialogue.sent or dialogue.waiting:
            return
        if complete:
            dialogue.settle()
        elif self._chunking and dialogue.phase is Phase.ENVELOPE:
            self._begin_content(ChunkEncoder())

    def _begin_content(self, encoder: ContentEncoder | ChunkEncoder) -> None:
        self._dialogue.phase = Phase.CONTENT
        self._encoder = encoder
        self._dialogue.events.append(ContentWanted())

    def content(self, chunk: bytes) -> None:
        """Send the next octets of the message as it is stored."""
        dialogue = self._dialogue
        dialogue.progress += 1
        encoded = self._encoder.encode(chunk)
        if isinstance(self._encoder, ContentEncoder):
            dialogue.output.append(encoded)
        elif encoded:
            dialogue.send(Command("BDAT", encoded))

    def end_content(self, results: TransactionResults) -> None:
        """End the message, and await what the server makes of it."""
        dialogue = self._dialogue
        dialogue.progress += 1
        dialogue.output.append(self._encoder.finish())
        dialogue.phase = Phase.END
        if dialogue.settings.lmtp:
            # RFC 2033 §4.2, §4.3: one reply for each accepted recipient, in the order of the RCPTs.
            dialogue.sent.extend(Command(".", recipients=(index,)) for index in results.accepted)
        else:
            dialogue.sent.append(Command(".", recipients=results.accepted))

    # Replies

    def rset_answered(self, _: Command, reply: Reply) -> None:
        if reply.code // 100 != 2:
            self._dialogue.senseless(reply, "RSET")

    def mail_answered(self, _: Command, reply: Reply) -> None:
        self._dialogue.extent = Extent.ANSWERED
        if reply.code // 100 == 2:
            self._left_open = True
            return
        # Without pipelining there is nothing to wait for; with it the answers to the rest are due.
        self._dialogue.waiting.clear()
        self._dialogue.result_for_rest(reply, "MAIL")

    def rcpt_answered(self, command: Command, reply: Reply) -> None:
        results, index = self._dialogue.results, command.recipients[0]
        if results is None or results.has(index):
            return
        if reply.code // 100 == 2:
            results.accept(index)
        elif reply.code == 552 and reply.enhanced in ("", "5.5.3"):
            # RFC 5321 §4.5.3.1.10: the old code for too many recipients; the rest go another time.
            results.answered(index, reply, "RCPT", Status.DEFERRED)
        elif not results.answered(index, reply, "RCPT"):
            self._dialogue.senseless(reply, "RCPT")

    def data_answered(self, _: Command, reply: Reply) -> None:
        dialogue = self._dialogue
        wanted = dialogue.results is not None and bool(dialogue.results.accepted)
        if reply.code != 354:
            if wanted:
                dialogue.result_for_rest(reply, "DATA")
        elif wanted:
            self._begin_content(ContentEncoder())
        elif dialogue.settings.lmtp:
            # RFC 2033 §4.2 forbids 354 here, and no number of replies to a dot would be right.
            dialogue.give_up("the next hop asks for a message without recipients", "4.5.0")
        else:
            # RFC 2920 §3.1: a message without recipients is ended at once.
            dialogue.phase = Phase.END
            dialogue.send(Command(".", b".\r\n"))

    def bdat_answered(self, _: Command, reply: Reply) -> None:
        if reply.code // 100 != 2:
            # RFC 3030 §2: the whole transaction failed with this chunk, and what follows only says so again.
            self._dialogue.result_for_rest(reply, "BDAT")
            self._dialogue.leave(f"the next hop refused a part of the message: {reply}")

    def end_answered(self, command: Command, reply: Reply) -> None:
        self._left_open = False
        results = self._dialogue.results
        for index in command.recipients:
            if results is not None and not results.answered(index, reply, "the message"):
                self._dialogue.senseless(reply, "the message")
