"""The ledger of a daemon that sends mail out and is killed: what arrived, which notices, and how often."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import sqlite3
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.durability.ledger import Ledger, Message
from tests.durability.load import Clients, Sink

GOOD = "good.test"
MOODY = "moody.test"
STRICT = "strict.test"
SENDERS = "client.test"

_QUEUE_ID = re.compile(rb"^\tby \S+ \(Elemta\) with \S+ id ([^\s;]+)", re.MULTILINE)
_MARK = re.compile(rb"^X-Durability: (\S+)\r\n", re.MULTILINE)
_BLOCK = re.compile(rb"^Final-Recipient: rfc822; (\S+)\r\nAction: (\S+)\r\n", re.MULTILINE)
_NOTICE_ID = re.compile(rb"^Message-ID: <([^@]+)@", re.MULTILINE)

Owed = tuple[str, str]


@dataclass(frozen=True)
class Window:
    """What a kill found between the end of a message and the record of it, and for how long at most (s)."""

    delivered: int
    told: int
    longest: float


class Accounts(Ledger):
    """A ledger that also knows which recipients are refused, and which senders got a notice.

    A recipient is owed a delivery, or a notice that there is none; ``told`` are the queue ids of the notices
    for each of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.told: defaultdict[Owed, set[str]] = defaultdict(set)
        self.taken: dict[Owed, list[float]] = defaultdict(list)
        self.forgiven: Counter[Owed] = Counter()
        self.told_forgiven: Counter[Owed] = Counter()
        self.windows: list[Window] = []
        self._idents: dict[str, str] = {}
        self._known_notices: set[str] = set()

    # What comes out

    def took(self, recipient: str, content: bytes) -> None:
        """A next hop took a message of a sender's for this recipient."""
        self.delivered(recipient, content)
        queue_id, ident = _QUEUE_ID.search(content), _MARK.search(content)
        with self._lock:
            if queue_id is None or ident is None:
                self.strangers.append(f"no queue id or mark for {recipient}: {content[:300]!r}")
                return
            self.taken[queue_id[1].decode(), recipient].append(time.time())
            self._idents[queue_id[1].decode()] = ident[1].decode()

    def took_notice(self, content: bytes) -> None:
        """A notice came back to the senders."""
        notice = _read_notice(content)
        with self._lock:
            if notice is None:
                self.strangers.append(f"no notice: {content[:300]!r}")
                return
            for recipient in notice.recipients:
                self.told[notice.ident, recipient].add(notice.queue_id)
                if notice.ident not in self.sent or not recipient.endswith(STRICT):
                    self.strangers.append(f"{notice.ident} for {recipient} was given up")

    # What a kill leaves

    def look_into(self, database: Path, killed_at: float, since: float) -> None:
        """Note what was out and not recorded when the daemon, begun at ``since``, was killed."""
        pending, notices = _left(database)
        with self._lock:
            out = [owed for owed in pending if self.taken.get(owed) and self.taken[owed][-1] >= since]
            self.forgiven.update(out)
            longest = max((killed_at - self.taken[owed][-1] for owed in out), default=0.0)
            unrecorded = {(ident, recipient) for ident, recipient in self._as_idents(pending)}
            new = [notice for notice in notices if notice.queue_id not in self._known_notices]
            said = [
                (notice.ident, recipient)
                for notice in new
                for recipient in notice.recipients
                if (notice.ident, recipient) in unrecorded
            ]
            self.told_forgiven.update(said)
            self._known_notices.update(notice.queue_id for notice in notices)
            self.windows.append(Window(len(out), len(said), longest))

    def _as_idents(self, pending: dict[Owed, str]) -> Iterator[Owed]:
        for (_, recipient), ident in pending.items():
            yield ident, recipient

    # The judgement

    @property
    def delivered_again(self) -> dict[Owed, int]:
        return {owed: len(times) - 1 for owed, times in self.taken.items() if len(times) > 1}

    @property
    def told_again(self) -> dict[Owed, int]:
        return {owed: len(ids) - 1 for owed, ids in self.told.items() if len(ids) > 1}

    def lost(self, idents: Iterable[str] | None = None) -> list[Owed]:
        return [owed for owed in super().lost(idents) if not self.told.get(owed)]

    def judge(self, *, refused_may_arrive: bool = False) -> None:
        super().judge(refused_may_arrive=refused_may_arrive)
        assert [owed for owed in self.told if self.deliveries[owed]] == []
        # Twice only what was out at a kill, and for each such kill once more.
        assert {owed: n for owed, n in self.delivered_again.items() if n > self.forgiven[owed]} == {}
        assert {owed: n for owed, n in self.told_again.items() if n > self.told_forgiven[owed]} == {}

    def report(self, **more: object) -> str:
        rows = {
            "told": f"{sum(bool(ids) for ids in self.told.values())} recipients that were refused",
            "told twice": f"{sum(self.told_again.values())}, of {self._sum('told')} that could be",
            "delivered twice": f"{sum(self.delivered_again.values())}, of {self._sum('delivered')} that were"
            " between the end of the message and its record at a kill",
            "longest out": f"{max((window.longest for window in self.windows), default=0.0):.3f} s",
        }
        return super().report(**more, **rows)

    def _sum(self, name: str) -> int:
        return sum(getattr(window, name) for window in self.windows)


@dataclass(frozen=True)
class _Notice:
    queue_id: str
    ident: str
    recipients: tuple[str, ...]


def _read_notice(content: bytes) -> _Notice | None:
    ident, queue_id = _MARK.search(content), _NOTICE_ID.search(content)
    blocks = _BLOCK.findall(content)
    if ident is None or queue_id is None or any(action != b"failed" for _, action in blocks):
        return None
    return _Notice(
        queue_id[1].decode(), ident[1].decode(), tuple(recipient.decode() for recipient, _ in blocks)
    )


def _left(database: Path) -> tuple[dict[Owed, str], list[_Notice]]:
    """What still waits (queue id and address: the message's mark), and which notices are in the queue."""
    pending: dict[Owed, str] = {}
    notices: list[_Notice] = []
    for queue_id, envelope, content, done in _rows(database):
        if envelope["from"] == ["", ""]:
            notice = _read_notice(content)
            notices += [notice] if notice is not None else []
            continue
        mark = _MARK.search(content)
        for position, (local, domain, *_) in enumerate(envelope["to"]):
            if position not in done:
                pending[queue_id, f"{local}@{domain}"] = mark[1].decode() if mark else ""
    return pending, notices


_SELECT = """SELECT m.queue_id, m.envelope, b.header, b.content, m.in_file,
    (SELECT json_group_array(position) FROM recipient r WHERE r.message_id = m.id AND NOT r.pending)
    FROM message m LEFT JOIN body b ON b.id = m.id"""


def _rows(database: Path) -> Iterator[tuple[str, dict[str, list[list[str]]], bytes, set[int]]]:
    """All messages in a copy of the database, so that the daemon finds its own as the kill left it."""
    if not database.exists():
        return
    with tempfile.TemporaryDirectory() as name:
        for path in database.parent.glob(database.name + "*"):
            shutil.copy(path, name)
        with contextlib.closing(sqlite3.connect(Path(name) / database.name)) as connection:
            if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                return
            for queue_id, envelope, header, content, in_file, done in connection.execute(_SELECT):
                body = bytes(content or b"")
                if in_file:
                    with contextlib.suppress(FileNotFoundError):
                        body = (database.parent / "bodies" / queue_id).read_bytes()[:4096]
                yield queue_id, json.loads(envelope), bytes(header or b"") + body, set(json.loads(done))


class Office(Sink):
    """All next hops in one: by the domain it is good, moody or strict, or where the senders live."""

    ledger: Accounts

    def reply_to(self, recipient: str) -> str:
        if recipient.endswith(f"@{STRICT}"):
            return "550 5.1.1 no such user"
        if recipient.endswith(f"@{MOODY}") and random.random() < 0.5:
            return "450 4.2.1 not in the mood"
        return "250 OK"

    def take(self, sender: str, recipients: list[str], content: bytes) -> None:
        for recipient in recipients:
            if sender:
                self.ledger.took(recipient, content)
            else:
                self.ledger.took_notice(content)

    def wait_until_alone(self, seconds: float = 90.0) -> None:
        """Wait until everything that was said to it is read."""
        deadline = time.monotonic() + seconds
        while self.conversations:
            assert time.monotonic() < deadline, "a conversation with a killed daemon does not end"
            time.sleep(0.005)


class Senders(Clients):
    """Clients that send mail out: to one of the next hops, or to all of them."""

    def next_message(self) -> Message:
        user = random.randrange(8)
        domains = random.choice(((GOOD,), (GOOD,), (GOOD,), (MOODY,), (STRICT,), (GOOD, MOODY, STRICT)))
        return self.make_message(*(f"u{user}@{domain}" for domain in domains))
