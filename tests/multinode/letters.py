"""Clients that send mail until it is taken, and the ledger of what each party said about each message."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.interop.sink import Sink
from tests.multinode.topology import MAIL_DOMAIN, Entry
from tests.support.wire import Wire

_QUEUED = re.compile(r"queued as (\S+)")
_numbers = itertools.count(1)


class Broken(Exception):
    """The connection ended before the reply did."""


class Refused(Exception):
    """A reply that is no 2xx."""


@dataclass
class Letter:
    """One message to a recipient that no other has.

    ``accepted_at`` is when 250 came, in steady seconds. ``unsure`` says that a connection broke between the
    dot and its reply: then the next try may have made a second one of it. ``refusals`` are what it heard.
    """

    recipient: str
    sender: str
    source: str
    tries: int = 0
    breaks: int = 0
    unsure: bool = False
    queue_id: str = ""
    accepted_at: float = 0.0
    began: float = field(default_factory=time.monotonic)
    refusals: list[str] = field(default_factory=list)


def new_letter(source: str, sender: str = "") -> Letter:
    number = next(_numbers)
    return Letter(f"m{number}@{MAIL_DOMAIN}", sender or f"s{number}@client.test", source)


def say(wire: Wire, line: str, wanted: str) -> str:
    """A command, and its reply, which begins as it should."""
    try:
        if line:
            wire.send(line.encode() + b"\r\n")
        reply = wire.reply()
    except OSError as error:
        raise Broken(str(error)) from None
    if not reply:
        raise Broken("closed")
    if not reply.startswith(wanted):
        raise Refused(reply)
    return reply


def greet(entry: Entry, source: str) -> Wire:
    """A connection whose greeting and EHLO are done."""
    try:
        wire = entry.enter(source)
    except OSError as error:
        raise Broken(str(error)) from None
    try:
        say(wire, "", "220")
        say(wire, "EHLO client.test", "250")
    except BaseException:
        wire.sock.close()
        raise
    return wire


def post(wire: Wire, letter: Letter) -> None:
    """Send it over this connection."""
    letter.tries += 1
    try:
        say(wire, f"MAIL FROM:<{letter.sender}>", "250")
        say(wire, f"RCPT TO:<{letter.recipient}>", "250")
        say(wire, "DATA", "354")
    except Broken:
        letter.breaks += 1
        raise
    try:
        reply = say(wire, f"Subject: {letter.recipient}\r\n\r\n{'x' * 900}\r\n.", "250")
    except Broken:
        letter.breaks += 1
        letter.unsure = True
        raise
    letter.accepted_at = time.monotonic()
    found = _QUEUED.search(reply)
    assert found, reply
    letter.queue_id = found[1]


def quit_politely(wire: Wire) -> None:
    with contextlib.suppress(Broken, Refused):
        say(wire, "QUIT", "221")
    wire.sock.close()


def send_one(entry: Entry, letter: Letter) -> None:
    """Send it over a connection of its own; what is refused is noted."""
    try:
        wire = greet(entry, letter.source)
    except Refused as refusal:
        letter.refusals.append(str(refusal))
        return
    try:
        post(wire, letter)
    except Refused as refusal:
        letter.refusals.append(str(refusal))
    quit_politely(wire)


class Crowd:
    """Clients at work while the with-block lasts; each keeps at a letter until it is taken, 5xx or not.

    A client's sessions take one to four letters. Left, each client finishes the letter in hand.
    """

    def __init__(self, entries: Sequence[Entry], sources: Sequence[str], *, pause: float = 0.02) -> None:
        self.letters: list[Letter] = []
        self.trouble: list[BaseException] = []
        self.broken_sessions = 0
        self._pause = pause
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(entries[number % len(entries)], source), daemon=True)
            for number, source in enumerate(sources)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        if error is None:
            assert self.trouble == []
            assert not any(thread.is_alive() for thread in self._threads), "a client waits for ever"

    def _run(self, entry: Entry, source: str) -> None:
        try:
            unsent: Letter | None = None
            while unsent is not None or not self._over.is_set():
                unsent = self._session(entry, source, unsent)
                time.sleep(self._pause * random.random())
        except BaseException as error:
            self.trouble.append(error)

    def _session(self, entry: Entry, source: str, letter: Letter | None) -> Letter | None:
        """One connection; the letter that is still to be sent after it."""
        if letter is None:
            letter = self._next(source)
        try:
            wire = greet(entry, source)
        except Refused as refusal:
            letter.refusals.append(str(refusal))
            return letter
        except Broken:
            with self._lock:
                self.broken_sessions += 1
            return letter
        try:
            for _ in range(random.randint(1, 4)):
                post(wire, letter)
                if self._over.is_set():
                    break
                time.sleep(self._pause * random.random())
                letter = self._next(source)
        except Refused as refusal:
            letter.refusals.append(str(refusal))
        except Broken:
            with self._lock:
                self.broken_sessions += 1
        quit_politely(wire)
        return letter if not letter.accepted_at else None

    def _next(self, source: str) -> Letter:
        letter = new_letter(source)
        with self._lock:
            self.letters.append(letter)
        return letter

    # The book

    def accepted(self) -> list[Letter]:
        return [letter for letter in list(self.letters) if letter.accepted_at]

    def wait_for(self, count: int, seconds: float = 60.0) -> None:
        """Until so many more letters are taken than now."""
        wanted = len(self.accepted()) + count
        deadline = time.monotonic() + seconds
        while len(self.accepted()) < wanted:
            assert time.monotonic() < deadline, f"{count} letters are not taken within {seconds:.0f} s"
            time.sleep(0.02)

    def longest_silence(self, since: float, until: float) -> float:
        """The longest time in which no letter was taken."""
        times = sorted(at for letter in self.accepted() if since <= (at := letter.accepted_at) <= until)
        return max((b - a for a, b in itertools.pairwise([since, *times, until])), default=0.0)


@dataclass(frozen=True)
class Verdict:
    """How many letters were taken, which never came, and which came more than once without an excuse."""

    accepted: int
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    excused: int

    @property
    def clean(self) -> bool:
        return not self.lost and not self.doubled


def judge(letters: Iterable[Letter], sink: Sink, also_excused: Iterable[str] = ()) -> Verdict:
    """Compare what clients read with what the next hop has.

    A second copy is excused where a client could not know that the first was taken, or where it is named in
    ``also_excused`` (recipients).
    """
    taken = Counter(recipient for message in list(sink.taken) for recipient in message.recipients)
    accepted = [letter for letter in letters if letter.accepted_at]
    excused = set(also_excused) | {letter.recipient for letter in accepted if letter.unsure}
    more = [letter.recipient for letter in accepted if taken[letter.recipient] > 1]
    return Verdict(
        len(accepted),
        tuple(letter.recipient for letter in accepted if not taken[letter.recipient]),
        tuple(recipient for recipient in more if recipient not in excused),
        len(more) - sum(recipient not in excused for recipient in more),
    )
