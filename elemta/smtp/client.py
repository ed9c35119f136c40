"""The client side of SMTP and LMTP with no I/O in it: bytes and content in, bytes and events out.

A session is one connection. The shell moves bytes, reads the content, starts TLS, and keeps the deadlines
that :attr:`ClientSession.deadline` names; what a reply means for each recipient is decided in these
modules and nowhere else. A server that breaks the protocol costs its transaction a deferral, never more.
"""

from __future__ import annotations

import re

from elemta.outcome import Outcome, ReachedStage
from elemta.route_tls import RouteTLS
from elemta.smtp.client_commands import ClientTransaction, Features
from elemta.smtp.client_handshake import ClientHandshake
from elemta.smtp.client_replies import MalformedReplyError
from elemta.smtp.client_results import TransactionResults
from elemta.smtp.client_settings import ClientSettings, ClientTimeouts
from elemta.smtp.client_state import ClientPhase, ClientState, SentCommand
from elemta.smtp.client_transaction import TransactionExchange
from elemta.smtp.events import Event
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import TLSInfo
from elemta.smtp.trace_lines import Trace

__all__ = ["ClientSession", "ClientSettings", "ClientTimeouts"]


class ClientSession:
    """One connection to a next hop, from its greeting to its end.

    ``start`` may be called as soon as the session exists and again after each :class:`TransactionDone`,
    until a :class:`Hangup`; ``quit`` ends the session politely. After every call the shell sends
    :meth:`take_output` and acts on the events.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._state = ClientState(settings)
        self._mailing = TransactionExchange(self._state)
        self._opening = ClientHandshake(self._state, self._mailing.become_ready)
        self._answerable = 0
        self._seconds = {verb: float(getattr(settings.deadlines, name)) for verb, name in _DEADLINES.items()}
        opening, mailing = self._opening, self._mailing
        self._answers = {
            "": opening.greeted,
            "EHLO": opening.ehlo_answered,
            "LHLO": opening.ehlo_answered,
            "HELO": opening.helo_answered,
            "STARTTLS": opening.starttls_answered,
            "AUTH": opening.auth_answered,
            "RSET": mailing.rset_answered,
            "MAIL": mailing.mail_answered,
            "RCPT": mailing.rcpt_answered,
            "DATA": mailing.data_answered,
            "BDAT": mailing.bdat_answered,
            ".": mailing.end_answered,
            "QUIT": self._quit_answered,
        }

    @property
    def features(self) -> Features:
        """What the server offered in its last answer to EHLO or LHLO."""
        return self._state.features

    @property
    def tls(self) -> TLSInfo | None:
        """What protects the connection; None: nothing."""
        return self._state.tls

    @property
    def tls_comes_first(self) -> bool:
        """Whether TLS has to be started before anything is said (RFC 8314 §3.3)."""
        return self._state.settings.tls is RouteTLS.IMPLICIT and self._state.tls is None

    @property
    def starttls_refused(self) -> bool:
        """Whether the server offered STARTTLS and did not begin it: by a refusal, or by saying no word."""
        return self._state.starttls_refused

    @property
    def closed(self) -> bool:
        """Whether the session is over and takes nothing more."""
        return self._state.phase is ClientPhase.CLOSED

    @property
    def idle(self) -> bool:
        """Whether the server waits for the next transaction."""
        return self._state.phase is ClientPhase.READY and self._state.results is None

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What the last transaction came to: one for each recipient, in the order they were given."""
        return self._state.outcomes

    @property
    def again(self) -> tuple[int, ...]:
        """The places of recipients that were deferred for a command that the server offered and refused.

        It has nothing of the message, and over a new connection it may take it without the command.
        """
        return self._state.again

    @property
    def congested(self) -> bool:
        """Whether no more content may be given now."""
        return self._mailing.congested

    @property
    def progress(self) -> int:
        """Changes with every whole reply and every chunk; see :attr:`deadline`."""
        return self._state.progress

    @property
    def deadline(self) -> float | None:
        """Seconds within which :attr:`progress` must change, from its last change on; None: for ever.

        In the content it is the time for one chunk to leave (RFC 5321 §4.5.3.2.5), else the time for one
        whole reply, so that a reply that comes by drops gains nothing.
        """
        return self.awaited[1]

    @property
    def awaited(self) -> tuple[int, float | None]:
        """The progress, and the deadline: while both stay the same, the deadline does not move."""
        state, deadlines = self._state, self._settings.deadlines
        seconds: float | None = None
        if state.phase is ClientPhase.HANDSHAKE:
            seconds = deadlines.handshake
        elif state.phase is ClientPhase.CONTENT:
            seconds = deadlines.block
        elif state.sent and state.phase is not ClientPhase.CLOSED:
            seconds = self._seconds[state.sent[0].verb]
        return state.progress, seconds

    @property
    def trace(self) -> Trace | None:
        """What follows the conversation."""
        return self._state.trace

    def follow(self, trace: Trace | None) -> None:
        """Let a watcher see what is said from now on."""
        self._state.trace = trace

    def take_output(self) -> bytes:
        """All bytes to send since the last call."""
        pieces = self._state.output
        if not pieces:
            return b""
        self._state.output = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def start(self, transaction: ClientTransaction) -> list[Event]:
        """Hand in the next transaction; it begins once the server is ready for it."""
        state = self._state
        opening = state.phase in (ClientPhase.OPENING, ClientPhase.HANDSHAKE)
        if state.results is not None or not (opening or self.idle):
            raise RuntimeError("a transaction is under way or the session is over")
        state.results, state.outcomes, state.again = TransactionResults(transaction), (), ()
        if not opening:
            self._mailing.open(state.results)
        events, state.events = state.events, []
        return events

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the server."""
        state = self._state
        if state.phase is ClientPhase.CLOSED:
            return []
        if state.phase is ClientPhase.HANDSHAKE and state.settings.tls is RouteTLS.IMPLICIT:
            state.give_up("the next hop spoke in the clear before TLS", "4.7.0")
            return self._happened()
        # Only what was sent before these bytes came can be answered by them.
        self._answerable = len(state.sent)
        try:
            for reply in state.reader.feed(data):
                self._take(reply)
                if self._state.phase is ClientPhase.CLOSED:
                    break
        except MalformedReplyError as error:
            self._note_starttls()
            if state.awaits("MAIL") and state.results is not None:
                # It is about this message, and no reason to leave the server alone.
                state.results.reached = ReachedStage.ANSWERED
            what = "no reply to AUTH" if self._opening.secrets else str(error)
            state.give_up(f"the next hop sent {what}", "4.5.0")
        events, state.events = state.events, []
        return events

    @property
    def unanswered(self) -> int:
        """How many accepted recipients wait for the answer to the message; 0 before it is sent."""
        state = self._state
        return len(state.results.accepted) if state.phase is ClientPhase.END and state.results else 0

    def broken(self, data: bytes, unanswered: int | None) -> list[Event]:
        """A fault of ours in :meth:`receive`: what ``data`` says at first sight counts; it is over then.

        ``unanswered`` is what that was before these bytes came; None: what it is now.
        """
        results = self._state.results
        if results is not None and self._state.phase is ClientPhase.END and unanswered != 0:
            codes = re.findall(rb"^([2-5])\d\d(?: |\r?$)", data, re.MULTILINE)
            waiting = results.accepted
            before = len(waiting) if unanswered is None else unanswered
            codes = codes[before - len(waiting) :] if self._settings.lmtp else codes[-1:] * len(waiting)
            taken = [index for index, code in zip(waiting, codes, strict=False) if code == b"2"]
            results.taken_at_first_sight(taken)
        self._state.give_up("a fault inside Elemta; the log has it", "4.3.0")
        return self._happened()

    def tls_started(self, info: TLSInfo) -> list[Event]:
        """The handshake is done, and its certificate is good enough."""
        if self._state.phase is ClientPhase.HANDSHAKE:
            self._opening.tls_started(info)
        return self._happened()

    def tls_failed(self, reason: str) -> list[Event]:
        """There is no TLS, and no way back to the clear on this connection."""
        self._state.give_up(f"TLS with the next hop failed: {reason}", "4.7.5")
        return self._happened()

    def content(self, chunk: bytes) -> None:
        """Send the next octets of the message as it is stored."""
        if self._state.phase is ClientPhase.CONTENT:
            self._mailing.content(chunk)

    def end_content(self) -> None:
        """The message was given whole: end it, and await what the server makes of it."""
        if self._state.phase is ClientPhase.CONTENT and self._state.results is not None:
            self._mailing.end_content(self._state.results)

    def quit(self) -> list[Event]:
        """Send QUIT; what is left of the session is a short wait for the reply (RFC 5321 §4.1.1.10)."""
        if self._state.phase is ClientPhase.READY:
            self._state.phase = ClientPhase.QUITTING
            self._state.send(SentCommand("QUIT", b"QUIT\r\n"))
        elif self._state.phase not in (ClientPhase.QUITTING, ClientPhase.CLOSED):
            self._state.give_up("the transaction was given up here", "4.3.0")
        return self._happened()

    def abandon(self, text: str) -> list[Event]:
        """Something failed here: what has no result yet is deferred with ``text``, and nothing is ended."""
        self._state.give_up(text, "4.3.0")
        return self._happened()

    def timed_out(self) -> list[Event]:
        """The deadline has passed."""
        self._note_starttls()
        seconds = self.deadline or 0.0
        self._state.give_up(f"no progress within {seconds:g} s {self._where()}", "4.4.2")
        return self._happened()

    def lost(self, reason: str) -> list[Event]:
        """The connection is gone."""
        self._note_starttls()
        self._state.give_up(f"the connection was lost {self._where()} ({reason})", "4.4.2")
        return self._happened()

    def _note_starttls(self) -> None:
        if self._state.awaits("STARTTLS"):
            self._state.starttls_refused = True

    # Replies

    def _take(self, reply: Reply) -> None:
        state = self._state
        state.progress += 1
        if self._opening.secrets:
            reply = self._opening.without_secrets(reply)
        if state.trace is not None:
            state.trace.said(False, str(reply))
        if self._answerable == 0:
            self._unsolicited(reply)
            return
        self._answerable -= 1
        command = state.sent.popleft()
        if reply.code == 421 and command.verb == "." and state.awaits("."):
            # RFC 2033 §4.2: over LMTP each recipient has its own reply, and those to come may say that it has
            # the message.
            state.closing = reply
        elif reply.code == 421 and command.verb != "QUIT":
            state.starttls_refused = state.starttls_refused or command.verb == "STARTTLS"
            # RFC 5321 §3.8: the server is going away, whatever was asked.
            state.server_closing(reply, _ABOUT.get(command.verb, command.verb))
            return
        self._answers[command.verb](command, reply)
        if state.closing is not None and not state.sent:
            state.server_closing(state.closing, _ABOUT["."])
        if (state.waiting or not state.sent) and state.phase in (ClientPhase.ENVELOPE, ClientPhase.END):
            self._mailing.advance()

    def _unsolicited(self, reply: Reply) -> None:
        if reply.code == 421:
            self._state.server_closing(reply, "nothing: it came unasked")
        else:
            text = f"the next hop sent a reply that nothing asked for: {reply}"
            self._state.give_up(text, "4.5.0")

    def _quit_answered(self, _: SentCommand, reply: Reply) -> None:
        self._state.close(f"ended by QUIT: {reply.code}")

    def _where(self) -> str:
        state = self._state
        if state.phase is ClientPhase.HANDSHAKE:
            return "during the TLS handshake"
        if state.phase is ClientPhase.CONTENT:
            return "while the message was being sent"
        if state.phase is ClientPhase.END and state.results is not None and state.results.accepted:
            return "after the end of the message: it may have been delivered, and will be sent again"
        verb = state.sent[0].verb if state.sent else "READY"
        return {"": "before the greeting", "READY": "between transactions"}.get(
            verb, f"before the reply to {verb}"
        )

    def _happened(self) -> list[Event]:
        events, self._state.events = self._state.events, []
        return events


_ABOUT = {"": "the connection", ".": "the message"}

# How long each command's reply may take.
_DEADLINES = {
    "": "greeting",
    "EHLO": "hello",
    "LHLO": "hello",
    "HELO": "hello",
    "STARTTLS": "hello",
    "AUTH": "login",
    "RSET": "mail",
    "MAIL": "mail",
    "RCPT": "rcpt",
    "DATA": "data",
    "BDAT": "end",
    ".": "end",
    "QUIT": "quit",
}
