"""The AUTH command and the exchange that follows it (RFC 4954)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from elemta.smtp import replies
from elemta.smtp.dialogue import Dialogue, Reading
from elemta.smtp.events import Answer, Authenticated, AuthQuestion, CredentialsQuestion, Refuse
from elemta.smtp.framing import LineFault
from elemta.smtp.reply import Reply
from elemta.smtp.sasl import MECHANISMS, Challenge, Credentials, Step, decode_response

_VERB = "AUTH"


@dataclass(frozen=True, slots=True)
class AuthCommand:
    """``response`` is the initial response in base64, ``=`` for an empty one, None when there is none."""

    mechanism: str
    response: str | None

    def __repr__(self) -> str:
        return f"AuthCommand({self.mechanism!r}, ...)"


def parse_auth(argument: str) -> AuthCommand | Reply:
    words = argument.split(" ")
    if not words[0] or len(words) > 2:
        return replies.AUTH_SYNTAX
    return AuthCommand(words[0].upper(), words[1] if len(words) == 2 else None)


def check_auth(dialogue: Dialogue, command: AuthCommand) -> Reply | None:
    settings = dialogue.settings
    if not settings.auth:
        return replies.NOT_IMPLEMENTED
    # RFC 4954 §4: no second AUTH
    if dialogue.facts.user is not None:
        return replies.ALREADY_AUTHENTICATED
    if settings.auth_needs_tls and dialogue.facts.tls is None:
        return replies.AUTH_NEEDS_TLS
    if command.mechanism not in MECHANISMS:
        return replies.AUTH_UNKNOWN_MECHANISM
    return None


def begin_exchange(dialogue: Dialogue, command: AuthCommand) -> None:
    """Begin the exchange, with the initial response when there is one."""
    if dialogue.auth_failures >= dialogue.settings.max_auth_failures:
        dialogue.say_goodbye(_VERB, replies.TOO_MANY_AUTH_FAILURES, "too many failed authentications")
        return
    exchange = dialogue.exchange = MECHANISMS[command.mechanism]()
    if command.response is None:
        _go_on(dialogue, exchange.start())
    else:
        # RFC 4954 §4: "=" is an initial response of no octets
        _respond(dialogue, b"" if command.response == "=" else command.response.encode("utf-8"))


def take_response(dialogue: Dialogue, line: bytes | LineFault) -> None:
    """One line of the exchange."""
    if line is LineFault.TOO_LONG:
        _fail(dialogue, replies.AUTH_TOO_LONG)
    elif line == b"*":
        # RFC 4954 §4
        _fail(dialogue, replies.AUTH_CANCELLED)
    elif isinstance(line, bytes):
        _respond(dialogue, line)


def _respond(dialogue: Dialogue, encoded: bytes) -> None:
    response = decode_response(encoded)
    if response is None or dialogue.exchange is None:
        _fail(dialogue, replies.AUTH_MALFORMED)
    else:
        _go_on(dialogue, dialogue.exchange.respond(response))


def _go_on(dialogue: Dialogue, step: Step) -> None:
    if isinstance(step, Challenge):
        dialogue.reading = Reading.AUTH
        dialogue.say(_VERB, replies.challenge(step.text))
    elif isinstance(step, Credentials):
        _end_exchange(dialogue)
        question = CredentialsQuestion(dialogue.facts, step.username, step.password)
        dialogue.ask(question, partial(_credentials_judged, dialogue))
    else:
        _fail(dialogue, step)


def _fail(dialogue: Dialogue, reply: Reply) -> None:
    _end_exchange(dialogue)
    if reply is replies.AUTH_FAILED:
        dialogue.auth_failures += 1
    dialogue.fault(_VERB, reply)


def _end_exchange(dialogue: Dialogue) -> None:
    dialogue.exchange = None
    dialogue.reading = Reading.COMMAND


def _credentials_judged(dialogue: Dialogue, answer: Answer) -> None:
    if isinstance(answer, Authenticated):
        dialogue.facts.user = answer.user
        dialogue.ask(AuthQuestion(dialogue.facts), partial(_policies_asked, dialogue))
    elif isinstance(answer, Refuse):
        # Local trouble is not the client's failure
        if not answer.reply.is_transient:
            dialogue.auth_failures += 1
        dialogue.refuse(_VERB, answer)
    else:
        raise TypeError(f"credentials are answered by Authenticated or Refuse, not {answer!r}")


def _policies_asked(dialogue: Dialogue, answer: Answer) -> None:
    if isinstance(answer, Refuse):
        dialogue.facts.user = None
        dialogue.refuse(_VERB, answer)
    else:
        dialogue.say(_VERB, replies.AUTHENTICATED)
