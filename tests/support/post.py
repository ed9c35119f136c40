"""Delivery with its real parts: a spool on disk, a scripted next hop on loopback."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from elemta.address import Address
from elemta.delivery import DeliveryScheduler, DeliverySettings, Retries
from elemta.delivery.routes import HoldRoute, NextHopRoute, Route
from elemta.envelope import Client, Envelope, MailParameters, Recipient
from elemta.outcome import Outcome
from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.runtime import Runtime
from elemta.spool import MessageRecord, MessageState, Spool, Submission
from tests.support.waiting import until

reactor: Any = _reactor
CLOSE = b"<close>"
STALL = b"<stall>"
ENDLESS = b"<endless>"
BODY = b"Subject: hello\r\n\r\n.one\r\n..two\r\n"
TRACE = b"Received: from a\r\n\tby b; now\r\n"


def recipient(text: str) -> Recipient:
    local, _, domain = text.rpartition("@")
    return Recipient(Address(local, domain))


@dataclass
class Hop(Factory):
    """A next hop that answers each verb by its script; a list is used up, a single answer repeats.

    ``""`` is the greeting, ``"."`` the end of the message (for LMTP the answers of all recipients).
    """

    script: dict[str, bytes | list[bytes]] = field(default_factory=dict)
    lmtp: bool = False
    heard: list[bytes] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    sessions: list[HopSession] = field(default_factory=list)
    most_sessions: int = 0

    def buildProtocol(self, addr: object) -> HopSession:
        return HopSession(self)

    def answer(self, verb: str, default: bytes) -> bytes:
        answer = self.script.get(verb, default)
        return answer.pop(0) if isinstance(answer, list) else answer


class HopSession(Protocol):
    def __init__(self, hop: Hop) -> None:
        self.hop = hop
        self.buffer = b""
        self.in_data = False
        self.accepted = 0

    def connectionMade(self) -> None:
        self.hop.sessions.append(self)
        self.hop.most_sessions = max(self.hop.most_sessions, len(self.hop.sessions))
        self.say("", b"220 hop\r\n")

    def connectionLost(self, reason: object = None) -> None:
        self.hop.sessions.remove(self)

    def say(self, verb: str, default: bytes) -> bytes:
        answer = self.hop.answer(verb, default)
        if answer == CLOSE:
            self.transport.loseConnection()
        elif answer == ENDLESS:
            self.drip()
        elif answer != STALL:
            self.transport.write(answer)
        return answer

    def drip(self) -> None:
        if self in self.hop.sessions:
            self.transport.write(b"250-and another line\r\n" * 1000)
            reactor.callLater(0, self.drip)

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        while True:
            end = b"\r\n.\r\n" if self.in_data else b"\r\n"
            whole = b"\r\n" + self.buffer if self.in_data else self.buffer
            head, found, rest = whole.partition(end)
            if not found:
                return
            self.buffer = rest
            if self.in_data:
                self.in_data = False
                self.hop.messages.append(head[2:] + b"\r\n")
                self.say(".", b"250 2.0.0 ok\r\n" * (self.accepted if self.hop.lmtp else 1))
            else:
                self.command(head)

    def command(self, line: bytes) -> None:
        self.hop.heard.append(line)
        verb = line.split(b" ")[0].upper().decode()
        defaults = {
            "EHLO": b"250 hop\r\n",
            "LHLO": b"250-hop\r\n250 PIPELINING\r\n",
            "AUTH": b"235 2.7.0 welcome\r\n",
            "DATA": b"354 go\r\n",
            "QUIT": b"221 bye\r\n",
        }
        if verb == "MAIL":
            self.accepted = 0
        answer = self.say(verb, defaults.get(verb, b"250 ok\r\n"))
        if verb == "RCPT" and answer.startswith(b"2"):
            self.accepted += 1
        if verb == "DATA" and answer.startswith(b"354"):
            self.in_data = True
        if verb == "QUIT":
            self.transport.loseConnection()


@dataclass
class Observer:
    """A policy that keeps the outcome of every attempt, in place of the hooks of a chain."""

    outcomes: list[Outcome] = field(default_factory=list)
    asks = False
    tells = True

    def attempted(self, outcome: Outcome, envelope: Envelope) -> None:
        self.outcomes.append(outcome)

    @property
    def hooks(self) -> DeliveryHooks:
        return cast(DeliveryHooks, self)


class Post:
    """A spool, a delivery service and as many next hops as a test wants."""

    def __init__(self, directory: Path, spool: Spool) -> None:
        self.directory = directory
        self.spool = spool
        self.observer = Observer()
        self.sender = Address("sender", "example.org")
        self.settings = DeliverySettings(
            "me.example", Retries((3600.0,)), poll=0.2, connect_timeout=5.0, grace=5.0
        )
        self.delivery: DeliveryScheduler | None = None
        self._ports: list[Any] = []

    def start(self, *routes: Route) -> DeliveryScheduler:
        # A notice to the sender stays where a test can look at it.
        bounces = HoldRoute("hold:", frozenset({"example.org"}), reason="a notice")
        routes = (bounces, *routes)
        self.delivery = DeliveryScheduler(
            Runtime.of(reactor), self.spool, routes, self.settings, hooks=self.observer.hooks
        )
        self.delivery.startService()
        return self.delivery

    async def listen(self, hop: Hop, path: Path | None = None) -> NextHopRoute:
        if path is not None:
            self._ports.append(await UNIXServerEndpoint(reactor, str(path)).listen(hop))
            return NextHopRoute(f"lmtp+unix://{path}", frozenset("*"), path=str(path), lmtp=True)
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(hop)
        self._ports.append(port)
        scheme = "lmtp" if hop.lmtp else "smtp"
        number = port.getHost().port
        return NextHopRoute(
            f"{scheme}://127.0.0.1:{number}", frozenset("*"), host="127.0.0.1", port=number, lmtp=hop.lmtp
        )

    async def send(
        self,
        *recipients: str,
        body: bytes = BODY,
        parameters: MailParameters | None = None,
        received_at: float | None = None,
    ) -> str:
        writer = self.spool.begin()
        for start in range(0, len(body), 65536):
            writer.write(body[start : start + 65536])
        submission = Submission(
            self.sender,
            tuple(recipient(text) for text in recipients),
            parameters or MailParameters(),
            Client(session_id="S1"),
            TRACE,
            time.time() if received_at is None else received_at,
        )
        return (await self.spool.commit(writer, submission)).queue_id

    async def until(self, true: Callable[[], object], seconds: float = 60.0) -> None:
        await until(true, patience=seconds)

    async def idle(self, attempts: int = 1) -> None:
        """Wait until so many attempts were made and recorded."""
        delivery = self.delivery
        assert delivery is not None
        await self.until(lambda: len(self.observer.outcomes) >= attempts and not delivery.under_way)

    async def queued(self) -> list[str]:
        """What waits, but for notices."""
        return [summary.queue_id for summary in await self.spool.list() if summary.sender]

    async def bounces(self) -> list[str]:
        """The notices to senders, as text."""
        texts = []
        for summary in await self.spool.list():
            if not summary.sender:
                with await self.spool.open_content(summary.queue_id) as content:
                    texts.append(content.read().decode())
        return texts

    async def show(self, queue_id: str) -> MessageRecord:
        return await self.spool.show(queue_id)

    async def reached(self, queue_id: str, state: MessageState) -> MessageRecord:
        """The message once it has this state."""
        for _ in range(4000):
            record = await self.spool.show(queue_id)
            if record.message.state is state:
                return record
            await deferLater(reactor, 0.005)
        raise AssertionError(f"{queue_id} never became {state}")

    async def stop(self) -> None:
        if self.delivery is not None and self.delivery.running:
            await self.delivery.stopService()
        for port in self._ports:
            await port.stopListening()


def files(directory: Path) -> Sequence[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())
