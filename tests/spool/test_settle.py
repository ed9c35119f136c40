"""What became of an attempt decides what becomes of the message."""

from __future__ import annotations

import time

import pytest
from pytest_twisted import ensureDeferred

from elemta.errors import UnknownMessage
from elemta.outcome import Status
from elemta.spool import State
from tests.spool.mail import due, outcome, put, recipients

DELIVERED, DEFERRED, FAILED = Status.DELIVERED, Status.DEFERRED, Status.FAILED


def _said(queue_id, **statuses):
    return [outcome(queue_id, name, status) for name, status in statuses.items()]


@ensureDeferred
async def test_a_message_that_all_recipients_got_is_gone_with_its_body_file(open_spool, tmp_path):
    spool = await open_spool()
    for body in (b"small", b"large" * 50_000):
        queue_id = (await put(spool, body, "bob", "eve")).queue_id
        await spool.settle(queue_id, _said(queue_id, bob=DELIVERED), retry_at=None, hold_reason=None)
        assert (await spool.show(queue_id)).message.pending == recipients("eve")
        await spool.settle(queue_id, _said(queue_id, eve=DELIVERED), retry_at=None, hold_reason=None)
        with pytest.raises(UnknownMessage):
            await spool.show(queue_id)
    assert (await spool.stats()).total == 0
    await spool.close()
    assert list((tmp_path / "spool" / "p0" / "bodies").iterdir()) == []


@ensureDeferred
async def test_nothing_of_a_delivered_message_stays_in_the_database(open_spool, tmp_path):
    import sqlite3

    spool = await open_spool()
    queue_id = (await put(spool, b"body", "bob", "eve")).queue_id
    await spool.settle(queue_id, _said(queue_id, bob=DELIVERED, eve=DEFERRED), retry_at=1.0, hold_reason=None)
    await spool.settle(queue_id, _said(queue_id, eve=DELIVERED), retry_at=None, hold_reason=None)
    await spool.close()
    connection = sqlite3.connect(tmp_path / "spool" / "p0" / "queue.db")
    for table in ("message", "body", "recipient", "attempt"):
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    connection.close()


@ensureDeferred
async def test_who_could_not_be_reached_is_tried_again_at_the_time_given(open_spool):
    spool = await open_spool()
    queue_id = (await put(spool, b"body", "bob", "eve")).queue_id
    said = _said(queue_id, bob=DELIVERED, eve=DEFERRED)
    await spool.settle(queue_id, said, retry_at=1234.5, hold_reason=None)
    (message,) = await due(spool, time.time(), 10)
    assert (message.state, message.attempts, message.next_attempt_at) == (State.DEFERRED, 1, 1234.5)
    assert message.pending == recipients("eve")
    assert message.envelope.recipients == recipients("bob", "eve")
    assert await due(spool, 1234.0, 10) == []


@ensureDeferred
async def test_a_permanent_failure_with_a_reason_to_hold_keeps_who_did_not_get_it(open_spool):
    spool = await open_spool()
    queue_id = (await put(spool, b"body", "bob", "eve", "mallory")).queue_id
    said = _said(queue_id, bob=DELIVERED, eve=FAILED, mallory=DEFERRED)
    await spool.settle(queue_id, said, retry_at=None, hold_reason="550 from the next hop")
    record = await spool.show(queue_id)
    assert (record.message.state, record.message.hold_reason) == (State.HOLD, "550 from the next hop")
    assert record.message.pending == recipients("eve", "mallory")
    assert [(r.status, r.pending) for r in record.recipients] == [
        (DELIVERED, False),
        (FAILED, True),
        (DEFERRED, True),
    ]
    await spool.release(queue_id)
    (message,) = await due(spool, time.time(), 1)
    assert message.pending == recipients("eve", "mallory")


@ensureDeferred
async def test_a_permanent_failure_without_one_is_final(open_spool):
    spool = await open_spool()
    queue_id = (await put(spool, b"body", "bob", "eve")).queue_id
    await spool.settle(queue_id, _said(queue_id, bob=FAILED, eve=DEFERRED), retry_at=9.0, hold_reason=None)
    record = await spool.show(queue_id)
    assert record.message.pending == recipients("eve")
    assert record.recipients[0].status is FAILED
    assert not record.recipients[0].pending
    await spool.settle(queue_id, _said(queue_id, eve=FAILED), retry_at=None, hold_reason=None)
    with pytest.raises(UnknownMessage):
        await spool.show(queue_id)


@ensureDeferred
async def test_a_recipient_who_got_it_stays_so_whatever_is_said_later(open_spool):
    spool = await open_spool()
    queue_id = (await put(spool, b"body", "bob", "eve")).queue_id
    await spool.settle(queue_id, _said(queue_id, bob=DELIVERED), retry_at=None, hold_reason=None)
    await spool.settle(queue_id, _said(queue_id, bob=FAILED, eve=DEFERRED), retry_at=5.0, hold_reason="no")
    record = await spool.show(queue_id)
    assert record.message.pending == recipients("eve")
    assert record.recipients[0].status is DELIVERED


@ensureDeferred
async def test_a_recipient_named_twice_is_settled_twice(open_spool):
    spool = await open_spool()
    queue_id = (await put(spool, b"body", "bob", "bob")).queue_id
    await spool.settle(queue_id, _said(queue_id, bob=DELIVERED), retry_at=None, hold_reason=None)
    assert await spool.list() == []


@ensureDeferred
async def test_an_outcome_for_someone_else_changes_nothing_and_is_logged(open_spool, events):
    spool = await open_spool()
    queue_id = (await put(spool, b"body")).queue_id
    await spool.settle(queue_id, _said(queue_id, stranger=DELIVERED), retry_at=None, hold_reason=None)
    assert (await spool.show(queue_id)).message.pending == recipients("bob")
    assert "spool.outcome_without_recipient" in [event.get("event") for event in events]


@ensureDeferred
async def test_settling_a_message_that_was_deleted_meanwhile_is_harmless(open_spool):
    spool = await open_spool()
    queue_id = (await put(spool, b"body")).queue_id
    deleted = spool.delete(queue_id)
    settled = spool.settle(queue_id, _said(queue_id, bob=DEFERRED), retry_at=9e9, hold_reason=None)
    await deleted
    await settled
    await spool.settle(queue_id, _said(queue_id, bob=DELIVERED), retry_at=None, hold_reason=None)
    assert await spool.list() == []
    assert (await spool.stats()).total == 0


@ensureDeferred
async def test_what_an_operator_holds_during_an_attempt_stays_held_after_it(open_spool):
    spool = await open_spool()
    queue_id = (await put(spool, b"body", "bob", "eve")).queue_id
    await spool.hold(queue_id, "let me look")
    said = _said(queue_id, bob=DELIVERED, eve=DEFERRED)
    await spool.settle(queue_id, said, retry_at=1.0, hold_reason=None)
    record = await spool.show(queue_id)
    assert (record.message.state, record.message.hold_reason) == (State.HOLD, "let me look")
    assert record.message.pending == recipients("eve")
    await spool.settle(queue_id, _said(queue_id, eve=DELIVERED), retry_at=None, hold_reason=None)
    assert await spool.list() == []


@ensureDeferred
async def test_the_history_tells_each_attempt_and_keeps_the_last_ones(open_spool):
    spool = await open_spool(history=5)
    queue_id = (await put(spool, b"body", "bob", "eve")).queue_id
    for number in range(4):
        said = [
            outcome(queue_id, name, DEFERRED, text=f"{name} try {number}", at=number)
            for name in ("bob", "eve")
        ]
        await spool.settle(queue_id, said, retry_at=1.0, hold_reason=None)
    record = await spool.show(queue_id)
    assert record.message.attempts == 4
    assert [(attempt.number, attempt.text) for attempt in record.history] == [
        (4, "eve try 1"),
        (5, "bob try 2"),
        (6, "eve try 2"),
        (7, "bob try 3"),
        (8, "eve try 3"),
    ]
    last = record.history[-1]
    assert (last.recipient.local, last.status, last.code, last.next_hop) == (
        "eve",
        DEFERRED,
        250,
        "hop[192.0.2.9]",
    )
    assert record.recipients[0].text == "bob try 3"
    assert record.recipients[0].at == 3.0


@ensureDeferred
async def test_text_that_is_not_text_does_not_keep_an_outcome_from_being_stored(open_spool):
    spool = await open_spool()
    queue_id = (await put(spool, b"body", "b\udcffb", hold_reason="\udcff")).queue_id
    said = [outcome(queue_id, "b\udcffb", DEFERRED, text="half \udcff, nul \x00, whole ü")]
    await spool.settle(queue_id, said, retry_at=1.0, hold_reason="why \udcff")
    record = await spool.show(queue_id)
    assert record.recipients[0].text == "half \\udcff, nul \x00, whole ü"
    assert record.message.hold_reason == "why \\udcff"
    await spool.settle(queue_id, [outcome(queue_id, "b\udcffb", DELIVERED)], retry_at=None, hold_reason=None)
    assert await spool.list() == []


@ensureDeferred
async def test_a_thousand_recipients_are_settled_in_one_go(open_spool):
    spool = await open_spool()
    names = [f"user{number}" for number in range(1000)]
    queue_id = (await put(spool, b"body", *names)).queue_id
    said = [outcome(queue_id, name, DEFERRED if name.endswith("7") else DELIVERED) for name in names]
    await spool.settle(queue_id, said, retry_at=1.0, hold_reason=None)
    (message,) = await due(spool, time.time(), 1)
    assert message.pending == recipients(*(name for name in names if name.endswith("7")))
    assert (await spool.list())[0].pending == 100
    assert len((await spool.show(queue_id)).history) == 50
