"""The head of a message is its first 64 KiB, however it comes, and whenever memory is scarce."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from elemta.smtp.events import (
    Event,
    MessageData,
    MessageQuestion,
    MessageStarted,
    Proceed,
    Question,
    Queued,
    Response,
)
from elemta.smtp.session import ServerSession
from elemta.smtp.session_info import SessionInfo
from elemta.spool import Disk, MessageWriter, SpoolSettings
from elemta.spool.bodies import HEAD, Bodies
from elemta.spool.leftovers import Leftovers
from elemta.spool.partition import Places
from tests.smtp.transcript import settings as session_settings
from tests.spool.mail import Counted

KIB = 1024


class DiskOfMemory(Disk):
    """Files that are octets."""

    def __init__(self) -> None:
        self.files: list[bytearray] = []
        self.fails = False

    def create(self, path: Path) -> int:
        self.files.append(bytearray())
        return len(self.files) - 1

    def write(self, descriptor: int, chunks: Sequence[bytes | bytearray]) -> None:
        if self.fails:
            raise OSError("the disk fails")
        for chunk in chunks:
            self.files[descriptor] += chunk

    def close(self, descriptor: int) -> None:
        pass

    def unlink(self, path: Path) -> None:
        pass


class Threads:
    """Does the work of a thread when the test lets it."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[..., Any], Any, Deferred[Any] | None]] = []

    def call(self, work: Callable[..., Any], *args: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.waiting.append((work, args, done))
        return done

    def start(self, work: Callable[..., Any], *args: Any) -> None:
        self.waiting.append((work, args, None))

    def work(self) -> None:
        while self.waiting:
            work, args, done = self.waiting.pop(0)
            try:
                result = work(*args)
            except OSError:
                assert done is not None
                done.errback(Failure())
            else:
                if done is not None:
                    done.callback(result)


@dataclass
class Pressed:
    """Writers of one spool whose memory is scarce when the test says so."""

    disk: DiskOfMemory = field(default_factory=DiskOfMemory)
    threads: Threads = field(default_factory=Threads)

    def __post_init__(self) -> None:
        settings = SpoolSettings(Path("/spool"), memory=10**9)
        places = Places(Path("/spool/p0"))
        self.bodies = Bodies(
            settings, places, self.disk, self.threads, Counted(), leftovers=Leftovers(self.disk)
        )  # type: ignore[arg-type]
        self._by_others = 0

    def press(self) -> None:
        """Other messages take all the memory there is, or give it back."""
        change = -self._by_others if self._by_others else 2 * 10**9
        self._by_others += change
        self.bodies.in_memory += change

    @property
    def taken(self) -> int:
        """The memory that is counted for the writers of the test."""
        return self.bodies.in_memory - self._by_others


def octets(size: int) -> bytes:
    return random.Random(size).randbytes(size)


SIZES = st.one_of(
    st.integers(1, 3), st.integers(1, 2000), st.integers(20_000, 80_000), st.sampled_from([HEAD - 1, HEAD])
)
HAPPENINGS = st.lists(
    st.one_of(SIZES, st.sampled_from(["press", "work", "look", "fail"])), min_size=1, max_size=40
)


@given(HAPPENINGS)
# 309 fields were read as 554: the head took pieces again that waited for the disk.
@example(["press", 100, 200, 300, "work", 400])
@example(["press", 100, 200, "press", 300, "work", 80_000, 5])
def test_the_head_is_the_beginning_whatever_happens_meanwhile(happenings: list[int | str]) -> None:
    pressed = Pressed()
    writer = MessageWriter("Q1", pressed.bodies)
    body = b""
    for happening in happenings:
        if isinstance(happening, int):
            piece = octets(happening)
            if writer.failure is None:
                body += piece
            writer.write(piece)
        elif happening == "press":
            pressed.press()
        elif happening == "work":
            pressed.threads.work()
        elif happening == "fail":
            pressed.disk.fails = True
        assert writer.head == body[:HEAD]
        assert pressed.taken >= len(writer.head)
    pressed.threads.work()
    assert writer.head == body[:HEAD]
    if writer.failure is None:
        assert not writer.in_file or pressed.disk.files == [bytearray(body)]
        with_all = b"".join(bytes(part) for part in pressed.disk.files) if writer.in_file else writer.take()
        assert with_all == body
        writer.release()
    writer.discard()
    pressed.threads.work()
    assert pressed.taken == 0


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.booleans())
def test_small_pieces_are_counted_as_python_takes_them(steps: list[int], pressed_at_once: bool) -> None:
    pressed = Pressed()
    if pressed_at_once:
        pressed.press()
    writer = MessageWriter("Q1", pressed.bodies)
    for number in range(5000):
        writer.write(octets(steps[number % len(steps)]))
    taken = sum(chunk.__sizeof__() + 8 for chunk in writer._chunks) + writer._head.__sizeof__()
    assert taken <= pressed.taken * 1.1 + 100
    assert pressed.taken <= 3 * writer.size + 1000
    writer.discard()
    pressed.threads.work()
    assert pressed.taken == 0


@dataclass
class Shell:
    """Writes what a session hands on; the message's head is looked at when it is whole."""

    pressed: Pressed
    session: ServerSession
    writer: MessageWriter | None = None
    heads: list[bytes] = field(default_factory=list)

    def take(self, events: list[Event]) -> None:
        self.session.take_output()
        for event in events:
            if isinstance(event, MessageStarted):
                self.writer = MessageWriter("Q1", self.pressed.bodies)
            elif isinstance(event, MessageData):
                assert self.writer is not None
                self.writer.write(event.data)
        if self.session.question is not None:
            self.take(self.session.answer(self._answer(self.session.question)))

    def _answer(self, question: Question) -> Response:
        if not isinstance(question, MessageQuestion):
            return Proceed()
        assert self.writer is not None
        self.heads.append(self.writer.head)
        return Queued("Q1")


def by_data(message: bytes, cuts: list[int]) -> list[bytes]:
    stuffed = (b"\r\n" + message).replace(b"\r\n.", b"\r\n..")[2:]
    return [b"DATA\r\n", *_cut(stuffed + b".\r\n", cuts)]


def by_bdat(message: bytes, cuts: list[int]) -> list[bytes]:
    chunks = _cut(message, cuts)
    pieces = []
    for chunk in chunks[:-1]:
        pieces += [b"BDAT %d\r\n" % len(chunk), chunk]
    return [*pieces, b"BDAT %d LAST\r\n%b" % (len(chunks[-1]), chunks[-1])]


def _cut(octets: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(octets), *(cut % len(octets) for cut in cuts)})
    return [octets[start:end] for start, end in pairwise(places)]


HOPS = b"".join(b"Received: from h%d by mx; now\r\n" % number for number in range(12))


@given(
    st.sampled_from([by_data, by_bdat]),
    st.sampled_from([0, 300, 70_000]),
    st.lists(st.integers(0, 100_000), max_size=30),
    st.sets(st.integers(0, 60)),
    st.sets(st.integers(0, 60)),
)
@example(by_data, 300, [30, 60, 90, 120, 150, 180], {0}, {5})
def test_a_message_keeps_its_own_header_under_pressure(
    ways: Callable[[bytes, list[int]], list[bytes]],
    more: int,
    cuts: list[int],
    presses: set[int],
    works: set[int],
) -> None:
    message = HOPS + b"Subject: x\r\n\r\n" + b".line of the body\r\n" * (more // 19)
    pressed = Pressed()
    settings = session_settings(max_message_size=10**6)
    facts = SessionInfo("S1", ip_address("192.0.2.1"), 40000, "mx")
    shell = Shell(pressed, ServerSession(settings, facts))
    shell.take(shell.session.open())
    envelope = b"EHLO c.test\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@home.test>\r\n"
    for number, piece in enumerate([envelope, *ways(message, cuts)]):
        if number in presses:
            pressed.press()
        shell.take(shell.session.receive(piece))
        if number in works:
            pressed.threads.work()
    assert shell.heads == [message[:HEAD]]
    assert shell.heads[0].count(b"Received:") == 12
