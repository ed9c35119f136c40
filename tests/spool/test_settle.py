"""What became of an attempt decides what becomes of the message."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults

from elemta.daemon.queue_answers import MessageDetails
from elemta.errors import UnknownMessage
from elemta.outcome import Status
from elemta.spool import Disk, MessageState, PlannedPart
from elemta.spool.filters import QueueFilter
from tests.spool.mail import due, outcome, put, recipients, submission, written

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
    assert (message.state, message.attempts, message.next_attempt_at) == (MessageState.DEFERRED, 1, 1234.5)
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
    assert (record.message.state, record.message.hold_reason) == (MessageState.HOLD, "550 from the next hop")
    assert record.message.pending == recipients("eve", "mallory")
    assert [(r.outcome.status, r.pending) for r in record.recipients] == [
        (DELIVERED, False),
        (FAILED, True),
        (DEFERRED, True),
    ]
    await spool.release(queue_id)
    (message,) = await due(spool, time.time(), 1)
    assert message.pending == recipients("eve", "mallory")


@ensureDeferred
async def test_who_failed_is_held_while_who_is_deferred_goes_on(open_spool):
    spool = await open_spool()
    queue_id = (await put(spool, b"body", "bob", "eve", "mallory")).queue_id
    said = _said(queue_id, bob=DELIVERED, eve=FAILED, mallory=DEFERRED)
    await spool.settle(queue_id, said, part=0, retry_at=99.0, hold_reason="nobody to tell")
    record = await spool.show(queue_id)
    assert (record.message.state, record.message.hold_reason) == (MessageState.DEFERRED, "nobody to tell")
    (message,) = await due(spool, 100.0)
    assert (message.pending, message.attempts, message.next_attempt_at) == (recipients("mallory"), 1, 99.0)
    await spool.settle(
        queue_id, _said(queue_id, mallory=DELIVERED), part=message.part, retry_at=None, hold_reason=None
    )
    assert (await spool.show(queue_id)).message.state is MessageState.HOLD
    await spool.release(queue_id)
    (message,) = await due(spool, time.time())
    assert (message.pending, message.hold_reason) == (recipients("eve"), None)


@ensureDeferred
async def test_each_part_of_a_message_has_its_own_destination_time_and_number_of_attempts(open_spool):
    spool = await open_spool()
    spool.use_plan(lambda given: (PlannedPart("one", 7.0, (0, 2)), PlannedPart("two", 8.0, (1,))))
    heard = []
    spool.on_committed(heard.append)
    queue_id = (await put(spool, b"body", "bob", "eve", "mallory")).queue_id
    assert await spool.destinations(None, 10) == [("one", 0.0), ("two", 0.0)]
    assert [(part.key, part.destination, part.pending) for part in heard] == [
        ((queue_id, 0), "one", recipients("bob", "mallory")),
        ((queue_id, 1), "two", recipients("eve")),
    ]
    assert await spool.destinations("one", 10) == [("two", 0.0)]
    said = _said(queue_id, bob=DELIVERED, mallory=DEFERRED)
    await spool.settle(queue_id, said, part=0, retry_at=50.0, hold_reason=None)
    assert await spool.destinations(None, 1) == [("one", 50.0)]
    record = await spool.show(queue_id)
    assert (record.message.state, record.message.pending) == (
        MessageState.ACTIVE,
        recipients("eve", "mallory"),
    )
    await spool.settle(queue_id, _said(queue_id, eve=DEFERRED), part=1, retry_at=40.0, hold_reason=None)
    record = await spool.show(queue_id)
    assert (record.message.state, record.message.next_attempt_at) == (MessageState.DEFERRED, 40.0)
    await spool.settle(queue_id, (), part=1, retry_at=60.0, hold_reason=None, attempted=False)
    assert [(part.destination, part.attempts) for part in await due(spool, 100.0)] == [("one", 1), ("two", 1)]
    await spool.settle(queue_id, _said(queue_id, eve=FAILED), part=1, retry_at=None, hold_reason=None)
    assert await spool.destinations(None, 10) == [("one", 50.0)]
    await spool.settle(queue_id, _said(queue_id, mallory=DELIVERED), part=0, retry_at=None, hold_reason=None)
    assert await spool.list() == []
    assert await spool.destinations(None, 10) == []


@ensureDeferred
async def test_a_part_on_hold_and_one_that_waits_each_have_their_own_reason(open_spool):
    spool = await open_spool()
    spool.use_plan(
        lambda _: tuple(PlannedPart(way, 7.0, (place,)) for place, way in enumerate(("one", "two")))
    )
    queue_id = (await put(spool, b"body", "bob", "eve")).queue_id
    said = [replace(outcome(queue_id, "bob", DEFERRED), text="what bob's next hop said")]
    await spool.settle(queue_id, said, part=0, retry_at=50.0, hold_reason=None)
    await spool.settle(queue_id, (), part=1, retry_at=60.0, hold_reason=None, attempted=False)
    # What one next hop said is no error of another one.
    errors = {mail.name: mail.last_error for mail in await spool.listed_destinations(None, 10)}
    assert "what bob's next hop said" in errors["one"]
    assert errors["two"] == ""
    await spool.settle(queue_id, (), part=1, retry_at=None, hold_reason="the route says hold:")
    (line,) = (await spool.find(QueueFilter())).messages
    assert (line.state, line.hold_reason) == (MessageState.DEFERRED, None)
    assert "what bob's next hop said" in line.reason
    shown = MessageDetails.of(await spool.show(queue_id))
    assert (shown.state, shown.hold_reason) == (MessageState.DEFERRED, None)
    assert [each.reason for each in shown.recipients][1] == "the route says hold:"
    await spool.settle(queue_id, _said(queue_id, bob=DELIVERED), part=0, retry_at=None, hold_reason=None)
    (line,) = (await spool.find(QueueFilter())).messages
    assert (line.state, line.hold_reason) == (MessageState.HOLD, "the route says hold:")


@ensureDeferred
async def test_recipients_that_go_another_way_become_a_part_there_with_its_past(open_spool):
    spool = await open_spool()
    queue_id = (await put(spool, b"body", "bob", "eve", "mallory")).queue_id
    said = _said(queue_id, bob=DELIVERED, eve=DEFERRED, mallory=DEFERRED)
    await spool.settle(queue_id, said, retry_at=50.0, hold_reason=None)
    ways = [PlannedPart("new", 9.0, (0, 1)), PlannedPart("far", 9.0, (2,))]
    await spool.assign(queue_id, 0, ways)
    # They are due there when their turn comes: the time before was that of their old destination.
    parts = await due(spool, 9.0)
    assert sorted(
        (part.destination, part.pending, part.attempts, part.next_attempt_at) for part in parts
    ) == [
        ("far", recipients("mallory"), 1, 9.0),
        ("new", recipients("eve"), 1, 9.0),
    ]
    # For a message or a part that is gone meanwhile there is nothing to do.
    await spool.assign(queue_id, 7, ways)
    await spool.delete(queue_id)
    await spool.assign(queue_id, 0, ways)
    assert await spool.list() == []


@pytest.mark.parametrize("together", [True, False])
@ensureDeferred
async def test_the_time_of_a_held_message_is_that_of_what_is_left_however_changes_are_batched(
    open_spool, together
):
    ways = (PlannedPart("one", 4.0, (0,)), PlannedPart("two", 5.0, (1,)))
    spool = await open_spool()
    spool.use_plan(lambda _: ways)
    queue_id = (await put(spool, b"body", "bob", "eve")).queue_id
    held = Deferred.fromCoroutine(spool.hold(queue_id))
    if not together:
        await held
    await spool.settle(queue_id, _said(queue_id, bob=DELIVERED), retry_at=None, hold_reason=None)
    if together:
        await held
    assert (await spool.show(queue_id)).message.next_attempt_at == 5.0


@ensureDeferred
async def test_old_messages_are_walked_in_the_order_of_arrival_and_the_told_ones_left_out(open_spool):
    spool = await open_spool()
    ids = []
    for number in range(6):
        given = submission("bob", at=100.0 + number, hold_reason="kept" if number == 1 else None)
        ids.append((await spool.commit(written(spool, b"body"), given)).queue_id)
    await spool.settle(ids[2], (), retry_at=9e9, hold_reason=None)
    page = await spool.older(104.0, limit=2)
    assert [part.queue_id for part in page.messages] == [ids[0], ids[2]]
    assert page.more
    page = await spool.older(104.0, page.after, limit=2)
    assert [part.queue_id for part in page.messages] == ids[3:5]
    page = await spool.older(104.0, page.after, limit=2)
    assert (page.messages, page.more) == ((), False)
    await spool.settle(ids[2], (), retry_at=None, hold_reason=None, warned=True)
    page = await spool.older(103.0, unwarned=True)
    assert [part.queue_id for part in page.messages] == [ids[0], ids[3]]
    assert [part.warned for part in (await spool.older(103.0)).messages] == [False, True, False]


@ensureDeferred
async def test_a_permanent_failure_without_one_is_final(open_spool):
    spool = await open_spool()
    queue_id = (await put(spool, b"body", "bob", "eve")).queue_id
    await spool.settle(queue_id, _said(queue_id, bob=FAILED, eve=DEFERRED), retry_at=9.0, hold_reason=None)
    record = await spool.show(queue_id)
    assert record.message.pending == recipients("eve")
    assert record.recipients[0].outcome.status is FAILED
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
    assert record.recipients[0].outcome.status is DELIVERED


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
    assert (record.message.state, record.message.hold_reason) == (MessageState.HOLD, "let me look")
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
    assert [(number, attempt.text) for number, attempt in record.history] == [
        (4, "eve try 1"),
        (5, "bob try 2"),
        (6, "eve try 2"),
        (7, "bob try 3"),
        (8, "eve try 3"),
    ]
    _, last = record.history[-1]
    assert (last.recipient.local, last.status, last.code, last.next_hop) == (
        "eve",
        DEFERRED,
        250,
        "hop[192.0.2.9]",
    )
    assert record.recipients[0].outcome.text == "bob try 3"
    assert record.recipients[0].outcome.at == 3.0


@ensureDeferred
async def test_text_that_is_not_text_does_not_keep_an_outcome_from_being_stored(open_spool):
    spool = await open_spool()
    queue_id = (await put(spool, b"body", "b\udcffb", hold_reason="\udcff")).queue_id
    said = [outcome(queue_id, "b\udcffb", DEFERRED, text="half \udcff, nul \x00, whole ü")]
    await spool.settle(queue_id, said, retry_at=1.0, hold_reason="why \udcff")
    record = await spool.show(queue_id)
    assert record.recipients[0].outcome.text == "half \\udcff, nul \x00, whole ü"
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


class CountingDisk(Disk):
    """The real disk; keeps the statements that are sent to a database."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def connect(self, path):
        connection = super().connect(path)
        connection.set_trace_callback(self.statements.append)
        return connection

    def taken(self) -> list[str]:
        """The first words of each statement since the last time."""
        taken = [" ".join(statement.split()[:3]) for statement in self.statements]
        self.statements.clear()
        return taken


@ensureDeferred
async def test_many_messages_take_the_statements_of_one(open_spool):
    disk = CountingDisk()
    spool = await open_spool(disk=disk)
    # From here on the connection that reads is open.
    await spool.stats()
    taken = []
    for number in (1, 20):
        ids = [(await put(spool, b"body")).queue_id for _ in range(number)]
        disk.taken()
        found = await spool.due(time.time(), {"": 100})
        assert {message.queue_id for message in found[0].messages} == set(ids)
        read = disk.taken()
        results = [
            spool.settle(each, _said(each, bob=DELIVERED), retry_at=None, hold_reason=None) for each in ids
        ]
        await gatherResults(results)
        written = disk.taken()
        assert written.count("COMMIT") == 1
        taken.append((read, written))
    assert taken[0] == taken[1]
