"""The client side of SMTP and LMTP with no I/O in it: bytes and content in, bytes and events out.

A session is one connection. The shell moves bytes, reads the content, and keeps the deadlines that
:attr:`ClientSession.deadline` names; what a reply means for each recipient is decided here and
nowhere else. A server that breaks the protocol costs its transaction a deferral, never more.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from elemta.outcome import Status
from elemta.smtp.client_commands import ClientTransaction, Features, mail_line, rcpt_line
from elemta.smtp.client_content import ContentEncoder
from elemta.smtp.client_events import ContentWanted, Hangup, Ready, Settled
from elemta.smtp.client_replies import MalformedReplyError, ReplyReader
from elemta.smtp.client_results import TransactionResults
from elemta.smtp.events import Event
from elemta.smtp.reply import Reply

# How many commands may wait for their replies: enough to save the round trips, and far below what
# fills the buffers of both sides and blocks both (RFC 2920 §3.1).
_PIPELINED = 50


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long to wait for the whole of each reply, in seconds (RFC 5321 §4.5.3.2)."""

    greeting: float = 300.0
    hello: float = 300.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    block: float = 180.0
    end: float = 600.0
    quit: float = 5.0


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """``hostname`` is the name for EHLO; ``lmtp`` speaks LMTP (RFC 2033) instead of SMTP."""

    hostname: str
    lmtp: bool = False
    deadlines: Deadlines = field(default_factory=Deadlines)


class _Phase(enum.Enum):
    HELLO = "hello"
    READY = "ready"
    ENVELOPE = "envelope"
    CONTENT = "content"
    END = "end"
    QUITTING = "quitting"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class _Command:
    """A command, or what else is answered: ``""`` the connection itself, ``"."`` the end of the message."""

    verb: str
    line: bytes = b""
    recipients: tuple[int, ...] = ()


class ClientSession:
    """One connection to a next hop, from its greeting to its end.

    ``start`` may be called as soon as the session exists and again after each :class:`Settled`, until a
    :class:`Hangup`; ``quit`` ends the session politely. After every call the shell sends
    :meth:`take_output` and acts on the events.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._reader = ReplyReader()
        self._phase = _Phase.HELLO
        self._features = Features()
        self._output: list[bytes] = []
        self._events: list[Event] = []
        self._waiting: deque[_Command] = deque()
        self._sent: deque[_Command] = deque([_Command("")])
        self._answerable = 0
        self._results: TransactionResults | None = None
        self._encoder = ContentEncoder()
        self.progress = 0

    @property
    def features(self) -> Features:
        """What the server offered in its answer to EHLO or LHLO."""
        return self._features

    @property
    def closed(self) -> bool:
        """Whether the session is over and takes nothing more."""
        return self._phase is _Phase.CLOSED

    @property
    def deadline(self) -> float | None:
        """Seconds within which :attr:`progress` must change, from its last change on; None: for ever.

        In the content it is the time for one chunk to leave (RFC 5321 §4.5.3.2.5), else the time for one
        whole reply, so that a reply that comes by drops gains nothing.
        """
        if self._phase is _Phase.CONTENT:
            return self._settings.deadlines.block
        if not self._sent or self._phase is _Phase.CLOSED:
            return None
        return float(getattr(self._settings.deadlines, _DEADLINES[self._sent[0].verb]))

    def take_output(self) -> bytes:
        """All bytes to send since the last call."""
        output = b"".join(self._output)
        self._output.clear()
        return output

    def start(self, transaction: ClientTransaction) -> list[Event]:
        """Hand in the next transaction; it begins once the server is ready for it."""
        if self._results is not None or self._phase not in (_Phase.HELLO, _Phase.READY):
            raise RuntimeError("a transaction is under way or the session is over")
        self._results = TransactionResults(transaction)
        if self._phase is _Phase.READY:
            self._open(self._results)
        return self._happened()

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the server."""
        if self.closed:
            return []
        # Only what was sent before these bytes came can be answered by them.
        self._answerable = len(self._sent)
        try:
            for reply in self._reader.feed(data):
                self._take(reply)
                if self.closed:
                    break
        except MalformedReplyError as error:
            self._give_up(f"the next hop sent {error}", "4.5.0")
        return self._happened()

    def content(self, chunk: bytes) -> None:
        """Send the next octets of the message as it is stored."""
        if self._phase is _Phase.CONTENT:
            self.progress += 1
            self._output.append(self._encoder.encode(chunk))

    def end_content(self) -> None:
        """The message was given whole: end it, and await what the server makes of it."""
        if self._phase is not _Phase.CONTENT or self._results is None:
            return
        self.progress += 1
        self._output.append(self._encoder.finish())
        self._phase = _Phase.END
        accepted = self._results.accepted
        if self._settings.lmtp:
            # RFC 2033 §4.2: one reply for each accepted recipient, in the order of the RCPTs.
            self._sent.extend(_Command(".", recipients=(index,)) for index in accepted)
        else:
            self._sent.append(_Command(".", recipients=accepted))

    def quit(self) -> list[Event]:
        """Say goodbye; what is left of the session is a short wait for the reply (RFC 5321 §4.1.1.10)."""
        if self._phase is _Phase.READY:
            self._phase = _Phase.QUITTING
            self._send(_Command("QUIT", b"QUIT\r\n"))
        elif self._phase is not _Phase.CLOSED:
            self._give_up("the transaction was given up here", "4.3.0")
        return self._happened()

    def abandon(self, text: str) -> list[Event]:
        """Something failed here: what has no result yet is deferred with ``text``, and nothing is ended."""
        self._give_up(text, "4.3.0")
        return self._happened()

    def timed_out(self) -> list[Event]:
        """The deadline has passed."""
        seconds = self.deadline or 0.0
        self._give_up(f"no progress within {seconds:g} s {self._where()}", "4.4.2")
        return self._happened()

    def lost(self, reason: str) -> list[Event]:
        """The connection is gone."""
        self._give_up(f"the connection was lost {self._where()} ({reason})", "4.4.2")
        return self._happened()

    # Replies

    def _take(self, reply: Reply) -> None:
        self.progress += 1
        if self._answerable == 0:
            self._unsolicited(reply)
            return
        self._answerable -= 1
        command = self._sent.popleft()
        if reply.code == 421 and command.verb != "QUIT":
            # RFC 5321 §3.8: the server is going away, whatever was asked.
            self._defer_rest(reply, _ABOUT.get(command.verb, command.verb))
            return
        _ANSWERS[command.verb](self, command, reply)
        if self._phase in (_Phase.ENVELOPE, _Phase.END):
            self._advance()

    def _unsolicited(self, reply: Reply) -> None:
        if reply.code == 421:
            self._defer_rest(reply, "nothing: it came unasked")
        else:
            self._give_up(f"the next hop sent a reply that nothing asked for: {reply}", "4.5.0")

    def _greeted(self, _: _Command, reply: Reply) -> None:
        if reply.code != 220:
            self._refused_session(reply, "the connection")
            return
        verb = "LHLO" if self._settings.lmtp else "EHLO"
        self._send(_Command(verb, f"{verb} {self._settings.hostname}\r\n".encode()))

    def _ehlo_answered(self, command: _Command, reply: Reply) -> None:
        if reply.code // 100 == 2:
            self._features = Features.of(reply.lines)
            self._become_ready()
        elif reply.code // 100 == 5 and command.verb == "EHLO":
            # RFC 5321 §3.2: a server that does not know EHLO is greeted by HELO.
            self._send(_Command("HELO", f"HELO {self._settings.hostname}\r\n".encode()))
        else:
            self._refused_session(reply, command.verb)

    def _helo_answered(self, _: _Command, reply: Reply) -> None:
        if reply.code // 100 == 2:
            self._become_ready()
        else:
            self._refused_session(reply, "HELO")

    def _mail_answered(self, _: _Command, reply: Reply) -> None:
        if reply.code // 100 == 2:
            return
        # Without pipelining there is nothing to wait for; with it the answers to the rest are due.
        self._waiting.clear()
        self._result_for_rest(reply, "MAIL")

    def _rcpt_answered(self, command: _Command, reply: Reply) -> None:
        index = command.recipients[0]
        if self._results is None or self._results.has(index):
            return
        if reply.code // 100 == 2:
            self._results.accept(index)
        elif reply.code == 552 and reply.enhanced in ("", "5.5.3"):
            # RFC 5321 §4.5.3.1.10: the old code for too many recipients; the rest go another time.
            self._results.answered(index, reply, "RCPT", Status.DEFERRED)
        elif not self._results.answered(index, reply, "RCPT"):
            self._senseless(reply, "RCPT")

    def _data_answered(self, _: _Command, reply: Reply) -> None:
        wanted = self._results is not None and bool(self._results.accepted)
        if reply.code != 354:
            if wanted:
                self._result_for_rest(reply, "DATA")
        elif wanted:
            self._phase = _Phase.CONTENT
            self._encoder = ContentEncoder()
            self._events.append(ContentWanted())
        elif self._settings.lmtp:
            # RFC 2033 §4.2 forbids 354 here, and no number of replies to a dot would be right.
            self._give_up("the next hop wants a message for nobody", "4.5.0")
        else:
            # RFC 2920 §3.1: a message for nobody is ended at once.
            self._phase = _Phase.END
            self._send(_Command(".", b".\r\n"))

    def _end_answered(self, command: _Command, reply: Reply) -> None:
        for index in command.recipients:
            if self._results is not None and not self._results.answered(index, reply, "the message"):
                self._senseless(reply, "the message")

    def _quit_answered(self, _: _Command, reply: Reply) -> None:
        self._phase = _Phase.CLOSED
        self._events.append(Hangup(f"said goodbye: {reply.code}"))

    # The course of a transaction

    def _become_ready(self) -> None:
        self._phase = _Phase.READY
        self._events.append(Ready())
        if self._results is not None:
            self._open(self._results)

    def _open(self, results: TransactionResults) -> None:
        """Settle what can't go to this server; send the rest its envelope."""
        self._phase = _Phase.ENVELOPE
        results.refuse_impossible(self._features)
        if pending := results.pending:
            transaction = results.transaction
            recipients = [transaction.recipients[index] for index in pending]
            smtputf8 = "SMTPUTF8" in self._features and (
                transaction.parameters.smtputf8 or transaction.wants_smtputf8(recipients)
            )
            self._waiting.append(_Command("MAIL", mail_line(transaction, self._features, smtputf8=smtputf8)))
            for index, recipient in zip(pending, recipients, strict=True):
                self._waiting.append(_Command("RCPT", rcpt_line(recipient, self._features), (index,)))
            self._waiting.append(_Command("DATA", b"DATA\r\n"))
        self._advance()

    def _advance(self) -> None:
        """Send what may be sent now; settle when everybody has a result and no reply is due."""
        window = _PIPELINED if "PIPELINING" in self._features else 1
        complete = self._results is None or self._results.complete
        while self._waiting and len(self._sent) < window:
            if complete:
                self._waiting.clear()
            else:
                self._send(self._waiting.popleft())
        if complete and not self._sent and not self._waiting:
            self._settle()

    def _settle(self) -> None:
        results, self._results = self._results, None
        if results is not None:
            self._phase = _Phase.READY
            self._events.append(Settled(results.in_order()))

    def _result_for_rest(self, reply: Reply, verb: str, status: Status | None = None) -> None:
        """The reply to a command that is about everybody; a positive one where none belongs is no success."""
        if reply.code < 400:
            self._senseless(reply, verb)
        elif self._results is not None:
            for index in self._results.pending:
                self._results.answered(index, reply, verb, status)

    def _refused_session(self, reply: Reply, what: str) -> None:
        """The server will not talk: that is about the server, so it is deferred unless it says never."""
        # RFC 7504 §4: 521 says that this host accepts no mail at all.
        status = Status.FAILED if reply.code == 521 else Status.DEFERRED
        self._result_for_rest(reply, what, status)
        if not self.closed:
            # RFC 5321 §3.1: also a session that was refused ends by QUIT.
            self._output.append(b"QUIT\r\n")
        self._close(f"the next hop refused {what}: {reply}")

    def _defer_rest(self, reply: Reply, verb: str) -> None:
        self._result_for_rest(reply, verb, Status.DEFERRED)
        self._close(f"the next hop is closing: {reply}")

    def _senseless(self, reply: Reply, verb: str) -> None:
        self._give_up(f"the next hop answered {verb} by {reply}", "4.5.0")

    def _give_up(self, text: str, enhanced: str) -> None:
        """Nothing more can come of this connection: who has no result is deferred."""
        if self._results is not None:
            self._results.decided_here(self._results.pending, Status.DEFERRED, enhanced, text)
        self._close(text)

    def _close(self, reason: str) -> None:
        if not self.closed:
            self._settle()
            self._phase = _Phase.CLOSED
            self._events.append(Hangup(reason))

    def _where(self) -> str:
        if self._phase is _Phase.CONTENT:
            return "while the message was being sent"
        verb = self._sent[0].verb if self._sent else "READY"
        if verb == ".":
            return "after the end of the message: it may have been delivered, and will be sent again"
        return {"": "before the greeting", "READY": "between transactions"}.get(
            verb, f"before the reply to {verb}"
        )

    def _send(self, command: _Command) -> None:
        self._output.append(command.line)
        self._sent.append(command)

    def _happened(self) -> list[Event]:
        events, self._events = self._events, []
        return events


_ABOUT = {"": "the connection", ".": "the message"}

# What each command's reply means, and how long it may take: the whole protocol in two tables.
_ANSWERS: dict[str, Callable[[ClientSession, _Command, Reply], None]] = {
    "": ClientSession._greeted,
    "EHLO": ClientSession._ehlo_answered,
    "LHLO": ClientSession._ehlo_answered,
    "HELO": ClientSession._helo_answered,
    "MAIL": ClientSession._mail_answered,
    "RCPT": ClientSession._rcpt_answered,
    "DATA": ClientSession._data_answered,
    ".": ClientSession._end_answered,
    "QUIT": ClientSession._quit_answered,
}
_DEADLINES = {
    "": "greeting",
    "EHLO": "hello",
    "LHLO": "hello",
    "HELO": "hello",
    "MAIL": "mail",
    "RCPT": "rcpt",
    "DATA": "data",
    ".": "end",
    "QUIT": "quit",
}
