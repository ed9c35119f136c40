"""The server's side of one SMTP session, without I/O, clock or await (RFC 5321 §3).

Bytes in, events and reply bytes out. ``receive`` goes on until the client must send more or a
:class:`~elemta.smtp.events.Question` is open; then what the client pipelined waits inside, in order,
until ``answer``. How much waits is :attr:`ServerSession.buffered`: the shell stops reading when it is
much, and a hard bound (``max_pipelined``) ends the session of a client whose shell does not. Nor does it
go on while the client reads no replies (:attr:`ServerSession.unread`): a reply may be thirty times as long as
its command.

How strict pipelining is taken: nothing may be behind STARTTLS (RFC 3207 §4.2), and nothing behind DATA
before its reply (RFC 2920 §3.1), or the session ends and nothing of what was behind is executed.
Behind EHLO, AUTH, VRFY and NOOP, which should end a group too, commands are let pass: they are executed
in order after it and mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from elemta.smtp import authentication, lenient_grammar, replies, transaction_commands
from elemta.smtp.commands import COMMANDS
from elemta.smtp.events import (
    ConnectQuestion,
    Event,
    PauseQuestion,
    Proceed,
    Question,
    Refuse,
    Response,
)
from elemta.smtp.framing import InputBuffer, LineFault, first_letters
from elemta.smtp.leniency import Leniency, forgive
from elemta.smtp.memory import MemoryBudget
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import SessionInfo, TLSInfo, TransactionInfo
from elemta.smtp.session_state import ExpectedInput, SessionState
from elemta.smtp.settings import SessionSettings
from elemta.smtp.trace_lines import HIDDEN, Trace, domain_in, shown_command

__all__ = ["ServerSession", "SessionSettings"]

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_HTTP = frozenset({"GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "CONNECT", "PATCH", "TRACE", "PRI"})
# RFC 8446 §5.1: a handshake record of any version begins so
_CLIENT_HELLO = b"\x16\x03"


class ServerSession:
    """One session. ``open`` once, then ``receive`` and ``answer`` until :attr:`closed`.

    Its envelopes count in the budget ``envelopes``, which all sessions of the process share.

    Every method gives the events that came of it, in order; a question is always the last. Take the
    output after acting on them. Exactly one answer per question; once closed, all input is ignored.
    """

    def __init__(
        self, settings: SessionSettings, facts: SessionInfo, envelopes: MemoryBudget | None = None
    ) -> None:
        self._settings = settings
        #: The phase, the transaction, and what is said and asked.
        self.state = SessionState(settings, facts, envelopes or MemoryBudget())
        #: What the client sent and was not looked at yet.
        self.input = InputBuffer(takes_bare_lf=not settings.strict)
        self._greeted = False
        self._talked_early = False
        self._ends_group = False
        #: Set by the shell while the client does not read: no further command is looked at.
        self.unread = False
        #: Input may be left that only waits for :meth:`go_on`: the output was long, or is unread.
        self.held_up = False

    # What there is to know

    @property
    def facts(self) -> SessionInfo:
        return self.state.facts

    @property
    def transaction(self) -> TransactionInfo | None:
        return self.state.transaction

    @property
    def question(self) -> Question | None:
        """The question that waits for an answer."""
        return self.state.question

    @property
    def buffered(self) -> int:
        """Octets of input that were not looked at yet."""
        return self.input.octets

    @property
    def input_memory(self) -> int:
        """The octets of memory that this input takes."""
        return self.input.memory

    @property
    def receiving(self) -> bool:
        """Whether a message is under way: inside DATA, or from the first chunk of BDAT to the last.

        A chunk that is only read to be refused counts too.
        """
        state = self.state
        return (state.message is not None or state.chunk is not None) and state.question is None

    @property
    def closed(self) -> bool:
        return self.state.closed

    # What happens

    def open(self) -> list[Event]:
        """The connection stands, and with implicit TLS its handshake is done: ask whether it is accepted."""
        if not self.state.closed:
            self.state.ask(ConnectQuestion(self.state.facts), self._greet)
        return self._events()

    def receive(self, data: bytes) -> list[Event]:
        """The client sent ``data``."""
        state = self.state
        if state.closed or not data:
            return []
        if state.reading is ExpectedInput.HANDSHAKE:
            # Plaintext where a handshake belongs
            state.close("input between STARTTLS and its handshake")
            return self._events()
        if not self._greeted:
            self._talked_early = True
        self.input.feed(data)
        if state.question is None and self._greeted and not (self.unread or self.held_up):
            return self.go_on()
        self.held_up |= self.unread
        if self.input.octets > self._settings.max_pipelined:
            state.reply_and_close("?", replies.TOO_MUCH_PIPELINED, "too much input behind an open question")
        return self._events()

    def answer(self, answer: Response) -> list[Event]:
        """The one answer to the open question; what was pipelined behind it goes on."""
        state = self.state
        if state.closed:
            return []
        resume = state.resume
        if resume is None:
            raise RuntimeError("there is no question to answer")
        if self._ends_group and self.input.octets and isinstance(answer, Proceed):
            self._refuse_group("DATA")
            return self._events()
        state.question = state.resume = None
        resume(answer)
        if self._ends_group and self.input.octets:
            # What is behind a refused DATA was meant as a message, or to be taken for one
            state.close("input behind DATA before its reply")
        self._ends_group = False
        return self.go_on()

    def tls_started(self, info: TLSInfo) -> list[Event]:
        """The handshake that :class:`StartTLS` asked for is done: both sides begin anew (RFC 3207 §4.2)."""
        state = self.state
        if state.reading is not ExpectedInput.HANDSHAKE:
            return []
        state.reset_after_tls()
        state.facts.tls = info
        state.reading = ExpectedInput.COMMAND
        return self._events()

    def shut(self, reply: Reply, reason: str) -> list[Event]:
        """The shell ends the session: ``reply`` is said, unless a TLS handshake is under way."""
        state = self.state
        if state.closed:
            return []
        if state.reading is not ExpectedInput.HANDSHAKE:
            state.reply("", reply, reason)
        state.close(reason)
        return self._events()

    def lost(self) -> list[Event]:
        """The client is gone."""
        state = self.state
        if state.closed:
            return []
        state.end_transaction(accepted=False)
        state.stop()
        self.input.clear()
        return self._events()

    def take_output(self) -> bytes:
        """The replies since the last call, to be sent as they are."""
        state = self.state
        taken, state.output = state.output, b""
        return taken

    def _events(self) -> list[Event]:
        state = self.state
        if state.closed:
            self.input.clear()
        events, state.events = state.events, []
        return events

    # The greeting

    def _greet(self, answer: Response) -> None:
        state = self.state
        self._greeted = True
        if isinstance(answer, Refuse):
            self._refuse_connection(answer)
        elif not isinstance(answer, Proceed):
            raise TypeError(f"a connection is answered by Proceed or Refuse, not {answer!r}")
        elif not self._settings.reject_early_talkers or self._settings.implicit_tls or state.facts.tls:
            state.reply("", replies.greeting(self._settings.hostname))
        elif self._talked_early:
            self._refuse_early_talker()
        else:
            # What the client sends at once is on its way: without a pause the network would decide.
            self._greeted = False
            pause = PauseQuestion(state.facts, self._settings.greeting_pause)
            state.ask(pause, lambda _: self._greet_if_silent())

    def _greet_if_silent(self) -> None:
        self._greeted = True
        if self._talked_early:
            self._refuse_early_talker()
        else:
            self.state.reply("", replies.greeting(self._settings.hostname))

    def _refuse_early_talker(self) -> None:
        # RFC 5321 §4.3.1: a client waits for the greeting
        self.state.reply_and_close("", replies.EARLY_TALKER, "early talker")

    def _refuse_connection(self, answer: Refuse) -> None:
        state = self.state
        reply = replies.in_place_of_greeting(answer.reply)
        reason = answer.reason or "refused"
        if reply.is_transient or answer.close or (self._talked_early and self._settings.reject_early_talkers):
            state.reply_and_close("", reply, reason)
        else:
            state.rejected_at_connect = True
            state.reply("", reply, reason)

    # The input

    def go_on(self) -> list[Event]:
        """Look at the input that is left: the output was sent, or the question that was open is answered."""
        state = self.state
        self.held_up = False
        while not state.closed:
            if self.unread:
                self.held_up = True
                break
            if state.held is not None and state.question is None:
                state.pause()
            if state.question is not None:
                break
            reading = state.reading
            if not self.input.octets and reading is not ExpectedInput.CHUNK:
                # Only a chunk may end without another octet.
                break
            if state.output and len(state.output) > self._settings.max_output:
                self.held_up = True
                break
            if reading not in _TAKEN_BY or not _TAKEN_BY[reading](self):
                break
        if state.closed:
            self.input.clear()
        events, state.events = state.events, []
        return events

    def _take_data(self) -> bool:
        block = self.input.block()
        if not block:
            return False
        self.input.consume(transaction_commands.take_data(self.state, block))
        return True

    def _take_chunk(self) -> bool:
        block = self.input.block()
        chunk = self.state.chunk
        if not block and chunk is not None and chunk.left:
            return False
        self.input.consume(transaction_commands.take_chunk(self.state, block))
        return True

    def _take_response(self) -> bool:
        settings = self._settings
        line = self.input.take_line(settings.max_auth_line, settings.max_discarded_line)
        if line is None:
            return False
        if self.input.ended_bare:
            self.input.ended_bare = False
            self.state.kinds.append(Leniency.BARE_LF)
            self.state.report_forgiven("AUTH")
        if self.state.trace is not None:
            self.state.trace.said(True, HIDDEN)
        if not self._close_for(line, "AUTH"):
            authentication.take_response(self.state, line)
        return True

    def _take_command(self) -> bool:
        settings = self._settings
        if self.state.kinds:
            # Of a line that was refused in the end
            self.state.kinds.clear()
        # Nearly every line is one.
        plain = self.input.take_plain_line(settings.max_line)
        if plain is None:
            return self._take_other_line()
        self._execute(plain)
        return True

    def _take_other_line(self) -> bool:
        """Take what is no plain line, or only the beginning of one."""
        settings = self._settings
        if self.input.begins_with(_CLIENT_HELLO):
            self.state.reply_and_close("?", replies.NOT_TLS_YET, "TLS on a plain port")
            return True
        line = self.input.take_line(settings.max_line, settings.max_discarded_line)
        if line is None:
            return False
        if self.input.ended_bare:
            self.input.ended_bare = False
            line = self._line_of_bare_lf(line)
        if isinstance(line, bytes):
            self._execute(line)
        elif not self._close_for(line, "?"):
            self._hide_line()
            self._reject_unreadable(self.input.letters_of_long_line, replies.LINE_TOO_LONG)
        return True

    def _line_of_bare_lf(self, line: bytes | LineFault) -> bytes | LineFault:
        """The line that a bare LF ended. BDAT can't end so: behind which octet would its chunk begin?"""
        if isinstance(line, bytes):
            if first_letters(line) == b"BDAT":
                return LineFault.BARE_NEWLINE
            self.state.kinds.append(Leniency.BARE_LF)
        return line

    def _reject_unreadable(self, letters: bytes, reply: Reply) -> None:
        """Answer a line that is no command, and close where what follows it may be meant as a message.

        ``letters`` are the first letters of the line.
        """
        if letters == b"BDAT":
            transaction_commands.end_at_unreadable_chunk(self.state)
        elif letters == b"DATA" and self.input.octets:
            self._refuse_group("DATA")
        else:
            self.state.protocol_error("?", reply)

    def _close_for(self, line: bytes | LineFault, verb: str) -> bool:
        """Close where the beginning of the next line is unknown."""
        if line is LineFault.BARE_NEWLINE:
            # RFC 5321 §2.3.8: what some reader takes for two lines is none here, nor is what follows
            self.state.reply_and_close(verb, replies.BARE_NEWLINE_IN_COMMAND, "line ended by a bare LF")
        elif line is LineFault.ENDLESS:
            self.state.reply_and_close(verb, replies.TOO_LONG_A_LINE, "line without an end")
        else:
            return False
        return True

    def _execute(self, line: bytes) -> None:
        state = self.state
        text, reply = None, replies.CONTROL_IN_COMMAND
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            if _CONTROL.search(line) is None:
                reply = replies.NOT_UTF8
        # What can be printed has no control in it. That is nearly every line, and soon found.
        if text is not None and not text.isprintable() and _CONTROL.search(line) is not None:
            text = None
        if text is None and not self._settings.strict:
            text = lenient_grammar.text_of(line, state.kinds)
        if text is None:
            self._hide_line()
            self._reject_unreadable(first_letters(line), reply)
            return
        verb, _, argument = text.partition(" ")
        if (not verb or argument[:1] == " ") and text and not self._settings.strict:
            # RFC 5321 §4.1.1: one blank is between verb and argument, and none before them
            forgive(state.kinds, Leniency.BLANKS)
            verb, _, argument = text.lstrip(" ").partition(" ")
            argument = argument.lstrip(" ")
        self._perform(line, verb if verb in COMMANDS else verb.upper(), argument)

    def _perform(self, line: bytes, verb: str, argument: str) -> None:
        state = self.state
        command = COMMANDS.get(verb)
        if state.trace is not None:
            self._show(state.trace, verb, argument)
        if state.rejected_at_connect and verb != "QUIT":
            # RFC 5321 §3.1
            self._reject_unreadable(first_letters(line), replies.SERVICE_REFUSED)
        elif command is None:
            if verb in _HTTP:
                state.reply_and_close("?", replies.NOT_HTTP, "HTTP on an SMTP port")
            else:
                self._reject_unreadable(first_letters(line), replies.UNKNOWN_COMMAND)
        elif command.ends_group and self.input.octets:
            self._refuse_group(verb)
        else:
            if argument[-1:] == " ":
                # RFC 5321 §4.1.1: trailing white space is tolerated
                argument = argument.rstrip(" ")
            command.perform(state, argument)
            self._ends_group = command.ends_group and state.question is not None

    def _show(self, trace: Trace, verb: str, argument: str) -> None:
        domain = domain_in(verb, argument)
        if domain is not None:
            trace.recipient(domain)
        trace.said(True, shown_command(verb, argument, known=verb in COMMANDS))

    def _hide_line(self) -> None:
        if self.state.trace is not None:
            self.state.trace.said(True, HIDDEN)

    def _refuse_group(self, verb: str) -> None:
        self.state.reply_and_close(verb, replies.IMPROPER_PIPELINING, f"input behind {verb} before its reply")


_TAKEN_BY: dict[ExpectedInput, Callable[[ServerSession], bool]] = {
    ExpectedInput.COMMAND: ServerSession._take_command,
    ExpectedInput.AUTH: ServerSession._take_response,
    ExpectedInput.DATA: ServerSession._take_data,
    ExpectedInput.CHUNK: ServerSession._take_chunk,
}
