"""The AUTH command and the exchange that follows it (RFC 4954)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from elemta.smtp import replies
from elemta.smtp.events import Authenticated, AuthQuestion, CredentialsQuestion, Refuse, Response
from elemta.smtp.framing import LineFault
from elemta.smtp.reply import Reply
from elemta.smtp.sasl import MECHANISMS, Challenge, Credentials, Step, decode_response
from elemta.smtp.session_state import ExpectedInput, SessionState

_VERB = "AUTH"


@dataclass(frozen=True, slots=True)
class AuthCommand:
    """``response`` is the initial response in base64, ``=`` for an empty one, None when there is none."""

    mechanism: str
    response: str | None

    def __repr__(self) -> str:
        return f"AuthCommand({self.mechanism!r}, ...)"


def parse_auth(argument: str) -> AuthCommand | Reply:
    words = argument.split()
    if not words or len(words) > 2:
        return replies.AUTH_SYNTAX
    return AuthCommand(words[0].upper(), words[1] if len(words) == 2 else None)


def check_auth(session: SessionState, command: AuthCommand) -> Reply | None:
    settings = session.settings
    if not settings.auth:
        return replies.NOT_IMPLEMENTED
    # RFC 4954 §4: no second AUTH
    if session.facts.user is not None:
        return replies.ALREADY_AUTHENTICATED
    if settings.auth_needs_tls and session.facts.tls is None:
        return replies.AUTH_NEEDS_TLS
    if command.mechanism not in MECHANISMS:
        return replies.AUTH_UNKNOWN_MECHANISM
    return None


def begin_exchange(session: SessionState, command: AuthCommand) -> None:
    """Begin the exchange, with the initial response when there is one."""
    if session.auth_failures >= session.settings.max_auth_failures:
        session.reply_and_close(_VERB, replies.TOO_MANY_AUTH_FAILURES, "too many failed authentications")
        return
    exchange = session.exchange = MECHANISMS[command.mechanism]()
    if command.response is None:
        _go_on(session, exchange.start())
    else:
        # RFC 4954 §4: "=" is an initial response of no octets
        _respond(session, b"" if command.response == "=" else command.response.encode("utf-8"))


def take_response(session: SessionState, line: bytes | LineFault) -> None:
    """One line of the exchange."""
    if line is LineFault.TOO_LONG:
        _fail(session, replies.AUTH_TOO_LONG)
    elif line == b"*":
        # RFC 4954 §4
        _fail(session, replies.AUTH_CANCELLED)
    elif isinstance(line, bytes):
        _respond(session, line)


def _respond(session: SessionState, encoded: bytes) -> None:
    # Some clients send a blank behind it, which has one meaning.
    response = decode_response(encoded.rstrip(b" \t"))
    if response is None or session.exchange is None:
        _fail(session, replies.AUTH_MALFORMED)
    else:
        _go_on(session, session.exchange.respond(response))


def _go_on(session: SessionState, step: Step) -> None:
    if isinstance(step, Challenge):
        session.reading = ExpectedInput.AUTH
        session.reply(_VERB, replies.challenge(step.text))
    elif isinstance(step, Credentials):
        _end_exchange(session)
        question = CredentialsQuestion(session.facts, step.username, step.password)
        session.ask(question, partial(_credentials_judged, session))
    else:
        _fail(session, step)


def _fail(session: SessionState, reply: Reply) -> None:
    _end_exchange(session)
    if reply is replies.AUTH_FAILED:
        session.auth_failures += 1
    session.protocol_error(_VERB, reply)


def _end_exchange(session: SessionState) -> None:
    session.exchange = None
    session.reading = ExpectedInput.COMMAND


def _credentials_judged(session: SessionState, answer: Response) -> None:
    if isinstance(answer, Authenticated):
        session.facts.user = answer.user
        session.ask(AuthQuestion(session.facts), partial(_policies_asked, session))
    elif isinstance(answer, Refuse):
        # Local trouble is not the client's failure
        if not answer.reply.is_transient:
            session.auth_failures += 1
        session.refuse(_VERB, answer)
    else:
        raise TypeError(f"credentials are answered by Authenticated or Refuse, not {answer!r}")


def _policies_asked(session: SessionState, answer: Response) -> None:
    if isinstance(answer, Refuse):
        session.facts.user = None
        session.refuse(_VERB, answer)
    else:
        session.reply(_VERB, replies.AUTHENTICATED)
