"""The commands: one table of verb, parse, the states it is allowed in, the stage it asks, and its effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from elemta.smtp import authentication, grammar, lenient_grammar, replies, transaction_commands
from elemta.smtp.events import HeloQuestion, Proceed, Refuse, Response, StageQuestion, StartTLS
from elemta.smtp.lenient_grammar import Reading
from elemta.smtp.reply import Reply
from elemta.smtp.sasl import MECHANISMS
from elemta.smtp.session_state import ExpectedInput, SessionPhase, SessionState
from elemta.smtp.settings import SessionSettings

_ANY = frozenset(SessionPhase)
_OUTSIDE_TRANSACTION = frozenset({SessionPhase.READY})


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table; every function but ``parse`` gets the session's state and what ``parse`` made.

    ``perform`` goes from left to right: parse, allowed in this state, ``check``, then ``question`` to the
    policies where there is one, then ``effect``. ``reject_as`` answers what was malformed (then it gets None)
    or not allowed, and ``refused`` is what a refusal by the shell has as its effect, beside the reply.
    ``read_leniently`` is asked for what ``parse`` refused, where the listener is not strict.
    ``is_idle``: brings no message nearer and is counted. ``ends_group``: nothing may be sent behind it
    before its reply is read.
    """

    verb: str
    parse: Callable[[str, SessionSettings], Any]
    states: frozenset[SessionPhase]
    effect: Callable[[SessionState, Any], None]
    check: Callable[[SessionState, Any], Reply | None] | None = None
    question: Callable[[SessionState, Any], StageQuestion] | None = None
    refused: Callable[[SessionState, Any, Refuse], None] | None = None
    reject_as: Callable[[SessionState, Any, Reply], None] | None = None
    read_leniently: Callable[[str, Reading], Any] | None = None
    is_idle: bool = False
    ends_group: bool = False

    def perform(self, session: SessionState, argument: str) -> None:
        """Do what the client asked, or say why not."""
        if self.is_idle and not session.count_idle_command():
            session.reply_and_close(
                self.verb, replies.TOO_MANY_IDLE_COMMANDS, "too many commands without a message"
            )
            return
        arguments = self.parse(argument, session.settings)
        if type(arguments) is Reply:
            arguments = self._forgive(session, argument, arguments)
            if isinstance(arguments, Reply):
                session.kinds.clear()
                self._reject(session, None, arguments)
                return
        if session.kinds:
            # What stands behind AUTH is no matter for a log.
            session.report_forgiven(self.verb, argument if self.read_leniently is not None else "")
        state = session.phase
        reply = None
        if state not in self.states:
            reply = _out_of_sequence(self.verb, state)
        elif self.check is not None:
            reply = self.check(session, arguments)
        if reply is not None:
            self._reject(session, arguments, reply)
        elif self.question is None:
            self.effect(session, arguments)
        else:
            question = self.question(session, arguments)
            if question.stage in session.settings.unasked:
                self.effect(session, arguments)
            else:
                session.ask(question, partial(self._conclude, session, arguments))

    def _forgive(self, session: SessionState, argument: str, reply: Reply) -> Any:
        """What can be meant by an argument that is not well-formed; ``reply`` where that is not clear."""
        if session.settings.strict or self.read_leniently is None:
            return reply
        how = Reading(session.settings, session.is_trusted, session.kinds)
        arguments = self.read_leniently(argument, how)
        return reply if arguments is None else arguments

    def _reject(self, session: SessionState, arguments: Any, reply: Reply) -> None:
        if self.reject_as is not None:
            self.reject_as(session, arguments, reply)
        else:
            session.reject_command(self.verb, reply)

    def _conclude(self, session: SessionState, arguments: Any, answer: Response) -> None:
        if type(answer) is Proceed:
            self.effect(session, arguments)
        elif not isinstance(answer, Refuse):
            raise TypeError(f"the policies' word is Proceed or Refuse, not {answer!r}")
        elif self.refused is not None:
            self.refused(session, arguments, answer)
        else:
            session.refuse(self.verb, answer)


def _out_of_sequence(verb: str, state: SessionPhase) -> Reply:
    """What to say to a command that is not allowed in this state."""
    if state is SessionPhase.GREETED:
        return replies.HELO_FIRST
    if state is SessionPhase.CHUNKS:
        # RFC 3030 §2: DATA and BDAT do not mix, and the envelope is closed by the first chunk
        return replies.CHUNKS_UNDER_WAY
    if state is SessionPhase.READY:
        return replies.MAIL_FIRST
    if verb == "MAIL":
        return replies.NESTED_MAIL
    # RFC 5321 §3.3
    return replies.NO_VALID_RECIPIENTS if verb in ("DATA", "BDAT") else replies.NOT_IN_TRANSACTION


# HELO and EHLO


@dataclass(frozen=True, slots=True)
class _HeloArguments:
    name: str
    esmtp: bool


@dataclass(slots=True)
class _HeloExchange:
    """A HELO under way: what the client said, and what it had said before."""

    hello: _HeloArguments
    name_before: str = ""
    esmtp_before: bool = False


def _parse_hello(esmtp: bool, argument: str, _settings: SessionSettings) -> _HeloExchange | Reply:
    name = grammar.parse_helo_name(argument)
    return replies.BAD_HELO if name is None else _HeloExchange(_HeloArguments(name, esmtp))


def _read_hello(esmtp: bool, argument: str, how: Reading) -> _HeloExchange | None:
    name = lenient_grammar.read_helo_name(argument, how.kinds)
    return None if name is None else _HeloExchange(_HeloArguments(name, esmtp))


def _hello(verb: str, *, esmtp: bool) -> Command:
    return Command(
        verb,
        partial(_parse_hello, esmtp),
        _ANY,
        _welcome,
        question=_ask_helo,
        refused=_helo_refused,
        read_leniently=partial(_read_hello, esmtp),
        is_idle=True,
    )


def _ask_helo(session: SessionState, greeting: _HeloExchange) -> HeloQuestion:
    facts = session.facts
    greeting.name_before, greeting.esmtp_before = facts.helo, facts.esmtp
    facts.helo, facts.esmtp = greeting.hello.name, greeting.hello.esmtp
    return HeloQuestion(facts)


def _welcome(session: SessionState, greeting: _HeloExchange) -> None:
    # RFC 5321 §4.1.4: EHLO in a transaction ends it, as RSET would
    _abandon_transaction(session)
    hostname = session.settings.hostname
    if greeting.hello.esmtp:
        session.reply("EHLO", replies.hello(hostname, tuple(extensions(session))))
    else:
        session.reply("HELO", replies.hello(hostname))


def _helo_refused(session: SessionState, greeting: _HeloExchange, answer: Refuse) -> None:
    # RFC 5321 §4.1.4: after a refused EHLO everything is as it was before
    facts = session.facts
    facts.helo, facts.esmtp = greeting.name_before, greeting.esmtp_before
    session.refuse("EHLO" if greeting.hello.esmtp else "HELO", answer)


def extensions(session: SessionState) -> list[str]:
    """The keywords of EHLO that hold at this moment."""
    settings, facts = session.settings, session.facts
    offered = [
        "PIPELINING",
        f"SIZE {settings.max_message_size}",
        "8BITMIME",
        "SMTPUTF8",
        "ENHANCEDSTATUSCODES",
        "CHUNKING",
        "DSN",
    ]
    # RFC 3207 §4.2: not offered again once TLS is active
    if settings.starttls and facts.tls is None:
        offered.append("STARTTLS")
    if settings.auth and facts.user is None and (facts.tls is not None or not settings.auth_needs_tls):
        offered.append("AUTH " + " ".join(MECHANISMS))
    return offered


# STARTTLS, AUTH


def _check_starttls(session: SessionState, _arguments: None) -> Reply | None:
    if session.facts.tls is not None:
        return replies.TLS_ACTIVE
    return None if session.settings.starttls else replies.NOT_IMPLEMENTED


def _start_tls(session: SessionState, _arguments: None) -> None:
    session.end_transaction(accepted=False)
    session.reply("STARTTLS", replies.READY_FOR_TLS)
    session.reading = ExpectedInput.HANDSHAKE
    session.events.append(StartTLS())


# The small ones


def _abandon_transaction(session: SessionState) -> None:
    session.end_transaction(accepted=False)
    session.transaction_failed = False


def _reset(session: SessionState, _arguments: None) -> None:
    _abandon_transaction(session)
    session.reply("RSET", replies.OK)


def _quit(session: SessionState, _arguments: None) -> None:
    session.reply_and_close("QUIT", replies.closing(session.settings.hostname), "quit")


def _only_say(verb: str, reply: Reply) -> Callable[[SessionState, Any], None]:
    def effect(session: SessionState, _arguments: Any) -> None:
        session.reply(verb, reply)

    return effect


def _not_here(verb: str) -> Callable[[SessionState, Any], None]:
    def effect(session: SessionState, _arguments: Any) -> None:
        session.protocol_error(verb, replies.NOT_IMPLEMENTED)

    return effect


def _table(*commands: Command) -> dict[str, Command]:
    return {command.verb: command for command in commands}


# RFC 5321 §4.1.4 says which commands are allowed when; RFC 2920 §3.1 which of them end a group.
COMMANDS = _table(
    _hello("EHLO", esmtp=True),
    _hello("HELO", esmtp=False),
    Command("STARTTLS", grammar.no_argument, _ANY, _start_tls, check=_check_starttls, ends_group=True),
    Command(
        "AUTH",
        lambda argument, _: authentication.parse_auth(argument),
        _OUTSIDE_TRANSACTION,
        authentication.begin_exchange,
        check=authentication.check_auth,
    ),
    Command(
        "MAIL",
        grammar.parse_mail,
        _OUTSIDE_TRANSACTION,
        transaction_commands.sender_accepted,
        check=transaction_commands.check_mail,
        question=transaction_commands.ask_mail,
        refused=transaction_commands.sender_refused,
        reject_as=transaction_commands.mail_rejected,
        read_leniently=lenient_grammar.read_mail,
    ),
    Command(
        "RCPT",
        grammar.parse_rcpt,
        frozenset({SessionPhase.MAIL, SessionPhase.RCPT}),
        transaction_commands.recipient_accepted,
        check=transaction_commands.check_rcpt,
        question=transaction_commands.ask_rcpt,
        refused=transaction_commands.recipient_refused,
        read_leniently=lenient_grammar.read_rcpt,
    ),
    Command(
        "DATA",
        grammar.no_argument,
        frozenset({SessionPhase.RCPT}),
        transaction_commands.start_data,
        question=transaction_commands.ask_data,
        refused=transaction_commands.data_refused,
        ends_group=True,
    ),
    Command(
        "BDAT",
        grammar.parse_bdat,
        frozenset({SessionPhase.RCPT, SessionPhase.CHUNKS}),
        transaction_commands.start_chunk,
        reject_as=transaction_commands.chunk_rejected,
    ),
    Command("RSET", grammar.no_argument, _ANY, _reset, is_idle=True),
    Command("NOOP", grammar.any_argument, _ANY, _only_say("NOOP", replies.OK), is_idle=True),
    Command("VRFY", grammar.some_argument, _ANY, _only_say("VRFY", replies.CANNOT_VERIFY), is_idle=True),
    Command("EXPN", grammar.any_argument, _ANY, _not_here("EXPN")),
    Command("LHLO", grammar.any_argument, _ANY, _not_here("LHLO")),
    Command("HELP", grammar.any_argument, _ANY, _only_say("HELP", replies.HELP), is_idle=True),
    Command("QUIT", grammar.no_argument, _ANY, _quit),
)
