"""One transaction after the other: the envelope, the content by DATA or BDAT, and what the answers mean."""

from __future__ import annotations

from elemta.outcome import Status
from elemta.smtp.client_commands import mail_line, rcpt_line
from elemta.smtp.client_content import ChunkEncoder, ContentEncoder
from elemta.smtp.client_results import ContentWanted, Progress, Ready, TransactionResults
from elemta.smtp.client_state import ClientPhase, ClientState, SentCommand
from elemta.smtp.reply import Reply

# How many commands may wait for their replies: enough to save the round trips, and far below what
# fills the buffers of both sides and blocks both (RFC 2920 §3.1).
_PIPELINED = 50
# RFC 3030 §4.2: chunks can be pipelined too; so many may be out.
_PIPELINED_CHUNKS = 4


class TransactionExchange:
    """What a client does with a server that is ready."""

    def __init__(self, state: ClientState) -> None:
        self._state = state
        self._encoder: ContentEncoder | ChunkEncoder = ContentEncoder()
        # The server may still hold an envelope that came to no end.
        self._left_open = False

    @property
    def _chunking(self) -> bool:
        return "CHUNKING" in self._state.features

    @property
    def congested(self) -> bool:
        """Whether so many chunks wait for their replies that the next has to wait."""
        most = _PIPELINED_CHUNKS if "PIPELINING" in self._state.features else 1
        return self._state.phase is ClientPhase.CONTENT and len(self._state.sent) >= most

    # The course of a transaction

    def become_ready(self) -> None:
        self._state.phase = ClientPhase.READY
        self._state.events.append(Ready())
        if self._state.results is not None:
            self.open(self._state.results)

    def open(self, results: TransactionResults) -> None:
        """Settle what can't go to this server; send the rest its envelope."""
        state = self._state
        state.phase = ClientPhase.ENVELOPE
        state.progress_made = Progress.UNANSWERED
        results.refuse_impossible(state.features)
        if results.complete:
            state.progress_made = Progress.ANSWERED
        else:
            self._queue_envelope(results)
        self.advance()

    def _queue_envelope(self, results: TransactionResults) -> None:
        transaction, pending = results.transaction, results.pending
        features, waiting = self._state.features, self._state.waiting
        recipients = [transaction.recipients[index] for index in pending]
        smtputf8 = "SMTPUTF8" in features and (
            transaction.parameters.smtputf8 or transaction.wants_smtputf8(recipients)
        )
        if self._left_open:
            waiting.append(SentCommand("RSET", b"RSET\r\n"))
        waiting.append(SentCommand("MAIL", mail_line(transaction, features, smtputf8=smtputf8)))
        for index, recipient in zip(pending, recipients, strict=True):
            waiting.append(SentCommand("RCPT", rcpt_line(recipient, features), (index,)))
        if not self._chunking:
            waiting.append(SentCommand("DATA", b"DATA\r\n"))

    def advance(self) -> None:
        """Send what may be sent now; settle when all recipients have a result and no reply is due."""
        state = self._state
        window = _PIPELINED if "PIPELINING" in state.features else 1
        complete = state.results is None or state.results.complete
        while state.waiting and len(state.sent) < window:
            if complete:
                state.waiting.clear()
            else:
                state.send(state.waiting.popleft())
        if state.sent or state.waiting:
            return
        if complete:
            state.settle()
        elif self._chunking and state.phase is ClientPhase.ENVELOPE:
            self._begin_content(ChunkEncoder())

    def _begin_content(self, encoder: ContentEncoder | ChunkEncoder) -> None:
        self._state.phase = ClientPhase.CONTENT
        self._encoder = encoder
        self._state.events.append(ContentWanted())

    def content(self, chunk: bytes) -> None:
        """Send the next octets of the message as it is stored."""
        state = self._state
        state.progress += 1
        encoded = self._encoder.encode(chunk)
        if isinstance(self._encoder, ContentEncoder):
            state.output.append(encoded)
        elif encoded:
            state.send(SentCommand("BDAT", encoded))

    def end_content(self, results: TransactionResults) -> None:
        """End the message, and await what the server makes of it."""
        state = self._state
        state.progress += 1
        state.output.append(self._encoder.finish())
        state.phase = ClientPhase.END
        if state.settings.lmtp:
            # RFC 2033 §4.2, §4.3: one reply for each accepted recipient, in the order of the RCPTs.
            state.sent.extend(SentCommand(".", recipients=(index,)) for index in results.accepted)
        else:
            state.sent.append(SentCommand(".", recipients=results.accepted))

    # Replies

    def rset_answered(self, _: SentCommand, reply: Reply) -> None:
        if reply.code // 100 != 2:
            self._state.unexpected_reply(reply, "RSET")

    def mail_answered(self, _: SentCommand, reply: Reply) -> None:
        self._state.progress_made = Progress.ANSWERED
        if reply.code // 100 == 2:
            self._left_open = True
            return
        # Without pipelining there is nothing to wait for; with it the answers to the rest are due.
        self._state.waiting.clear()
        self._state.result_for_rest(reply, "MAIL")

    def rcpt_answered(self, command: SentCommand, reply: Reply) -> None:
        results, index = self._state.results, command.recipients[0]
        if results is None or results.has(index):
            return
        if reply.code // 100 == 2:
            results.accept(index)
        elif reply.code == 552 and reply.enhanced in ("", "5.5.3"):
            # RFC 5321 §4.5.3.1.10: the old code for too many recipients; the rest go another time.
            results.answered(index, reply, "RCPT", Status.DEFERRED)
        elif not results.answered(index, reply, "RCPT"):
            self._state.unexpected_reply(reply, "RCPT")

    def data_answered(self, _: SentCommand, reply: Reply) -> None:
        state = self._state
        wanted = state.results is not None and bool(state.results.accepted)
        if reply.code // 100 != 3:
            if wanted:
                state.result_for_rest(reply, "DATA")
        elif wanted:
            self._begin_content(ContentEncoder())
        elif state.settings.lmtp:
            # RFC 2033 §4.2 forbids 354 here, and no number of replies to a dot would be right.
            state.give_up("the next hop asks for a message without recipients", "4.5.0")
        else:
            # RFC 2920 §3.1: a message without recipients is ended at once.
            state.phase = ClientPhase.END
            state.send(SentCommand(".", b".\r\n"))

    def bdat_answered(self, _: SentCommand, reply: Reply) -> None:
        if reply.code // 100 != 2:
            # RFC 3030 §2: the whole transaction failed with this chunk, and what follows only says so again.
            self._state.result_for_rest(reply, "BDAT")
            self._state.leave(f"the next hop refused a part of the message: {reply}")

    def end_answered(self, command: SentCommand, reply: Reply) -> None:
        self._left_open = False
        results = self._state.results
        for index in command.recipients:
            if results is not None and not results.answered(index, reply, "the message"):
                self._state.unexpected_reply(reply, "the message")
