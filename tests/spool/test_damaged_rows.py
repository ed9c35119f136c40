"""Rows that the disk or another program damaged: each is logged and held, and the others go on."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from elemta.errors import SpoolError
from elemta.outcome import Status
from elemta.spool import HoldCause, MessageState, Spool
from elemta.spool.queue_id import row_key
from tests.spool.large import envelope
from tests.spool.mail import FailingDisk, outcome, put, submission, written

WHOLE: dict[str, Any] = json.loads(envelope("example.com"))


def with_(**fields: Any) -> str:
    return json.dumps({**WHOLE, **fields})


def without(name: str) -> str:
    return json.dumps({key: value for key, value in WHOLE.items() if key != name})


ENVELOPES: dict[str, object] = {
    "empty": "",
    "cut": json.dumps(WHOLE)[:-20],
    "zeroes": "\0" * 100,
    "no JSON": "\\\\\\",
    "null": "null",
    "a number": "7",
    "a list": "[]",
    "a blob": b"\xff\x00\xfe",
    "octets that are no UTF-8": b"TEXT" + json.dumps(WHOLE).encode().replace(b"bob", b"b\xffb"),
    "another alphabet": json.dumps({**WHOLE, "from": ["\u4e00", "x"]}, ensure_ascii=False),
    "endless brackets": "[" * 100_000,
    "no sender": without("from"),
    "a sender without a domain": with_(**{"from": ["alice"]}),
    "a sender of numbers": with_(**{"from": [1, 2]}),
    "no recipient": without("to"),
    "an empty list of recipients": with_(to=[]),
    "recipients that are text": with_(to="bob@example.com"),
    "recipients that are null": with_(to=None),
    "recipients that are a number": with_(to=7),
    "recipients by name": with_(to={"bob": "example.com"}),
    "a recipient that is null": with_(to=[None]),
    "a recipient without a domain": with_(to=[["bob"]]),
    "a recipient of a list": with_(to=[[["bob"], "example.com"]]),
    "a recipient with three fields": with_(to=[["bob", "example.com", None]]),
    "a notify that is unknown": with_(to=[["bob", "example.com", "sometimes", None]]),
    "no client": without("client"),
    "a client of another shape": with_(client=["192.0.2.1"]),
    "a client of numbers": with_(client=[1, 2, 3, 4, 5, 6]),
    "a body type that is unknown": with_(mail={"body": "9BITMIME"}),
    "parameters that are a list": with_(mail=["ret"]),
}
COLUMNS: dict[str, tuple[str, object]] = {
    "a time that is text": ("UPDATE message SET received_at = ? WHERE id = ?", "yesterday"),
    "a size that is text": ("UPDATE message SET size = ? WHERE id = ?", "large"),
    "a queue id of another row": ("UPDATE message SET queue_id = ? WHERE id = ?", "0123456789ABCDEF"),
    "a queue id that is a blob": ("UPDATE message SET queue_id = ? WHERE id = ?", b"\xff\xfe"),
    "positions that are no JSON": ("UPDATE part SET positions = ? WHERE message_id = ?", "[0"),
    "positions beyond the recipients": ("UPDATE part SET positions = ? WHERE message_id = ?", "[5]"),
}
ALL = {
    name: ("UPDATE message SET envelope = ? WHERE id = ?", value) for name, value in ENVELOPES.items()
} | COLUMNS


def damage(directory: Path, queue_id: str, how: str) -> None:
    statement, value = ALL[how]
    if isinstance(value, bytes) and value.startswith(b"TEXT"):
        statement, value = statement.replace("= ? W", "= CAST(? AS TEXT) W"), value[4:]
    connection = sqlite3.connect(directory / "p0" / "queue.db", isolation_level=None)
    assert connection.execute(statement, (value, row_key(queue_id))).rowcount == 1
    connection.close()


def state_of(directory: Path, queue_id: str) -> tuple[Any, ...]:
    connection = sqlite3.connect(directory / "p0" / "queue.db")
    connection.text_factory = bytes
    found = connection.execute(
        "SELECT m.state, m.hold_reason, p.state, p.held_at FROM message m JOIN part p ON p.message_id = m.id"
        " WHERE m.id = ?",
        (row_key(queue_id),),
    ).fetchone()
    connection.close()
    return found


async def three(spool: Spool, how: str) -> tuple[str, str, str]:
    """Three messages, the middle one damaged."""
    first, middle, last = [(await put(spool, b"body")).queue_id for _ in range(3)]
    damage(spool.settings.directory, middle, how)
    return first, middle, last


def told(events: list[Any]) -> list[str]:
    return [event["reason"] for event in events if event.get("event") == "spool.envelope_unreadable"]


@pytest.mark.parametrize("how", ALL)
@ensureDeferred
async def test_a_damaged_row_is_held_with_its_reason_and_the_others_are_due(
    open_spool: Any, events: list[Any], how: str
) -> None:
    spool = await open_spool()
    first, middle, last = await three(spool, how)
    (found,) = await spool.due(time.time() + 1, {"": 10})
    assert [message.queue_id for message in found.messages] == [first, last]
    (reason,) = told(events)
    assert reason.startswith("its envelope can't be read: ")
    assert state_of(spool.settings.directory, middle) == (2, reason.encode(), 2, None)
    # It is not met again, and the spool goes on.
    (found,) = await spool.due(time.time() + 1, {"": 10})
    assert [message.queue_id for message in found.messages] == [first, last]
    assert len(told(events)) == 1
    assert spool.healthy
    assert +Counter(spool.messages) == {MessageState.ACTIVE: 2, MessageState.HOLD: 1}
    assert (await put(spool, b"new")).queue_id


@pytest.mark.parametrize("how", ALL)
@ensureDeferred
async def test_a_damaged_row_does_not_fail_a_walk_a_listing_a_start_or_the_end_of_holds(
    open_spool: Any, events: list[Any], how: str
) -> None:
    spool = await open_spool()
    first, _, last = await three(spool, how)
    listed = await spool.list()
    assert [listed[0].queue_id, listed[2].queue_id] == [first, last]
    page = await spool.older(time.time() + 1, -1, 10)
    assert [message.queue_id for message in page.messages] == [first, last]
    assert len(told(events)) == 1
    notices = []
    for _ in range(2):
        notice = await spool.commit(written(spool, b"x"), submission())
        notices.append(notice.queue_id)
        await spool.settle(
            notice.queue_id, (), part=0, retry_at=None, hold_reason="?", hold=HoldCause.UNDELIVERABLE
        )
    damage(spool.settings.directory, notices[0], how)
    await spool.close()
    again = await open_spool()
    assert +Counter(again.messages) == {
        MessageState.ACTIVE: 2,
        MessageState.HOLD: 1,
        MessageState.UNDELIVERABLE: 2,
    }
    held = await again.held(time.time() + 1, 10)
    assert [each.message.queue_id for each in held] == [notices[1]]
    assert len(told(events)) == 2
    assert [each.message.queue_id for each in await again.undeliverable(10)] == [notices[1]]


@pytest.mark.parametrize("how", [name for name in ALL if "positions" not in name])
@ensureDeferred
async def test_notices_owed_of_damaged_rows_are_dropped_by_one_commit(
    open_spool: Any, events: list[Any], counted: Any, how: str
) -> None:
    spool = await open_spool()
    ids = [(await put(spool, b"body")).queue_id for _ in range(4)]
    for queue_id in ids:
        said = outcome(queue_id, "bob", Status.DELIVERED)
        await spool.settle(queue_id, [said], retry_at=None, hold_reason=None, owes=[said.recipient])
    # The last one on its page is where the next page goes on.
    for queue_id in ids[2:]:
        damage(spool.settings.directory, queue_id, how)
    batches = []
    apply = spool._store.apply
    spool._store.apply = lambda operations: batches.append(len(operations)) or apply(operations)  # type: ignore
    assert [owed.envelope.queue_id for owed in await spool.owed(None, 4)] == ids[:2]
    assert batches == [2]
    assert [owed.envelope.queue_id for owed in await spool.owed(None, 4)] == ids[:2]
    dropped = [event["row"] for event in events if event.get("event") == "spool.owed_unreadable"]
    assert dropped == [row_key(queue_id) for queue_id in ids[2:]]
    assert spool.healthy


@pytest.mark.parametrize("how", ENVELOPES)
@ensureDeferred
async def test_an_operator_can_do_all_but_read_a_damaged_message(open_spool: Any, how: str) -> None:
    spool = await open_spool()
    _, middle, _ = await three(spool, how)
    with pytest.raises(SpoolError, match="its envelope can't be read"):
        await spool.show(middle)
    await spool.hold(middle, "mine")
    await spool.release(middle)
    # What became of an attempt that began before the damage leaves it in the queue.
    await spool.settle(middle, [outcome(middle, "nobody", Status.DELIVERED)], retry_at=None, hold_reason=None)
    line = {line.queue_id: line for line in await spool.list()}[middle]
    assert (line.state, str(line.sender)) == (MessageState.ACTIVE, '"(unreadable)"')
    assert spool.healthy
    await spool.delete(middle)
    assert len(await spool.list()) == 2


@ensureDeferred
async def test_many_damaged_rows_are_held_by_one_commit_and_those_behind_them_come_next(
    open_spool: Any, counted: Any, events: list[Any]
) -> None:
    spool = await open_spool()
    ids = [(await put(spool, b"body")).queue_id for _ in range(30)]
    for queue_id in ids[:29]:
        damage(spool.settings.directory, queue_id, "cut")
    now = time.time() + 1
    (found,) = await spool.due(now, {"": 20})
    assert (found.messages, found.next_due) == ((), now)
    (found,) = await spool.due(now, {"": 20})
    assert [message.queue_id for message in found.messages] == ids[29:]
    assert len(told(events)) == 29


@ensureDeferred
async def test_while_a_damaged_row_can_not_be_held_its_destination_is_not_asked_for_without_end(
    open_spool: Any, events: list[Any]
) -> None:
    disk = FailingDisk()
    spool = await open_spool(disk=disk, first_reopen=60.0)
    _, middle, _ = await three(spool, "cut")
    disk.fail("before commit", times=1000)
    now = time.time() + 1
    (found,) = await spool.due(now, {"": 2})
    assert found.next_due == now + spool.settings.refresh
    assert [event["queue_id"] for event in events if event.get("event") == "spool.unreadable_not_held"] == [
        middle
    ]


# Every column that has no place in the tables above; what SQLite keeps there may be of any kind.
OTHER_COLUMNS = {
    "message": ["state", "size", "in_file", "attempts", "pending", "hold_reason", "next_attempt_at"],
    "part": ["state", "lane", "turn", "attempts", "warned", "hold", "held_at"],
    "recipient": ["position", "status", "code", "text", "at", "owed"],
    "attempt": ["number", "position", "status", "seconds"],
    "body": ["header", "content"],
}
OTHER_VALUES: list[object] = [b"\xff\xfe", float("inf"), "junk", -(10**18)]


@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table, columns in OTHER_COLUMNS.items() for column in columns]
)
@ensureDeferred
async def test_no_value_in_any_column_fails_what_is_done_with_other_messages(
    open_spool: Any, table: str, column: str
) -> None:
    spool = await open_spool()
    good = [(await put(spool, b"body")).queue_id]
    damaged = [(await put(spool, b"body", "bob", "carol")).queue_id for _ in OTHER_VALUES]
    good.append((await put(spool, b"body")).queue_id)
    for queue_id in damaged:
        said = outcome(queue_id, "bob", Status.DELIVERED)
        await spool.settle(
            queue_id, [said], part=0, retry_at=time.time() - 5, hold_reason=None, owes=[said.recipient]
        )
    connection = sqlite3.connect(spool.settings.directory / "p0" / "queue.db", isolation_level=None)
    # The disk does not ask for constraints.
    connection.execute("PRAGMA ignore_check_constraints = ON")
    key = "id" if table in ("message", "body") else "message_id"
    for queue_id, value in zip(damaged, OTHER_VALUES, strict=True):
        try:
            connection.execute(
                f"UPDATE {table} SET {column} = ? WHERE {key} = ?",
                (value, row_key(queue_id)),
            )
        except sqlite3.IntegrityError:
            continue
    connection.close()
    now = time.time() + 1
    assert ("", 0.0) in await spool.destinations(None, 100)
    (found,) = await spool.due(now, {"": 10})
    assert {message.queue_id for message in found.messages} >= set(good)
    page = await spool.older(now, -1, 10)
    assert {message.queue_id for message in page.messages} >= set(good)
    await spool.held(now, 10)
    await spool.undeliverable(10)
    await spool.owed(None, 10)
    assert len(await spool.list()) == len(good) + len(damaged)
    # All of it in one commit: what the damaged ones can't take must not be known to the others.
    settling = [
        spool.settle(
            queue_id,
            [outcome(queue_id, "carol", Status.DEFERRED)],
            part=0,
            retry_at=now + 60,
            hold_reason=None,
        )
        for queue_id in (*damaged, *good)
    ]
    for settled in settling:
        await settled
    assert spool.healthy
    assert spool.settled
    for queue_id in damaged:
        await spool.delete(queue_id)
    await spool.close()
    again = await open_spool()
    assert {line.queue_id for line in await again.list()} == set(good)
