"""Every behaviour of a next hop at every point: what arrives, which notices go out, and what is tried again.

One table says it all. Each of its cells is a message for three recipients to a next hop of its own; all of
them are delivered at the same time by one service over real sockets, three times over: as new messages, as
messages that are late, and as messages that have reached the end of their time.
"""

from __future__ import annotations

import email
import email.policy
import socket
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.interfaces import IPullProducer
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.task import deferLater
from zope.interface import implementer

from elemta.address import Address
from elemta.config import RouteTLS
from elemta.delivery import Retries
from elemta.delivery.routes import MaildirRoute, NextHopRoute, Placeholder, Route
from elemta.envelope import Client, MailParameters
from elemta.outcome import Status
from elemta.runtime import Runtime
from elemta.smtp.client import ClientTimeouts
from elemta.smtp.sasl import Credentials
from elemta.spool import MessageState, Spool, SpoolSettings, Submission
from tests.support.certificates import CertificateFiles, make_certificate
from tests.support.post import BODY, TRACE, Hop, HopSession, Post, reactor, recipient

# A row is a point of the conversation, a column what the next hop does there. A cell has a sign for each of
# the three recipients: + delivered, ~ deferred, - failed; behind them the number of connections if not 1.
#
# right, wrong  the reply that belongs there; a positive one that does not (250 for 354, 354 for all others)
# 4xx, 5xx      450 and 550; at RCPT and in LMTP only for the second of the three
# flood         one line of 100 MB
# endless       "250-" lines without an end
# twice         the right reply twice: once before the next command, or in the clear before TLS
TABLE = """
                   right  wrong  4xx  5xx  421  521  close RST  stall  flood endless  999  garbage twice
connect            .      .      .    .    .    .    .     ~~~0 ~~~0   .     .        .    .       .
greeting           +++    ~~~    ~~~  ~~~  ~~~  ---  ~~~   ~~~  ~~~    ~~~   ~~~      ~~~  ~~~     ~~~
EHLO               +++    ~~~    ~~~  +++  ~~~  +++  ~~~   ~~~  ~~~    ~~~   ~~~      ~~~  ~~~     ~~~
HELO               +++    ~~~    ~~~  ~~~  ~~~  ---  ~~~   ~~~  ~~~    ~~~   ~~~      ~~~  ~~~     ~~~
STARTTLS-may       +++    +++    +++  +++  +++2 +++  +++2  +++2 +++2   +++2  +++2     +++2 +++2    ~~~
handshake-may      +++    +++2   +++2 +++2 +++2 +++2 +++2  +++2 +++2   +++2  +++2     +++2 +++2    +++2
STARTTLS-require   +++    ~~~    ~~~  ~~~  ~~~  ~~~  ~~~   ~~~  ~~~    ~~~   ~~~      ~~~  ~~~     ~~~
handshake-require  +++    ~~~    ~~~  ~~~  ~~~  ~~~  ~~~   ~~~  ~~~    ~~~   ~~~      ~~~  ~~~     ~~~
AUTH               +++    ~~~    ~~~  ~~~  ~~~  ~~~  ~~~   ~~~  ~~~    ~~~   ~~~      ~~~  ~~~     ~~~
MAIL               +++    ~~~    ~~~  ---  ~~~  ---  ~~~   ~~~  ~~~    ~~~   ~~~      ~~~  ~~~     ~~~
RCPT               +++    ~~~    +~+  +-+  ~~~  +-+  ~~~   ~~~  ~~~    ~~~   ~~~      ~~~  ~~~     ~~~
DATA               +++    ~~~    ~~~  ---  ~~~  ---  ~~~   ~~~  ~~~    ~~~   ~~~      ~~~  ~~~     ~~~
content            ~~~    ~~~    ~~~  ~~~  ~~~  ~~~  ~~~   ~~~  ~~~    ~~~   ~~~      ~~~  ~~~     ~~~
dot                +++    ~~~    ~~~  ---  ~~~  ---  ~~~   ~~~  ~~~    ~~~   ~~~      ~~~  ~~~     +++
BDAT               +++    ~~~    ~~~  ---  ~~~  ---  ~~~   ~~~  ~~~    ~~~   ~~~      ~~~  ~~~     +++
LMTP-dot           +++    +~~    +~+  +-+  +~~  +-+  +~~   +~~  +~~    +~~   +~~      +~~  +~~     +++
QUIT               +++    +++    +++  +++  +++  +++  +++   +++  +++    +++   +++      +++  +++     +++
"""

NAMES = ("ann", "bob", "cat")
SIGNS = {Status.DELIVERED: "+", Status.DEFERRED: "~", Status.FAILED: "-"}
RETRY = 3600.0
SHORTEST_PROBE = 540.0  # of a destination that is down
WARN_AFTER = 10_000.0
EXPIRE = 100_000.0
AGES = {"new": 0.0, "late": WARN_AFTER + 60.0, "expired": EXPIRE + 60.0}
FLOOD = 100_000_000
GARBAGE = bytes(range(256)) * 4 + b"\r\n"
# What the kernel can't take in one go while the hop does not read, so that the content does not end.
LARGE = b"Subject: large\r\n\r\n" + b"x" * 76 + b"\r\n"
LARGE += b"0123456789" * 7 + b"\r\n"
LARGE_BODY = LARGE + (b"y" * 998 + b"\r\n") * 1500


def read_table() -> dict[str, dict[str, str]]:
    """The cells by row and column."""
    lines = [line.split() for line in TABLE.strip().splitlines()]
    behaviours = lines[0]
    rows = {}
    for name, *cells in lines[1:]:
        assert len(cells) == len(behaviours), name
        rows[name] = {each: cell for each, cell in zip(behaviours, cells, strict=True) if cell != "."}
    return rows


ROWS = read_table()


@implementer(IPullProducer)
class Flood:
    """Writes as fast as it is read, until so many octets or the end of the connection."""

    def __init__(self, transport: Any, piece: bytes, octets: int) -> None:
        self.transport = transport
        self.piece = piece
        self.octets = octets
        self.written = 0

    def resumeProducing(self) -> None:
        if self.written >= self.octets:
            self.transport.unregisterProducer()
            return
        self.written += len(self.piece)
        self.transport.write(self.piece)

    def stopProducing(self) -> None:
        pass


@dataclass
class HostileHop(Hop):
    """A next hop that behaves until it comes to its point, and there as its behaviour says, once."""

    point: str = ""
    behaviour: str = "right"
    certificate: CertificateFiles | None = None
    connections: int = 0
    floods: list[Flood] = field(default_factory=list)

    def buildProtocol(self, addr: object) -> HostileSession:
        self.connections += 1
        return HostileSession(self)

    @property
    def octets_flooded(self) -> int:
        return sum(flood.written for flood in self.floods)


class HostileSession(HopSession):
    hop: HostileHop
    verb_count = 0
    raw = False
    deaf = False
    chunk = 0
    last = False

    def say(self, verb: str, default: bytes) -> bytes:
        if verb == "." and self.hop.lmtp:
            return self.say_each(default)
        if not self.is_the_point(verb):
            return super().say(verb, default)
        self.misbehave(default)
        return default if self.hop.behaviour in ("right", "twice") else b"(it misbehaved)"

    def is_the_point(self, verb: str) -> bool:
        if verb != {"greeting": "", "dot": "."}.get(self.hop.point, self.hop.point):
            return False
        self.verb_count += 1
        return verb != "RCPT" or self.verb_count == 2

    def say_each(self, default: bytes) -> bytes:
        """The replies of LMTP to the dot; the point is the second."""
        for number in range(1, len(NAMES) + 1):
            if number == 2 and self.hop.behaviour == "RST":
                self.misbehave_after_turns(20)
            elif number == 2:
                self.misbehave(b"250 2.0.0 ok\r\n")
            elif number == 1 or self.hop.behaviour in ("right", "wrong", "4xx", "5xx", "521", "999", "twice"):
                self.transport.write(b"250 2.0.0 ok\r\n")
        return default

    def misbehave_after_turns(self, turns: int) -> None:
        """Not together with the reply before it, which it would take along; in turns of the reactor."""
        if turns:
            reactor.callLater(0, self.misbehave_after_turns, turns - 1)
        else:
            self.misbehave(b"")

    def misbehave(self, default: bytes) -> None:
        behaviour = self.hop.behaviour
        replies = {
            "right": default,
            "wrong": b"250 ok\r\n" if default.startswith(b"354") else b"354 go\r\n",
            "4xx": b"450 4.2.1 not now\r\n",
            "5xx": b"550 5.7.1 never\r\n",
            "421": b"421 4.3.2 going away\r\n",
            "521": b"521 5.3.2 no mail here\r\n",
            "999": b"999 what\r\n",
            "garbage": GARBAGE,
            "twice": default * 2,
        }
        if behaviour in replies:
            self.transport.write(replies[behaviour])
        if behaviour in ("close", "421"):
            self.transport.loseConnection()
        elif behaviour == "RST":
            linger = struct.pack("ii", 1, 0)
            self.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abortConnection()
        elif behaviour in ("flood", "endless"):
            piece = b"x" * 65536 if behaviour == "flood" else b"250-and another line\r\n" * 3000
            self.transport.write(b"250 " if behaviour == "flood" else b"")
            flood = Flood(self.transport, piece, FLOOD)
            self.hop.floods.append(flood)
            self.transport.registerProducer(flood, False)

    def dataReceived(self, data: bytes) -> None:
        if self.raw:
            self.raw = False
            self.misbehave(b"220 go\r\n")
        elif self.in_data and self.hop.point == "content":
            self.misbehave(b"250 2.0.0 ok\r\n")
            if self.hop.behaviour not in ("close", "RST", "421"):
                # The hop does not read on, so that the message can't come to its end.
                self.transport.pauseProducing()
        elif self.chunk:
            self.take_chunk(data)
        elif not self.deaf:
            super().dataReceived(data)

    def command(self, line: bytes) -> None:
        verb, _, argument = line.partition(b" ")
        if verb == b"STARTTLS":
            self.start_tls()
        elif verb == b"BDAT":
            self.chunk = int(argument.split(b" ")[0])
            self.last = argument.endswith(b"LAST")
            rest, self.buffer = self.buffer, b""
            self.take_chunk(rest)
        else:
            super().command(line)

    def start_tls(self) -> None:
        if self.hop.point == "handshake" and self.hop.behaviour != "right":
            self.transport.write(b"220 go\r\n")
            self.raw = True
        elif self.say("STARTTLS", b"220 go\r\n") == b"220 go\r\n":
            assert self.hop.certificate is not None
            files = self.hop.certificate
            self.transport.startTLS(DefaultOpenSSLContextFactory(str(files.key), str(files.certificate)))

    def take_chunk(self, data: bytes) -> None:
        self.chunk -= len(data)
        assert self.chunk >= 0, "commands were sent behind a chunk before its reply"
        if self.chunk:
            return
        if not self.last:
            self.transport.write(b"250 go on\r\n")
            return
        self.hop.messages.append(b"in chunks")
        if self.hop.point == "BDAT":
            self.misbehave(b"250 2.0.0 ok\r\n")
        else:
            self.transport.write(b"250 2.0.0 ok\r\n")


@dataclass
class Cell:
    """One message to one hop, and what came of it."""

    row: str
    behaviour: str
    age: str
    number: int
    hop: HostileHop
    queue_id: str = ""
    signs: str = ""
    retry: str = ""
    told: tuple[str, ...] = ()

    @property
    def domain(self) -> str:
        return f"c{self.number}.example"

    @property
    def seen(self) -> str:
        """What came of it, to be compared with :func:`expected`."""
        connections = "" if self.hop.connections == 1 else str(self.hop.connections)
        return " ".join([f"{self.signs}{connections}", *self.told, *([self.retry] if self.retry else [])])


def expected(cell: str, age: str) -> str:
    """What is to come of a cell of the table at this age of the message: signs, notices, retry."""
    signs = cell[:3]
    by_sign = {
        sign: [name for name, each in zip(NAMES, signs, strict=True) if each == sign] for sign in "+~-"
    }
    words = [cell]
    if age == "expired" and by_sign["~"]:
        # Failed and given up recipients stand in one notice.
        gone = [name for name, each in zip(NAMES, signs, strict=True) if each != "+"]
        return f"{cell} failed:{','.join(gone)}"
    if age == "late" and by_sign["~"]:
        words.append(f"delayed:{','.join(by_sign['~'])}")
    if by_sign["-"]:
        words.append(f"failed:{','.join(by_sign['-'])}")
    if by_sign["~"]:
        words.append(f"again:{','.join(by_sign['~'])}")
    return " ".join(words)


def make_hop(row: str, behaviour: str, certificate: CertificateFiles) -> HostileHop:
    point, _, _ = row.partition("-")
    ehlo = [b"hop"]
    if point in ("STARTTLS", "handshake"):
        ehlo.append(b"STARTTLS")
    if point == "AUTH":
        ehlo.append(b"AUTH PLAIN")
    if point == "BDAT":
        ehlo.append(b"CHUNKING")
    script: dict[str, bytes | list[bytes]] = {
        "EHLO": b"".join(b"250-%s\r\n" % word for word in ehlo) + b"250 HELP\r\n",
        "AUTH": b"235 2.7.0 welcome\r\n",
    }
    if point == "HELO":
        script["EHLO"] = b"500 what?\r\n"
    return HostileHop(script, lmtp=point == "LMTP", point=point, behaviour=behaviour, certificate=certificate)


class Harness:
    """One delivery service with many hostile next hops."""

    def __init__(self, post: Post, certificate: CertificateFiles) -> None:
        self.post = post
        self.certificate = certificate
        self.cells: list[Cell] = []
        self._silent: list[socket.socket] = []

    async def add(self, row: str, behaviour: str, age: str) -> Route:
        hop = make_hop(row, behaviour, self.certificate)
        cell = Cell(row, behaviour, age, len(self.cells), hop)
        self.cells.append(cell)
        route = await self.post.listen(hop)
        port = self.post._ports[-1]
        # Little space for what is not read yet; see LARGE_BODY.
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        if row == "connect":
            await port.stopListening()
            self.post._ports.remove(port)
            route = self._silent_route(route) if behaviour == "stall" else self._dead_route(route)
        return replace(
            route,
            target=f"{route.target}#{cell.number}",
            domains=frozenset({cell.domain}),
            host="localhost" if row.endswith("-require") else route.host,
            tls=RouteTLS.REQUIRE if row.endswith("-require") else RouteTLS.MAY,
            credentials=Credentials("user", b"secret") if row == "AUTH" else None,
        )

    def _dead_route(self, route: NextHopRoute) -> NextHopRoute:
        """A port without a listener that no other process will get."""
        dead = socket.socket()
        dead.bind(("127.0.0.1", 0))
        self._silent.append(dead)
        return replace(route, port=dead.getsockname()[1])

    def _silent_route(self, route: NextHopRoute) -> NextHopRoute:
        """A port whose queue of connections is full, so that the kernel answers no client."""
        silent = socket.socket()
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        self._silent.append(silent)
        for _ in range(2):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
            self._silent.append(waiting)
        return replace(route, port=silent.getsockname()[1])

    async def send(self, cell: Cell) -> None:
        writer = self.post.spool.begin()
        writer.write(LARGE_BODY if cell.row == "content" else BODY)
        submission = Submission(
            Address(f"c{cell.number}", "senders.example"),
            tuple(recipient(f"{name}@{cell.domain}") for name in NAMES),
            MailParameters(),
            Client(session_id="S1"),
            TRACE,
            time.time() - AGES[cell.age],
        )
        cell.queue_id = (await self.post.spool.commit(writer, submission)).queue_id

    async def run(self, routes: list[Route]) -> None:
        """Deliver all of it, and note what came of each."""
        bounces = MaildirRoute(
            "maildir:",
            frozenset({"senders.example"}),
            template=(f"{self.post.directory}/told/", Placeholder.LOCAL),
            create_mailboxes=True,
        )
        for cell in self.cells:
            await self.send(cell)
        delivery = self.post.start(*routes, bounces)
        attempts = len(NAMES) * len(self.cells)
        # No message and no notice is new any more.
        await self.post.until(
            lambda: (
                len(self.post.observer.outcomes) >= attempts
                and not self.post.spool.messages[MessageState.ACTIVE]
                and not delivery.under_way
            ),
            150.0,
        )
        for cell in self.cells:
            await self.note(cell)

    async def note(self, cell: Cell) -> None:
        outcomes = [each for each in self.post.observer.outcomes if each.queue_id == cell.queue_id]
        by_name = {each.recipient.local: SIGNS[each.status] for each in outcomes}
        cell.signs = "".join(by_name[name] for name in NAMES)
        cell.told = tuple(sorted(self.notices(cell)))
        if cell.queue_id in await self._queued():
            message = (await self.post.show(cell.queue_id)).message
            names = ",".join(sorted(each.address.local for each in message.pending))
            wait = message.next_attempt_at - max(each.at for each in outcomes)
            if message.state is MessageState.DEFERRED and SHORTEST_PROBE - 1 <= wait <= RETRY * 1.1 + 30:
                cell.retry = f"again:{names}"
            else:
                cell.retry = f"{message.state.value}:{names} in {wait:.0f} s, {message.hold_reason}"

    async def _queued(self) -> frozenset[str]:
        found: list[str] = []
        after: Any = None
        while page := await self.post.spool.list(limit=500, after=after):
            found += [each.queue_id for each in page]
            after = page[-1].queue_id
        return frozenset(found)

    def notices(self, cell: Cell) -> Iterator[str]:
        """What the sender's notices say: ``failed:ann,bob``, one for each notice."""
        directory = self.post.directory / "told" / f"c{cell.number}" / "new"
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            report: Any = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            assert report.get_content_type() == "multipart/report"
            assert report["Return-Path"] == "<>"
            blocks = report.get_payload()[1].get_payload()[1:]
            actions = {block["Action"] for block in blocks}
            names = ",".join(
                sorted(block["Final-Recipient"].split(";")[1].strip().split("@")[0] for block in blocks)
            )
            yield f"{'/'.join(sorted(actions))}:{names}"

    def end(self) -> None:
        for cell in self.cells:
            for session in list(cell.hop.sessions):
                session.transport.resumeProducing()
                session.transport.abortConnection()
        for each in self._silent:
            each.close()


@asynccontextmanager
async def registry(directory: Path, **settings: Any) -> AsyncIterator[Harness]:
    spool = await Spool.open(SpoolSettings(directory / "spool", minimum_free=0), runtime=Runtime.of(reactor))
    post = Post(directory, spool)
    post.settings = replace(
        post.settings,
        retries=Retries((RETRY,), expire=EXPIRE),
        warn_after=WARN_AFTER,
        max_messages=2000,
        keep_idle=0.05,
        connect_timeout=30.0,
        # A slow machine is still delivering then, and a scan would tell the senders of what is late.
        poll=120.0,
        **settings,
    )
    opened = Harness(post, make_certificate(directory, "localhost"))
    try:
        yield opened
    finally:
        opened.end()
        await post.stop()
        await spool.close()
        await deferLater(reactor, 0)


#: What stalls needs short deadlines, and everything else long ones, or a slow machine would see them pass.
SHORT = ClientTimeouts(
    greeting=3.0, hello=3.0, handshake=3.0, login=3.0, mail=3.0, rcpt=3.0, data=3.0, block=3.0
)
Seen = dict[str, dict[str, dict[str, str]]]


async def deliver_all(directory: Path) -> Seen:
    """What came of every cell of the table, by age, row and column."""
    seen: Seen = {age: {row: {} for row in ROWS} for age in AGES}
    for stalls in (False, True):
        short: dict[str, Any] = {"deadlines": replace(SHORT, end=3.0, quit=3.0)} if stalls else {}
        part = directory / ("stalls" if stalls else "others")
        part.mkdir()
        async with registry(part, **short) as opened:
            if stalls:
                opened.post.settings = replace(opened.post.settings, connect_timeout=3.0)
            routes = [
                await opened.add(row, behaviour, age)
                for age in AGES
                for row, cells in ROWS.items()
                for behaviour in cells
                if (behaviour == "stall" and row != "QUIT") is stalls
            ]
            await opened.run(routes)
            for cell in opened.cells:
                seen[cell.age][cell.row][cell.behaviour] = cell.seen
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    directory = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        # So that the certificate of the next hops, which is its own authority, is trusted by the system.
        patch.setenv("SSL_CERT_FILE", str(directory / "others" / "certificate.pem"))
        yield pytest_twisted.blockon(ensure(deliver_all(directory)))


def ensure(coroutine: Any) -> Any:
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(coroutine)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("age", AGES)
def test_what_a_next_hop_does_there_is_for_the_recipients_and_their_sender(
    seen: Seen, age: str, row: str
) -> None:
    cells = ROWS[row]
    assert seen[age][row] == {behaviour: expected(cell, age) for behaviour, cell in cells.items()}


@pytest.mark.timeout(300)
@ensureDeferred
async def test_what_never_ends_costs_neither_memory_nor_time(tmp_path: Path) -> None:
    async with registry(tmp_path) as opened:
        routes = [
            await opened.add(row, behaviour, "new")
            for row in ("greeting", "EHLO", "MAIL", "RCPT", "dot")
            for behaviour in ("flood", "endless")
            for _ in range(4)
        ]
        tracemalloc.start()
        try:
            await opened.run(routes)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert {cell.signs for cell in opened.cells} == {"~~~"}
        # What was said and not read lay in the kernel's buffers.
        assert all(0 < cell.hop.octets_flooded < FLOOD / 4 for cell in opened.cells)
        assert peak < 16_000_000
