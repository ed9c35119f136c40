"""How SQLite answers: every statement of the spool goes by index, and costs what it gives.

The statements are those that the spool itself sends, taken down at the connection while it does all that it
can do. So that none is forgotten, the literals of the package are compared with them.
"""

from __future__ import annotations

import ast
import re
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor as _reactor

import elemta.spool
from elemta.outcome import Status
from elemta.spool import Disk, HoldCause, MessageState, Spool, SpoolSettings
from elemta.spool.filters import QueueFilter
from elemta.spool.history_feed import QueueForHistory
from elemta.spool.partition import Places
from elemta.spool.records import PlannedPart
from elemta.spool.waits import KnownWaits, Wait
from tests.spool.large import fill
from tests.spool.mail import outcome, put, submission, written
from tests.support.runtime import runtime_of

reactor: Any = _reactor
PACKAGE = Path(elemta.spool.__file__).parent
MESSAGES, DOMAINS = 50_000, 25_000

_SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
# A search that names no term looks for a minimum from one end of the index on, however far it is.
_BARE = re.compile(
    r"SCAN (part|message|body|recipient|attempt|p|m|b|r|a)\b|SEARCH \w+ USING (COVERING )?INDEX \w+$"
)

# By the beginning of the statement: what its plan may say, and why.
ALLOWED = {
    "SELECT count(*), coalesce(sum(m.size), 0) FROM (SELECT DISTINCT": (
        "USE TEMP B-TREE FOR DISTINCT",
        "notices and quarantined mail on hold, at the start and after a failure of the disk",
    ),
    "SELECT count(*), coalesce(sum(m.size), 0) FROM message m INDEXED BY message_active": (
        "SCAN m USING COVERING INDEX",
        "what an operator asks for while destinations are down, in the thread that reads",
    ),
    "SELECT count(*), coalesce(sum(size), 0) FROM message INDEXED BY": (
        "SCAN message USING COVERING INDEX",
        "the count at the start and after a failure of the disk, in the thread that commits",
    ),
    "SELECT coalesce(sum(m.size +": (
        "USE TEMP B-TREE FOR DISTINCT",
        "undeliverable notices at the start: they take at most a tenth of the disk",
    ),
}


class Statements(Disk):
    """The real disk, and which statements it was sent, with the values of one of their uses."""

    def __init__(self) -> None:
        self.seen: dict[str, Sequence[object]] = {}

    def connect(self, path: Path) -> sqlite3.Connection:
        seen = self.seen

        class Noting(sqlite3.Connection):
            def execute(self, statement: str, values: Any = (), /) -> sqlite3.Cursor:  # type: ignore[override]
                seen.setdefault(statement, values)
                return super().execute(statement, values)

            def executemany(self, statement: str, rows: Any, /) -> sqlite3.Cursor:  # type: ignore[override]
                rows = list(rows)
                seen.setdefault(statement, rows[0])
                return super().executemany(statement, rows)

        return sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=5.0, factory=Noting
        )


class Shut:
    """A delivery in which one destination is down."""

    def wait(self, destination: str, part: tuple[str, int]) -> Wait | None:
        return Wait("down", 1.0) if destination == "mx:other" else None

    def known_waits(self) -> KnownWaits:
        return KnownWaits({"mx:other": "down"})


async def everything(spool: Spool) -> None:
    """All that a spool can be asked for, once at least."""
    now = time.time()
    page = await spool.list(limit=50)
    for state in MessageState:
        await spool.list(state, 10, page[0].queue_id)
    await spool.find(QueueFilter(sender="@example.net"))
    await spool.find(QueueFilter(sender="<>", recipient="x", destination="y", reason="z", received_by=now))
    spool.waits = Shut()
    await spool.stats(as_listed=True)
    await spool.find(QueueFilter(MessageState.DEFERRED, reason="down"))
    await spool.find(QueueFilter(MessageState.ACTIVE))
    spool.waits = None
    await spool.listed_destinations(None, 10)
    await spool.destination("mx:other")
    destinations = await spool.destinations(None, 10)
    await spool.destinations(destinations[-1][0], 10)
    wanted = {destination: 5 for destination, _ in destinations}
    await spool.due(now + 1e9, wanted, {destinations[0][0]: [(page[0].queue_id, 0)]})
    await spool.older(now + 1e9, -1, 10)
    await spool.older(now + 1e9, -1, 10, unwarned=True)
    await spool.stats()
    body = await put(spool, b"x" * 100_000, "bob", "eve")
    await spool.show(body.queue_id)
    (await spool.open_content(page[0].queue_id)).close()
    await spool.assign(body.queue_id, 0, [PlannedPart("mx:other", now, (0,))])
    said = [outcome(body.queue_id, "bob", Status.DELIVERED), outcome(body.queue_id, "eve", Status.DEFERRED)]
    for at in range(3):
        await spool.settle(body.queue_id, said[1:], retry_at=now + at, hold_reason=None)
    await spool.settle(body.queue_id, said, part=1, retry_at=now, hold_reason=None)
    await put(spool, b"q", hold_reason="quarantined", hold=HoldCause.QUARANTINE)
    held = page[1].queue_id
    await spool.settle(held, (), retry_at=None, hold_reason="?", hold=HoldCause.UNDELIVERABLE)
    await spool.undeliverable(10)
    (ending,) = [each for each in await spool.held(now + 1e9, 10) if each.message.queue_id == held]
    await spool.end_hold(ending, [outcome(held, "bob", Status.FAILED)], "removed")
    told = await put(spool, b"told", "bob", "eve")
    delivered = [outcome(told.queue_id, "bob", Status.DELIVERED)]
    await spool.settle(
        told.queue_id, delivered, retry_at=None, hold_reason=None, owes=[delivered[0].recipient]
    )
    for owed in await spool.owed(None, 10):
        await spool.write_off(owed)
    for change in (spool.hold, spool.release, spool.retry, spool.delete):
        await change(page[2].queue_id)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    fill(root, MESSAGES, DOMAINS)
    return root


@pytest.fixture
def statements(large: Path) -> Any:
    """What a spool in which everything was done has sent, and a connection to ask about it."""

    async def asked() -> tuple[Statements, sqlite3.Connection]:
        disk = Statements()
        settings = SpoolSettings(large, minimum_free=0, history=2)
        spool = await Spool.open(settings, runtime=runtime_of(reactor, disk=disk))
        try:
            await everything(spool)
        finally:
            await spool.close()
        view = QueueForHistory(Places(large / "p0"), disk)
        view.look()
        view.queued([1, 2])
        view.accepted_after(-1, 10)
        view.close()
        # It needs a failure of the disk.
        disk.seen["SELECT 1 FROM body WHERE id = ?"] = (1,)
        return disk, sqlite3.connect(large / "p0" / "queue.db")

    return asked


def faults_of(connection: sqlite3.Connection, statement: str, values: Sequence[object]) -> list[str]:
    """What is wrong with the plan of a statement."""
    allowed = [may for begin, (may, _) in ALLOWED.items() if statement.lstrip().startswith(begin)]
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    found = [step for step in plan if _BARE.search(step) or "AUTOMATIC" in step]
    if not re.search(r"\bLIMIT\b|\bjson_each\b|\bid = \?|message_id = \?", statement):
        found += [step for step in plan if "TEMP B-TREE" in step]
    return [f"{step}: {statement}" for step in found if not any(step.startswith(may) for may in allowed)]


@ensureDeferred
async def test_every_statement_of_the_spool_goes_by_index(statements: Any) -> None:
    disk, connection = await statements()
    queries = {text: values for text, values in disk.seen.items() if _SQL.match(text)}
    queries = {text: values for text, values in queries.items() if "sqlite_schema" not in text}
    assert len(queries) > 20
    faults = [fault for text, values in queries.items() for fault in faults_of(connection, text, values)]
    connection.close()
    assert not faults, "\n".join(faults)


@ensureDeferred
async def test_no_statement_of_the_package_is_left_out(statements: Any) -> None:
    disk, connection = await statements()
    connection.close()
    sent = [" ".join(text.split()) for text in disk.seen]
    literals = [
        found for path in PACKAGE.glob("*.py") if path.name != "schema.py" for found in _literals(path)
    ]
    assert len(literals) > 20
    left_out = [text for text, shape in literals if not any(shape.search(each) for each in sent)]
    assert not left_out


def _literals(path: Path) -> list[tuple[str, re.Pattern[str]]]:
    """The literals of a module that begin like a statement, each with what a statement made of it matches."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                part.value if isinstance(part, ast.Constant) else "{}"
                for part in node.values  # type: ignore[misc]
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        else:
            continue
        if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH) [A-Za-z(]", text):
            pieces = re.split(r"\{\w*\}", " ".join(text.replace("{{}}", "{}").split()))
            found.append((text, re.compile(".*".join(re.escape(piece) for piece in pieces), re.DOTALL)))
    return found


def test_a_bad_plan_is_seen(large: Path) -> None:
    connection = sqlite3.connect(large / "p0" / "queue.db")
    bad = (
        ("SELECT min(lane) FROM part WHERE lane > ?1 OR ?1 IS NULL", ("x",)),
        ("SELECT count(*) FROM message WHERE hold_reason = ?", ("x",)),
        ("SELECT lane, count(*) FROM part GROUP BY lane", ()),
        ("SELECT m.size FROM message m CROSS JOIN part p ON p.message_id = m.id", ()),
    )
    unseen = [statement for statement, values in bad if not faults_of(connection, statement, values)]
    connection.close()
    assert not unseen


@pytest.mark.parametrize(
    ("hold_reason", "hold", "size", "entries"),
    [
        (None, HoldCause.OPERATOR, 10, {"message_active", "part_lane"}),
        (None, HoldCause.OPERATOR, 100_000, {"message_active", "message_in_file", "part_lane"}),
        ("held", HoldCause.OPERATOR, 10, {"message_held", "part_lane"}),
        ("quarantined", HoldCause.QUARANTINE, 10, {"message_held", "part_lane", "part_held"}),
        ("undeliverable", HoldCause.UNDELIVERABLE, 10, {"message_held", "part_lane", "part_held"}),
    ],
)
@ensureDeferred
async def test_a_message_is_in_no_more_indexes_than_it_must(
    open_spool: Any, tmp_path: Path, hold_reason: str | None, hold: HoldCause, size: int, entries: set[str]
) -> None:
    spool = await open_spool()
    message = submission(hold_reason=hold_reason)
    object.__setattr__(message, "hold", hold)
    await spool.commit(written(spool, b"x" * size), message)
    connection = sqlite3.connect(tmp_path / "spool" / "p0" / "queue.db")
    indexes = connection.execute(
        "SELECT name, tbl_name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
    ).fetchall()
    found = set()
    for name, table, sql in indexes:
        where = sql.partition(" WHERE ")[2] or "1"
        rows = connection.execute(f"SELECT 1 FROM {table} INDEXED BY {name} WHERE {where}").fetchall()
        if rows:
            found.add(name)
    connection.close()
    assert found == entries
