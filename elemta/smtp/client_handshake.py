"""From the greeting to where a server takes mail: EHLO, STARTTLS, EHLO again, AUTH."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from elemta.route_tls import RouteTLS
from elemta.smtp.client_commands import Features
from elemta.smtp.client_results import CredentialsRefused
from elemta.smtp.client_state import ClientPhase, ClientState, SentCommand
from elemta.smtp.events import StartTLS
from elemta.smtp.reply import Reply
from elemta.smtp.sasl import Credentials
from elemta.smtp.session_info import TLSInfo

# RFC 5321 §4.5.3.1.4: a command line with its CRLF
_LONGEST_LINE = 512
# RFC 4954 §4, §6: the server does not know the mechanism, or not so; nothing is said of credentials.
_NOT_THIS_MECHANISM = frozenset({500, 501, 502, 504, 534})


class ClientHandshake:
    """What has to be said before the first transaction; ``ready`` is called when it was."""

    def __init__(self, state: ClientState, ready: Callable[[], None]) -> None:
        self._state = state
        self._ready = ready
        self._responses: deque[bytes] = deque()
        #: What the server says now may repeat these credentials.
        self.secrets: tuple[str, ...] = ()
        self._may_fall_back = False

    def greeted(self, _: SentCommand, reply: Reply) -> None:
        # RFC 5321 §4.3.2: the first digit decides.
        if reply.code // 100 == 2:
            self._say_hello()
        else:
            self._state.refused(reply, "the connection")

    def ehlo_answered(self, command: SentCommand, reply: Reply) -> None:
        if reply.code // 100 == 2:
            self._state.offered(Features.of(reply.lines))
            self._introduced()
        elif reply.code // 100 == 5 and command.verb == "EHLO":
            # RFC 5321 §3.2: a server that does not know EHLO is greeted by HELO.
            self._state.send(SentCommand("HELO", f"HELO {self._state.settings.hostname}\r\n".encode()))
        else:
            self._state.refused(reply, command.verb)

    def helo_answered(self, _: SentCommand, reply: Reply) -> None:
        if reply.code // 100 == 2:
            self._introduced()
        else:
            self._state.refused(reply, "HELO")

    def _say_hello(self) -> None:
        verb = "LHLO" if self._state.settings.lmtp else "EHLO"
        self._state.send(SentCommand(verb, f"{verb} {self._state.settings.hostname}\r\n".encode()))

    def _introduced(self) -> None:
        state = self._state
        wanted = state.settings.tls is not RouteTLS.NONE and state.tls is None
        if wanted and "STARTTLS" in state.features:
            state.send(SentCommand("STARTTLS", b"STARTTLS\r\n"))
        elif wanted and state.settings.tls is RouteTLS.REQUIRE:
            state.abort('the route has tls = "require", and the next hop offers no STARTTLS', "4.7.4")
        else:
            self._log_in()

    # TLS

    def starttls_answered(self, _: SentCommand, reply: Reply) -> None:
        state = self._state
        if reply.code == 220 and state.reader.pending:
            # Input in the clear behind this reply is not from the server that TLS verifies. It must not
            # count as the answer to a command under TLS.
            state.give_up("the next hop said more, in the clear, behind its reply to STARTTLS", "4.7.0")
        elif reply.code == 220:
            state.phase = ClientPhase.HANDSHAKE
            state.events.append(StartTLS())
        elif state.settings.tls is RouteTLS.REQUIRE:
            # Also 521 is about TLS here, which an operator may correct.
            state.abort(f'the route has tls = "require", and the next hop refused STARTTLS: {reply}', "4.7.4")
        else:
            state.starttls_refused = True
            self._log_in()

    def tls_started(self, info: TLSInfo) -> None:
        state = self._state
        state.tls = info
        state.progress += 1
        # RFC 3207 §4.2: nothing that the server said before counts any more.
        state.features = Features()
        state.phase = ClientPhase.OPENING
        if state.settings.tls is not RouteTLS.IMPLICIT:
            self._say_hello()

    # AUTH

    def _log_in(self) -> None:
        state = self._state
        settings, offered = state.settings, state.features.mechanisms
        if settings.credentials is None:
            self._ready()
        elif state.tls is None and not settings.plaintext_login:
            text = "the route has credentials, and they are given over TLS only, which there is not here"
            state.abort(text, "4.7.11")
        elif "PLAIN" in offered:
            self._may_fall_back = "LOGIN" in offered
            self._begin_plain(settings.credentials)
        elif "LOGIN" in offered:
            self._begin_login(settings.credentials)
        else:
            text = "the route has credentials, and the next hop offers neither AUTH PLAIN nor AUTH LOGIN"
            state.abort(text, "4.7.4")

    def _begin_plain(self, credentials: Credentials) -> None:
        # RFC 4616 §2
        response = base64.b64encode(b"\0" + credentials.username.encode() + b"\0" + credentials.password)
        self._keep_secret(credentials, response)
        line = b"AUTH PLAIN " + response + b"\r\n"
        if len(line) <= _LONGEST_LINE:
            self._say(line)
        else:
            # RFC 4954 §4: an initial response that is too long for a command waits for the challenge.
            self._responses.append(response)
            self._say(b"AUTH PLAIN\r\n")

    def _begin_login(self, credentials: Credentials) -> None:
        name = base64.b64encode(credentials.username.encode())
        password = base64.b64encode(credentials.password)
        self._keep_secret(credentials, password)
        self._responses.extend((name, password))
        self._say(b"AUTH LOGIN\r\n")

    def _keep_secret(self, credentials: Credentials, response: bytes) -> None:
        self.secrets = (response.decode(), credentials.password.decode("utf-8", "replace"))

    def _say(self, line: bytes) -> None:
        self._state.send(SentCommand("AUTH", line))

    def without_secrets(self, reply: Reply) -> Reply:
        """The reply as it may be logged: there are servers that repeat what they did not understand."""
        lines = reply.lines
        for secret in self.secrets:
            lines = tuple(line.replace(secret, "[...]") for line in lines)
        return replace(reply, lines=lines) if lines != reply.lines else reply

    def auth_answered(self, _: SentCommand, reply: Reply) -> None:
        state = self._state
        if reply.code == 334 and self._responses:
            self._say(self._responses.popleft() + b"\r\n")
            return
        self._responses.clear()
        self.secrets = ()
        credentials = state.settings.credentials
        if reply.code == 235:
            # RFC 4954 §6
            self._ready()
        elif reply.code in _NOT_THIS_MECHANISM and self._may_fall_back and credentials is not None:
            self._may_fall_back = False
            self._begin_login(credentials)
        elif reply.code >= 400:
            # Bad credentials are for our operator to correct, and say nothing about the message.
            state.events.append(CredentialsRefused(reply))
            state.abort(f"the next hop did not take the credentials of this route: {reply}", "4.7.8")
        else:
            state.unexpected_reply(reply, "AUTH")
