"""The commands: one table of verb, parse, the states it is allowed in, the stage it asks, and its effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from elemta.smtp import authentication, grammar, mailing, replies
from elemta.smtp.dialogue import Dialogue, Reading, State
from elemta.smtp.events import Answer, HeloQuestion, Proceed, Refuse, StageQuestion, StartTLS
from elemta.smtp.reply import Reply
from elemta.smtp.sasl import MECHANISMS
from elemta.smtp.settings import SessionSettings

_ANY = frozenset(State)
_OUTSIDE_TRANSACTION = frozenset({State.READY})


def _nothing_to_check(dialogue: Dialogue, arguments: Any) -> Reply | None:  # noqa: ARG001
    return None


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table; every function but ``parse`` gets the dialogue and what ``parse`` made.

    ``perform`` goes from left to right: parse, allowed in this state, ``check``, then ``question`` to the
    policies where there is one, then ``effect``. `rebuffed` answers what was malformed (then it gets None)
    or not allowed, and ``refused`` is what a refusal by the shell has as its effect, beside the reply.
    ``is_junk``: brings no message nearer and is counted. ``ends_group``: nothing may be sent behind it
    before its reply is read.
    """

    verb: str
    parse: Callable[[str, SessionSettings], Any]
    states: frozenset[State]
    effect: Callable[[Dialogue, Any], None]
    check: Callable[[Dialogue, Any], Reply | None] = _nothing_to_check
    question: Callable[[Dialogue, Any], StageQuestion] | None = None
    refused: Callable[[Dialogue, Any, Refuse], None] | None = None
    rebuffed: Callable[[Dialogue, Any, Reply], None] | None = None
    is_junk: bool = False
    ends_group: bool = False

    def perform(self, dialogue: Dialogue, argument: str) -> None:
        """Do what the client asked, or say why not."""
        if self.is_junk and not dialogue.count_junk():
            dialogue.say_goodbye(self.verb, replies.TOO_MUCH_JUNK, "too many commands without a message")
            return
        arguments = self.parse(argument, dialogue.settings)
        if isinstance(arguments, Reply):
            self._rebuff(dialogue, None, arguments)
            return
        state = dialogue.state
        if state in self.states:
            reply = self.check(dialogue, arguments)
        else:
            reply = _out_of_sequence(self.verb, state)
        if reply is not None:
            self._rebuff(dialogue, arguments, reply)
        elif self.question is None:
            self.effect(dialogue, arguments)
        else:
            question = self.question(dialogue, arguments)
            dialogue.ask(question, partial(self._conclude, dialogue, arguments))

    def _rebuff(self, dialogue: Dialogue, arguments: Any, reply: Reply) -> None:
        if self.rebuffed is not None:
            self.rebuffed(dialogue, arguments, reply)
        else:
            dialogue.rebuff(self.verb, reply)

    def _conclude(self, dialogue: Dialogue, arguments: Any, answer: Answer) -> None:
        if isinstance(answer, Proceed):
            self.effect(dialogue, arguments)
        elif not isinstance(answer, Refuse):
            raise TypeError(f"the policies' word is Proceed or Refuse, not {answer!r}")
        elif self.refused is not None:
            self.refused(dialogue, arguments, answer)
        else:
            dialogue.refuse(self.verb, answer)


def _out_of_sequence(verb: str, state: State) -> Reply:
    """What to say to a command that is not allowed in this state."""
    if state is State.GREETED:
        return replies.HELO_FIRST
    if state is State.CHUNKS:
        # RFC 3030 §2: DATA and BDAT do not mix, and the envelope is closed by the first chunk
        return replies.CHUNKS_UNDER_WAY
    if state is State.READY:
        return replies.MAIL_FIRST
    if verb == "MAIL":
        return replies.NESTED_MAIL
    # RFC 5321 §3.3
    return replies.NO_VALID_RECIPIENTS if verb in ("DATA", "BDAT") else replies.NOT_IN_TRANSACTION


# HELO and EHLO


@dataclass(frozen=True, slots=True)
class _Hello:
    name: str
    esmtp: bool


@dataclass(slots=True)
class _Greeting:
    """A HELO under way: what the client said, and what it had said before."""

    hello: _Hello
    name_before: str = ""
    esmtp_before: bool = False


def _parse_helo(argument: str, settings: SessionSettings) -> _Greeting | Reply:  # noqa: ARG001
    name = grammar.parse_helo_name(argument)
    return replies.BAD_HELO if name is None else _Greeting(_Hello(name, esmtp=False))


def _parse_ehlo(argument: str, settings: SessionSettings) -> _Greeting | Reply:  # noqa: ARG001
    name = grammar.parse_helo_name(argument)
    return replies.BAD_HELO if name is None else _Greeting(_Hello(name, esmtp=True))


def _ask_helo(dialogue: Dialogue, greeting: _Greeting) -> HeloQuestion:
    facts = dialogue.facts
    greeting.name_before, greeting.esmtp_before = facts.helo, facts.esmtp
    facts.helo, facts.esmtp = greeting.hello.name, greeting.hello.esmtp
    return HeloQuestion(facts)


def _welcome(dialogue: Dialogue, greeting: _Greeting) -> None:
    # RFC 5321 §4.1.4: EHLO in a transaction ends it, as RSET would
    _abandon_transaction(dialogue)
    hostname = dialogue.settings.hostname
    if greeting.hello.esmtp:
        dialogue.say("EHLO", replies.hello(hostname, extensions(dialogue)))
    else:
        dialogue.say("HELO", replies.hello(hostname))


def _helo_refused(dialogue: Dialogue, greeting: _Greeting, answer: Refuse) -> None:
    # RFC 5321 §4.1.4: after a refused EHLO everything is as it was before
    facts = dialogue.facts
    facts.helo, facts.esmtp = greeting.name_before, greeting.esmtp_before
    dialogue.refuse("EHLO" if greeting.hello.esmtp else "HELO", answer)


def extensions(dialogue: Dialogue) -> list[str]:
    """The keywords of EHLO that hold at this moment."""
    settings, facts = dialogue.settings, dialogue.facts
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


def _check_starttls(dialogue: Dialogue, arguments: None) -> Reply | None:  # noqa: ARG001
    if dialogue.facts.tls is not None:
        return replies.TLS_ACTIVE
    return None if dialogue.settings.starttls else replies.NOT_IMPLEMENTED


def _start_tls(dialogue: Dialogue, arguments: None) -> None:  # noqa: ARG001
    dialogue.end_transaction(accepted=False)
    dialogue.say("STARTTLS", replies.READY_FOR_TLS)
    dialogue.reading = Reading.HANDSHAKE
    dialogue.events.append(StartTLS())


# The small ones


def _abandon_transaction(dialogue: Dialogue) -> None:
    dialogue.end_transaction(accepted=False)
    dialogue.transaction_failed = False


def _reset(dialogue: Dialogue, arguments: None) -> None:  # noqa: ARG001
    _abandon_transaction(dialogue)
    dialogue.say("RSET", replies.OK)


def _quit(dialogue: Dialogue, arguments: None) -> None:  # noqa: ARG001
    dialogue.say_goodbye("QUIT", replies.closing(dialogue.settings.hostname), "quit")


def _only_say(verb: str, reply: Reply) -> Callable[[Dialogue, Any], None]:
    def effect(dialogue: Dialogue, arguments: Any) -> None:  # noqa: ARG001
        dialogue.say(verb, reply)

    return effect


def _not_here(verb: str) -> Callable[[Dialogue, Any], None]:
    def effect(dialogue: Dialogue, arguments: Any) -> None:  # noqa: ARG001
        dialogue.fault(verb, replies.NOT_IMPLEMENTED)

    return effect


def _table(*commands: Command) -> dict[str, Command]:
    return {command.verb: command for command in commands}


# RFC 5321 §4.1.4 says which commands are allowed when; RFC 2920 §3.1 which of them end a group.
COMMANDS = _table(
    Command("EHLO", _parse_ehlo, _ANY, _welcome, question=_ask_helo, refused=_helo_refused, is_junk=True),
    Command("HELO", _parse_helo, _ANY, _welcome, question=_ask_helo, refused=_helo_refused, is_junk=True),
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
        mailing.sender_accepted,
        check=mailing.check_mail,
        question=mailing.ask_mail,
        refused=mailing.sender_refused,
        rebuffed=mailing.mail_rebuffed,
    ),
    Command(
        "RCPT",
        grammar.parse_rcpt,
        frozenset({State.MAIL, State.RCPT}),
        mailing.recipient_accepted,
        check=mailing.check_rcpt,
        question=mailing.ask_rcpt,
        refused=mailing.recipient_refused,
    ),
    Command(
        "DATA",
        grammar.no_argument,
        frozenset({State.RCPT}),
        mailing.start_data,
        question=mailing.ask_data,
        refused=mailing.data_refused,
        ends_group=True,
    ),
    Command(
        "BDAT",
        grammar.parse_bdat,
        frozenset({State.RCPT, State.CHUNKS}),
        mailing.start_chunk,
        rebuffed=mailing.chunk_rebuffed,
    ),
    Command("RSET", grammar.no_argument, _ANY, _reset, is_junk=True),
    Command("NOOP", grammar.any_argument, _ANY, _only_say("NOOP", replies.OK), is_junk=True),
    Command("VRFY", grammar.some_argument, _ANY, _only_say("VRFY", replies.CANNOT_VERIFY), is_junk=True),
    Command("EXPN", grammar.any_argument, _ANY, _not_here("EXPN")),
    Command("LHLO", grammar.any_argument, _ANY, _not_here("LHLO")),
    Command("HELP", grammar.any_argument, _ANY, _only_say("HELP", replies.HELP), is_junk=True),
    Command("QUIT", grammar.no_argument, _ANY, _quit),
)
