"""The state of a client's session, and its output: what the replies of the server work on."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from elemta.outcome import Outcome, Status
from elemta.route_tls import RouteTLS
from elemta.smtp.client_commands import Features
from elemta.smtp.client_replies import ReplyReader
from elemta.smtp.client_results import (
    Hangup,
    OfferRefused,
    RecipientsLimited,
    TransactionDone,
    TransactionResults,
)
from elemta.smtp.client_settings import ClientSettings
from elemta.smtp.events import Event
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import TLSInfo
from elemta.smtp.trace_lines import Trace, shown_line


class ClientPhase(enum.Enum):
    """What the session is about now."""

    OPENING = "opening"
    HANDSHAKE = "handshake"
    READY = "ready"
    ENVELOPE = "envelope"
    CONTENT = "content"
    END = "end"
    QUITTING = "quitting"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class SentCommand:
    """A command, or what else is answered: ``""`` the connection itself, ``"."`` the end of the message."""

    verb: str
    line: bytes = b""
    recipients: tuple[int, ...] = ()

    def __repr__(self) -> str:
        # The lines of AUTH are secret.
        return f"Command({self.verb!r})"


class ClientState:
    """One session with a server: what was sent, which replies are awaited, and which results are open."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self.reader = ReplyReader()
        implicit = settings.tls is RouteTLS.IMPLICIT
        self.phase = ClientPhase.HANDSHAKE if implicit else ClientPhase.OPENING
        self.features = Features()
        #: Keywords that this server offers and that are not believed.
        self.distrusted = set(settings.ignored)
        self.most_recipients = settings.most_recipients
        self.tls: TLSInfo | None = None
        #: The server offered STARTTLS, and would not begin it.
        self.starttls_refused = False
        #: The server said that it closes the connection, and more of its replies are due before that.
        self.closing: Reply | None = None
        self.results: TransactionResults | None = None
        # What the last transaction came to
        self.outcomes: tuple[Outcome, ...] = ()
        self.again: tuple[int, ...] = ()
        self.events: list[Event] = []
        self.output: list[bytes] = []
        self.waiting: deque[SentCommand] = deque()
        self.sent: deque[SentCommand] = deque([SentCommand("")])
        self.progress = 0
        #: Gets each command and reply as a watcher may see it, while something watches.
        self.trace: Trace | None = None

    @property
    def closed(self) -> bool:
        return self.phase is ClientPhase.CLOSED

    def awaits(self, verb: str) -> bool:
        """Whether the next reply is the one to this command."""
        return bool(self.sent) and self.sent[0].verb == verb

    def offered(self, features: Features) -> None:
        """The server said what it offers."""
        self.features = features.without(self.distrusted)

    def distrust(self, keyword: str) -> None:
        """The server refused what it offers: do not believe it again."""
        if keyword not in self.distrusted:
            self.distrusted.add(keyword)
            self.features = self.features.without(self.distrusted)
            self.events.append(OfferRefused(keyword))

    def limit_recipients(self, number: int) -> None:
        """The server takes no more recipients with one envelope."""
        if number != self.most_recipients:
            self.most_recipients = number
            self.events.append(RecipientsLimited(number))

    def send_soon(self, commands: Sequence[SentCommand], most: int) -> None:
        """Say these, until so many replies are awaited; what is left waits."""
        if self.trace is None and not self.sent and len(commands) <= most:
            self.output.append(b"".join([command.line for command in commands]))
            self.sent.extend(commands)
            return
        self.waiting.extend(commands)
        self.send_waiting(most)

    def send_waiting(self, most: int) -> None:
        """Say what waits, until so many replies are awaited."""
        while self.waiting and len(self.sent) < most:
            self.send(self.waiting.popleft())

    def send(self, command: SentCommand) -> None:
        """Say a command; its reply is awaited."""
        self.output.append(command.line)
        self.sent.append(command)
        if self.trace is not None:
            self._show(self.trace, command)

    def _show(self, trace: Trace, command: SentCommand) -> None:
        text, domain = shown_line(command.verb, command.line)
        if domain is not None:
            trace.recipient(domain)
        trace.said(True, text)

    # Recipients without a result

    def result_for_rest(self, reply: Reply, verb: str, status: Status | None = None) -> None:
        """The reply to a command about all recipients; a positive one where none belongs is no success."""
        if reply.code < 400:
            self.unexpected_reply(reply, verb)
        elif self.results is not None:
            for index in self.results.pending:
                self.results.answered(index, reply, verb, status)

    def settle(self) -> None:
        """Tell the results, if a transaction was under way."""
        results, self.results = self.results, None
        if results is not None:
            self.phase = ClientPhase.READY
            self.outcomes, self.again = results.in_order(), results.again
            self.events.append(TransactionDone())

    # Ends of the session

    def refused(self, reply: Reply, what: str) -> None:
        """The server will not talk: that is about the server, so it is deferred unless it says never."""
        # RFC 7504 §4: 521 says that this host accepts no mail at all.
        status = Status.FAILED if reply.code == 521 else Status.DEFERRED
        self.result_for_rest(reply, what, status)
        self.leave(f"the next hop refused {what}: {reply}")

    def server_closing(self, reply: Reply, what: str) -> None:
        """The server said that it closes the connection."""
        self.result_for_rest(reply, what, Status.DEFERRED)
        self.close(f"the next hop is closing: {reply}")

    def unexpected_reply(self, reply: Reply, verb: str) -> None:
        """The reply makes no sense as an answer to this."""
        self.give_up(f"the next hop answered {verb} by {reply}", "4.5.0")

    def abort(self, text: str, enhanced: str) -> None:
        """We will not talk: the server does not offer what is needed, or did not take what we have."""
        self._defer(text, enhanced)
        self.leave(text)

    def give_up(self, text: str, enhanced: str) -> None:
        """The connection is of no more use: recipients without a result are deferred."""
        self._defer(text, enhanced)
        self.close(text)

    def leave(self, reason: str) -> None:
        """Close with a last word."""
        if not self.closed:
            # RFC 5321 §3.1: also a session that was refused ends by QUIT.
            self.output.append(b"QUIT\r\n")
        self.close(reason)

    def close(self, reason: str) -> None:
        """The end; whose results are open must have one by now."""
        if not self.closed:
            self.settle()
            self.phase = ClientPhase.CLOSED
            self.events.append(Hangup(reason))

    def _defer(self, text: str, enhanced: str) -> None:
        if self.results is not None:
            self.results.decided_here(self.results.pending, Status.DEFERRED, enhanced, text)
