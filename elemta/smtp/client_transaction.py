"""One transaction after the other: the envelope, the content by DATA or BDAT, and what the answers mean.

A transaction is one envelope, or several: where the server takes fewer recipients at one time, the rest goes
with the next envelope on the same connection. What the server offers and then refuses is left out, and the
envelope is sent again; once the end of the message was sent, nothing is sent again for its recipients.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from elemta.address import Address
from elemta.outcome import ReachedStage, Status
from elemta.smtp.client_commands import (
    ClientTransaction,
    Features,
    mail_line,
    named_offers,
    offers_used,
    rcpt_line,
)
from elemta.smtp.client_content import ChunkEncoder, ContentEncoder
from elemta.smtp.client_results import ContentWanted, Ready, TransactionResults
from elemta.smtp.client_state import ClientPhase, ClientState, SentCommand
from elemta.smtp.reply import Reply

# How many commands may wait for their replies: enough to save the round trips, and far below what
# fills the buffers of both sides and blocks both (RFC 2920 §3.1).
_PIPELINED = 50
# RFC 3030 §4.2: chunks can be pipelined too; so many may be out.
_PIPELINED_CHUNKS = 4
# RFC 5321 §4.2.2, §4.2.4: a command, a parameter or its value is not known or not implemented.
_NOT_KNOWN = frozenset({500, 501, 502, 504, 555})
_BY_WORTH = ("SIZE", "DSN", "8BITMIME", "SMTPUTF8")
# RFC 5321 §4.2.4, RFC 3030 §2: the server does not know BDAT after all, or not here.
_NO_BDAT = frozenset({500, 502, 503})
_STORAGE = re.compile(r"storage|space|disk|quota|full|size", re.IGNORECASE)
_TOO_MANY = re.compile(r"too many (?:\w+ )?(?:recipients|rcpts?\b)|too many addressees", re.IGNORECASE)


_DATA = SentCommand("DATA", b"DATA\r\n")


class TransactionExchange:
    """What a client does with a server that is ready."""

    def __init__(self, state: ClientState) -> None:
        self._state = state
        self._encoder: ContentEncoder | ChunkEncoder = ContentEncoder()
        # The server may still hold an envelope that came to no end.
        self._left_open = False
        # Keywords that are left out for now, and the one that was left out last: it is what the server
        # refuses if it accepts MAIL then.
        self._doubted: set[str] = set()
        self._last_doubt = ""
        # MAIL was refused, and is sent again without what is doubted.
        self._restarting = False
        # Recipients that were refused when DSN parameters stood behind them.
        self._without_dsn: set[int] = set()
        # How many recipients this envelope took, and the one before it, where it took no more.
        self._full_at = 0
        self._was_full_at = 0

    @property
    def _offers(self) -> Features:
        features = self._state.features
        return features.without(self._doubted) if self._doubted else features

    @property
    def _chunking(self) -> bool:
        return "CHUNKING" in self._offers

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
        if self._doubted or self._last_doubt or self._without_dsn:
            self._without_dsn.clear()
            self._doubts_end("")
        self._full_at = self._was_full_at = 0
        self._open_envelope(results)
        self.advance()

    def _open_envelope(self, results: TransactionResults) -> None:
        self._state.phase = ClientPhase.ENVELOPE
        self._restarting = False
        if self._full_at:
            self._was_full_at, self._full_at = self._full_at, 0
        offers = self._offers
        results.refuse_impossible(offers)
        due = results.due
        most = self._was_full_at or self._state.most_recipients
        if most and due[most:]:
            for index in due[most:]:
                results.postpone(index)
            due = due[:most]
        if due:
            self._queue_envelope(results.transaction, due, offers)

    def _queue_envelope(self, transaction: ClientTransaction, due: Sequence[int], features: Features) -> None:
        recipients = [transaction.recipients[index] for index in due]
        smtputf8 = "SMTPUTF8" in features.keywords and transaction.wants_smtputf8(recipients)
        commands = [SentCommand("MAIL", mail_line(transaction, features, smtputf8=smtputf8))]
        if self._left_open:
            commands.insert(0, SentCommand("RSET", b"RSET\r\n"))
        for index, recipient in zip(due, recipients, strict=True):
            commands.append(SentCommand("RCPT", rcpt_line(recipient, features), (index,)))
        if "CHUNKING" not in features.keywords:
            commands.append(_DATA)
        self._state.send_soon(commands, self._window)

    @property
    def _window(self) -> int:
        """How many commands may wait for their replies."""
        return _PIPELINED if "PIPELINING" in self._state.features.keywords else 1

    def advance(self) -> None:
        """Send what may be sent now; go on to the next envelope, or settle, when no reply is due."""
        state = self._state
        while True:
            if state.waiting:
                self._send_waiting()
            results = state.results
            if state.sent or state.waiting or state.closed:
                return
            if results is not None and self._restarting:
                self._open_envelope(results)
            elif results is None or results.complete:
                if results is None or not results.next_envelope():
                    state.settle()
                    return
                self._open_envelope(results)
            elif self._chunking and state.phase is ClientPhase.ENVELOPE:
                self._begin_content(ChunkEncoder())
                return
            else:
                return

    def _send_waiting(self) -> None:
        state = self._state
        if state.results is None or state.results.complete:
            state.waiting.clear()
        else:
            state.send_waiting(self._window)

    def _begin_content(self, encoder: ContentEncoder | ChunkEncoder) -> None:
        self._state.phase = ClientPhase.CONTENT
        self._encoder = encoder
        self._state.events.append(ContentWanted())

    def content(self, chunk: bytes) -> None:
        """Send the next octets of the message as it is stored."""
        state = self._state
        state.progress += 1
        encoded = self._encoder.encode(chunk)
        if type(self._encoder) is ContentEncoder:
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

    def mail_answered(self, command: SentCommand, reply: Reply) -> None:
        state, results = self._state, self._state.results
        if results is not None:
            results.reached = ReachedStage.ANSWERED
        if reply.code // 100 == 2:
            self._left_open = True
            if self._last_doubt or self._doubted:
                self._doubts_end(self._last_doubt)
            return
        # Without pipelining there is nothing to wait for; with it the answers to the rest are due.
        state.waiting.clear()
        blamed = _blamed(command, reply, results) if results is not None else ""
        if blamed:
            self._doubted.add(blamed)
            self._last_doubt = blamed
            self._restarting = True
        else:
            self._doubts_end("")
            state.result_for_rest(reply, "MAIL")

    def rcpt_answered(self, command: SentCommand, reply: Reply) -> None:
        results, index = self._state.results, command.recipients[0]
        if self._restarting:
            # MAIL was refused: the answer says nothing about the recipient.
            self._left_open = self._left_open or reply.code // 100 == 2
        elif results is None or results.has(index):
            return
        elif reply.code // 100 == 2:
            self._accept(results, index)
        elif _is_too_many(reply) and results.accepted:
            self._full(results, index, reply)
        elif _is_too_many(reply) and (reply.code // 100 == 4 or _says_only_that(reply) or self._was_full_at):
            # RFC 5321 §4.5.3.1.10: it takes no more now. 552 is an old code for that; 550 alone is not.
            unsent = results.postponed if self._was_full_at else ()
            for each in (index, *unsent):
                results.answered(each, reply, "RCPT", Status.DEFERRED)
        elif reply.code in _NOT_KNOWN and "DSN" in offers_used(command.line, _address(results, index)):
            self._doubted.add("DSN")
            self._without_dsn.add(index)
            results.postpone(index, reply)
        elif not results.answered(index, reply, "RCPT"):
            self._state.unexpected_reply(reply, "RCPT")

    def _accept(self, results: TransactionResults, index: int) -> None:
        results.accept(index)
        self._full_at = 0
        if index in self._without_dsn:
            self._state.distrust("DSN")
        if self._was_full_at:
            # It took no more with the envelope before, and goes on with this one.
            self._state.limit_recipients(self._was_full_at)
            self._was_full_at = 0

    def _full(self, results: TransactionResults, index: int, reply: Reply) -> None:
        """The server takes no more recipients with this envelope: the rest goes with the next one."""
        # RFC 5321 §4.5.3.1.10
        self._full_at = len(results.accepted)
        results.postpone(index, reply)
        waiting = self._state.waiting
        for command in [each for each in waiting if each.verb == "RCPT"]:
            results.postpone(command.recipients[0])
            waiting.remove(command)

    def _doubts_end(self, culprit: str) -> None:
        """MAIL has its answer: what was left out beside the culprit, if there is one, may be right."""
        if culprit:
            self._state.distrust(culprit)
        self._last_doubt = ""
        self._doubted = {"DSN"} if self._without_dsn else set()

    def data_answered(self, _: SentCommand, reply: Reply) -> None:
        state, results = self._state, self._state.results
        accepted = results.accepted if results is not None else ()
        # RFC 5321 §4.3.2: the first digit decides.
        if reply.code // 100 != 3:
            self._data_refused(accepted, reply)
        elif accepted:
            self._begin_content(ContentEncoder())
        elif state.settings.lmtp or self._restarting:
            # RFC 2033 §4.2 forbids 354 here, and no number of replies to a dot would be right. Where MAIL
            # was refused an empty message might be delivered.
            state.give_up("the next hop asks for a message without recipients", "4.5.0")
        else:
            # RFC 2920 §3.1: a message without recipients is ended at once.
            state.phase = ClientPhase.END
            state.send(SentCommand(".", b".\r\n"))

    def _data_refused(self, accepted: Iterable[int], reply: Reply) -> None:
        results = self._state.results
        for index in accepted:
            if reply.code // 100 == 2:
                self._state.unexpected_reply(reply, "DATA")
                break
            if results is not None:
                results.answered(index, reply, "DATA")

    def bdat_answered(self, _: SentCommand, reply: Reply) -> None:
        if reply.code // 100 == 2:
            return
        # RFC 3030 §2: the whole transaction failed with this chunk, and what follows only says so again.
        results = self._state.results
        if reply.code in _NO_BDAT and results is not None:
            self._leave_for_data(results, reply)
        else:
            self._state.result_for_rest(reply, "BDAT")
            self._state.leave(f"the next hop refused a part of the message: {reply}")

    def end_answered(self, command: SentCommand, reply: Reply) -> None:
        self._left_open = False
        state, results = self._state, self._state.results
        if results is None or not command.recipients:
            return
        if reply.code in _NO_BDAT and isinstance(self._encoder, ChunkEncoder):
            results.refused_as_sent(command.recipients, reply, "BDAT")
        else:
            for index in command.recipients:
                if not results.answered(index, reply, "the message"):
                    state.unexpected_reply(reply, "the message")
                    return
        # Over LMTP each recipient has its own answer, and some may have the message.
        if results.again and not state.sent:
            self._leave_for_data(results, reply)

    def _leave_for_data(self, results: TransactionResults, reply: Reply) -> None:
        """BDAT is offered and not known: its octets were read as commands.

        So this connection is of no more use. The server has nothing of the message for those without a
        result.
        """
        self._state.distrust("CHUNKING")
        results.refused_as_sent(results.unfinished, reply, "BDAT")
        self._state.leave(f"the next hop offers CHUNKING and refused BDAT: {reply}")


def _address(results: TransactionResults, index: int) -> Address:
    return results.transaction.recipients[index].address


def _is_too_many(reply: Reply) -> bool:
    """Whether RCPT was refused since the envelope has as many recipients as the server takes."""
    if reply.code // 100 not in (4, 5):
        return False
    return _says_only_that(reply) or _TOO_MANY.search(reply.text) is not None


def _says_only_that(reply: Reply) -> bool:
    # RFC 3463 §3.6 X.5.3; RFC 5321 §4.5.3.1.10: without it 452 and 552 are about storage, too.
    plain = reply.code in (452, 552) and not reply.enhanced and not _STORAGE.search(reply.text)
    return plain or reply.enhanced[1:] == ".5.3"


def _blamed(command: SentCommand, reply: Reply, results: TransactionResults) -> str:
    """The keyword whose parameters may be why MAIL was refused, and without which the message can go."""
    if reply.code not in _NOT_KNOWN:
        return ""
    transaction = results.transaction
    used = offers_used(command.line, transaction.sender)
    needs = [_address(results, index).needs_smtputf8 for index in results.due]
    if transaction.sender.needs_smtputf8 or all(needs):
        used -= {"SMTPUTF8"}
    if transaction.utf8_header:
        # One of the two has to say that there are octets beyond ASCII in the header.
        used -= {"8BITMIME"}
    # First what the reply names, and last what costs most to be without. One at a time, so that nothing is
    # blamed that the server knows.
    for keywords in (used & named_offers(reply.text), used):
        for keyword in _BY_WORTH:
            if keyword in keywords:
                return keyword
    return ""
