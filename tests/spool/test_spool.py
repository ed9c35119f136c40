"""A message goes in, is there, and comes out as it was."""

from __future__ import annotations

import os
import time
from collections import Counter

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred

from elemta.address import NULL, Address
from elemta.envelope import BodyType, Client, MailParameters, Notify, Recipient, Return
from elemta.errors import SpoolError, UnknownMessage
from elemta.runtime.disk import FreeSpace
from elemta.spool import Disk, MessageState, QueuedMessage, Submission
from elemta.spool.combined_queue import CombinedQueue
from elemta.spool.filters import QueueFilter
from tests.spool.mail import HEADER, due, put, read, recipients, submission, written
from tests.support.waiting import until

NO_SUCH_ID = "0" * 18


@ensureDeferred
async def test_a_committed_message_is_there_after_a_restart_byte_for_byte(open_spool):
    spool = await open_spool()
    body = bytes(range(256)) * 7
    envelope = await put(spool, body)
    await spool.close()

    again = await open_spool()
    assert await read(again, envelope.queue_id) == HEADER + body
    assert [message.envelope for message in await due(again, time.time(), 10)] == [envelope]


@ensureDeferred
async def test_the_envelope_survives_with_every_parameter(open_spool):
    spool = await open_spool()
    given = Submission(
        Address("söme one", "exämple.org"),
        (
            Recipient(Address("a b", "[192.0.2.1]"), Notify.SUCCESS | Notify.DELAY, "rfc822;x@y"),
            Recipient(Address("never", "example.com"), Notify.NEVER),
            Recipient(Address("postmaster", "")),
        ),
        MailParameters(1234, BodyType.EIGHT_BIT, True, Return.HEADERS, "id+\x00\udcff", ""),
        Client("2001:db8::1", 'he"lo', "submission", "SID", "user", "TLSv1.3"),
        HEADER,
        time.time(),
    )
    envelope = await spool.commit(written(spool, b"body"), given)
    stored = (await spool.show(envelope.queue_id)).envelope
    assert stored == envelope
    assert stored.parameters == given.parameters
    assert stored.client == given.client
    assert stored.recipients == given.recipients
    assert stored.size == len(HEADER) + 4


@ensureDeferred
async def test_the_null_sender_stays_null(open_spool):
    spool = await open_spool()
    given = Submission(NULL, recipients("bob"), MailParameters(), Client(), b"", time.time())
    envelope = await spool.commit(written(spool, b"bounce"), given)
    assert (await spool.show(envelope.queue_id)).envelope.sender == NULL


@ensureDeferred
async def test_an_empty_body_is_a_message_too(open_spool):
    spool = await open_spool()
    envelope = await spool.commit(spool.begin(), submission())
    assert await read(spool, envelope.queue_id) == HEADER


@ensureDeferred
async def test_nothing_is_queued_before_its_commit_or_after_a_discard(open_spool):
    spool = await open_spool()
    written(spool, b"under way")
    written(spool, b"given up").discard()
    assert await spool.list() == []
    assert (await spool.stats()).total == 0


@ensureDeferred
async def test_a_message_is_committed_once_only(open_spool):
    spool = await open_spool()
    writer = written(spool, b"once")
    await spool.commit(writer, submission())
    with pytest.raises(SpoolError):
        await spool.commit(writer, submission())
    with pytest.raises(SpoolError):
        writer.write(b"more")
    writer.discard()
    assert (await spool.stats()).total == 1


@ensureDeferred
async def test_a_message_without_recipients_is_refused(open_spool):
    spool = await open_spool()
    given = Submission(NULL, (), MailParameters(), Client(), b"", 0.0)
    with pytest.raises(SpoolError):
        await spool.commit(written(spool, b"to nobody"), given)


@ensureDeferred
async def test_listeners_hear_of_active_messages_after_their_commit_and_a_failing_one_harms_nobody(
    open_spool,
):
    spool = await open_spool()
    heard: list[QueuedMessage] = []

    def fail(message: QueuedMessage) -> None:
        raise RuntimeError("a listener's own trouble")

    spool.on_committed(fail)
    spool.on_committed(heard.append)
    envelope = await put(spool, b"body")
    await put(spool, b"quarantined", hold_reason="smells")
    await put(spool, b"body")
    assert [message.state for message in heard[:1]] == [MessageState.ACTIVE]
    assert heard[0].envelope == envelope
    assert heard[0].pending == envelope.recipients
    stored = await due(spool, time.time(), 1)
    assert stored == heard[:1]


@ensureDeferred
async def test_a_quarantined_message_is_visible_and_not_due(open_spool):
    spool = await open_spool()
    envelope = await put(spool, b"body", hold_reason="smells of fish")
    assert await due(spool, time.time() + 1e9, 10) == []
    assert await spool.destinations(None, 10) == [("", None)]
    (line,) = await spool.list(MessageState.HOLD)
    assert (line.queue_id, line.hold_reason) == (envelope.queue_id, "smells of fish")


@ensureDeferred
async def test_active_messages_are_due_before_deferred_ones_and_those_under_way_are_left_out(open_spool):
    spool = await open_spool()
    ids = [(await put(spool, b"body")).queue_id for _ in range(5)]
    await spool.settle(ids[0], [], retry_at=50.0, hold_reason=None)
    await spool.settle(ids[1], [], retry_at=40.0, hold_reason=None)
    await spool.settle(ids[2], [], retry_at=1e12, hold_reason=None)

    now = time.time()
    assert [message.queue_id for message in await due(spool, now, 10)] == [ids[3], ids[4], ids[1], ids[0]]
    assert [message.queue_id for message in await due(spool, now, 1, {ids[3]})] == [ids[4]]
    assert [message.queue_id for message in await due(spool, now, 3, ids[3:4])] == [ids[4], ids[1], ids[0]]
    assert await spool.destinations(None, 10) == [("", 0.0)]
    (found,) = await spool.due(now, {"": 10}, {"": [(queue_id, 0) for queue_id in ids[:2]]})
    assert ([message.queue_id for message in found.messages], found.next_due) == (ids[3:], 1e12)
    (found,) = await spool.due(now, {"": 3})
    assert ([message.queue_id for message in found.messages], found.next_due) == (
        [ids[3], ids[4], ids[1]],
        now,
    )


@ensureDeferred
async def test_looking_for_due_messages_uses_an_index_however_many_there_are(open_spool, tmp_path):
    import sqlite3

    spool = await open_spool()
    await put(spool, b"body")
    await spool.close()
    connection = sqlite3.connect(tmp_path / "spool" / "p0" / "queue.db")
    plans = []
    real = connection.execute

    from elemta.spool.partition import Places
    from elemta.spool.queries import Queries
    from elemta.spool.queue_list import QueueList
    from elemta.spool.reader import Reader
    from elemta.spool.schedule import Schedule
    from elemta.spool.waits import NO_WAITS

    class Planning:
        def execute(self, statement, values=()):
            if statement.startswith("SELECT"):
                plans.extend(row[-1] for row in real("EXPLAIN QUERY PLAN " + statement, values))
            return real(statement, values)

        def close(self):
            connection.close()

    class PlanningDisk:
        def connect(self, path):
            return Planning()

    reader = Reader(Places(tmp_path / "spool" / "p0"), PlanningDisk())
    schedule = Schedule(reader)
    schedule.destinations(None, 10)
    schedule.due(1e12, {"": 10}, {"": [("0" * 18, 0)]}, {})
    schedule.older(1e12, -1, 10, unwarned=True)
    queries = Queries(reader)
    listing = QueueList(reader)
    listing.oldest(0)
    listing.find(QueueFilter(MessageState.HOLD), NO_WAITS, 10, "0" * 18)
    listing.find(QueueFilter(MessageState.DEFERRED), NO_WAITS, 10, None)
    ((first, _),), _ = listing.find(QueueFilter(), NO_WAITS, 1, None)
    queries.content(first.queue_id)
    reader.close()
    scans = [plan for plan in plans if plan.startswith("SCAN") and "INDEX" not in plan]
    assert plans
    # Nothing walks a table.
    assert not {plan for plan in scans if "json_each" not in plan and "found" not in plan}, plans
    assert any(
        plan.startswith("SEARCH p USING") and "part_lane (lane=? AND state=?" in plan for plan in plans
    )


@ensureDeferred
async def test_the_listing_pages_through_the_queue_in_the_order_of_arrival(open_spool):
    spool = await open_spool()
    ids = [(await put(spool, b"body", "bob", "eve")).queue_id for _ in range(7)]
    await spool.hold(ids[2], "why not")
    await spool.settle(ids[4], [], retry_at=9e9, hold_reason=None)
    seen: list[str] = []
    after = None
    while page := await spool.list(limit=3, after=after):
        seen += [line.queue_id for line in page]
        after = page[-1].queue_id
    assert seen == ids
    assert [line.queue_id for line in await spool.list(MessageState.DEFERRED)] == [ids[4]]
    assert [line.queue_id for line in await spool.list(MessageState.ACTIVE, limit=2, after=ids[1])] == [
        ids[3],
        ids[5],
    ]
    (line,) = await spool.list(MessageState.HOLD)
    assert (line.recipients, line.pending, line.hold_reason) == (2, 2, "why not")


@pytest.mark.parametrize("spools", [1, 3])
@pytest.mark.parametrize("limit", [1, 2, 7, 100])
@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [
        (QueueFilter(), range(20)),
        (QueueFilter(recipient="user7@example.com"), [7]),
        (QueueFilter(recipient="user1*"), [1, *range(10, 20)]),
        (QueueFilter(sender="@example.org", recipient="@EXAMPLE.com"), range(20)),
        (QueueFilter(sender="<>"), []),
        (QueueFilter(state=MessageState.HOLD), [0, 5, 10, 15]),
        (QueueFilter(state=MessageState.HOLD, recipient="user1*"), [10, 15]),
        (QueueFilter(state=MessageState.DEFERRED), []),
    ],
)
@ensureDeferred
async def test_pages_of_a_filter_bring_all_that_fits_once_and_in_order(
    open_spool, tmp_path, monkeypatch, spools, limit, chosen, wanted
):
    monkeypatch.setattr("elemta.spool.queue_list.LOOKED_AT", 3)
    monkeypatch.setattr("elemta.spool.lookups._QUESTIONS_FOR_A_PAGE", 2)
    opened = [await open_spool(tmp_path / str(number)) for number in range(spools)]
    ids = []
    for number in range(20):
        reason = "held" if number % 5 == 0 else None
        # Not in turns, so that one spool's page ends before another one's begins.
        spool = opened[number // 4 % spools]
        ids.append((await put(spool, b"body", f"user{number}", hold_reason=reason)).queue_id)
    ids.sort()
    queue = CombinedQueue(opened[0], lambda: opened[1:])
    found, after = [], None
    for _ in range(100):
        page = await queue.find(chosen, limit, after)
        assert len(page.messages) <= limit
        found += [message.queue_id for message in page.messages]
        after = page.after
        if after is None:
            break
    assert after is None
    assert found == [ids[number] for number in wanted]


CALLS = {
    "show": lambda queue, queue_id: queue.show(queue_id),
    "hold": lambda queue, queue_id: queue.hold(queue_id),
    "release": lambda queue, queue_id: queue.release(queue_id),
    "retry": lambda queue, queue_id: queue.retry(queue_id),
    "delete": lambda queue, queue_id: queue.delete(queue_id),
    "of": lambda queue, queue_id: queue.of(queue_id),
    "find": lambda queue, queue_id: queue.find(QueueFilter()),
    "stats": lambda queue, queue_id: queue.stats(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("released", [True, False])
@ensureDeferred
async def test_a_spool_that_is_given_up_meanwhile_is_left_out_and_one_that_fails_is_not(
    open_spool, tmp_path, call, released
):
    own, closed, other = [await open_spool(tmp_path / str(number)) for number in range(3)]
    queue_id = (await put(other, b"body")).queue_id
    await closed.close()
    # It closed after the call took the first look, and is no longer listed if it was given up.
    looks = iter([[closed, other]])
    queue = CombinedQueue(own, lambda: next(looks, [other] if released else [closed, other]))
    asked = Deferred.fromCoroutine(call(queue, queue_id))
    if released:
        await asked
    else:
        with pytest.raises(SpoolError, match="the spool is clos"):
            await asked


@ensureDeferred
async def test_the_numbers_follow_every_change_and_a_restart_counts_the_same(open_spool):
    spool = await open_spool()
    ids = [(await put(spool, b"x" * 100)).queue_id for _ in range(4)]
    size = len(HEADER) + 100
    await spool.hold(ids[0], "h")
    await spool.settle(ids[1], [], retry_at=9e9, hold_reason=None)
    await spool.delete(ids[2])
    stats = await spool.stats()
    once_each = (MessageState.ACTIVE, MessageState.DEFERRED, MessageState.HOLD)
    assert +Counter(stats.messages) == dict.fromkeys(once_each, 1)
    assert +Counter(stats.octets) == dict.fromkeys(once_each, size)
    assert stats.total_octets == 3 * size
    assert 0 < stats.oldest_age < 60
    assert stats.free > 0
    assert stats.healthy
    await spool.close()
    again = await open_spool()
    assert (await again.stats()).messages == stats.messages
    assert again.messages == stats.messages


@ensureDeferred
async def test_operators_hold_release_retry_and_delete(open_spool):
    spool = await open_spool()
    woken: list[str] = []
    spool.on_due(woken.extend)
    queue_id = (await put(spool, b"body")).queue_id
    await spool.hold(queue_id, "to look at")
    with pytest.raises(SpoolError, match="on hold"):
        await spool.retry(queue_id)
    assert woken == []
    await spool.release(queue_id)
    assert woken == [""]
    (message,) = await due(spool, time.time(), 1)
    assert (message.state, message.hold_reason) == (MessageState.ACTIVE, None)

    await spool.settle(queue_id, [], retry_at=9e9, hold_reason=None)
    assert await due(spool, time.time(), 1) == []
    await spool.retry(queue_id)
    assert [message.queue_id for message in await due(spool, time.time(), 1)] == [queue_id]

    await spool.delete(queue_id)
    with pytest.raises(UnknownMessage):
        await spool.show(queue_id)


@pytest.mark.parametrize("queue_id", [NO_SUCH_ID, "", "../../etc/passwd", "ÄÖÜ" * 6, "0" * 17 + "!"])
@ensureDeferred
async def test_an_unknown_queue_id_is_said_to_be_unknown(open_spool, queue_id):
    spool = await open_spool()
    await put(spool, b"body")
    for operation in (spool.hold, spool.release, spool.retry, spool.delete, spool.show, spool.open_content):
        with pytest.raises(UnknownMessage):
            await operation(queue_id)


@ensureDeferred
async def test_a_queue_id_of_the_same_moment_and_another_end_is_another_message(open_spool):
    spool = await open_spool()
    queue_id = (await put(spool, b"body")).queue_id
    twin = queue_id[:12] + ("000000" if queue_id[12:] != "000000" else "000001")
    for operation in (spool.show, spool.open_content, spool.delete):
        with pytest.raises(UnknownMessage):
            await operation(twin)
    assert (await spool.show(queue_id)).queue_id == queue_id


@ensureDeferred
async def test_a_closed_spool_refuses_everything(open_spool):
    spool = await open_spool()
    envelope = await put(spool, b"body")
    late = written(spool, b"late")
    await spool.close()
    await spool.close()
    with pytest.raises(SpoolError):
        await spool.commit(late, submission())
    with pytest.raises(SpoolError):
        await spool.settle(envelope.queue_id, [], retry_at=None, hold_reason=None)
    with pytest.raises(SpoolError):
        await spool.list()
    with pytest.raises(SpoolError):
        await spool.delete(envelope.queue_id)


@ensureDeferred
async def test_closing_finishes_what_was_asked_for(open_spool):
    spool = await open_spool()
    small = spool.commit(written(spool, b"small"), submission())
    large = spool.commit(written(spool, b"large" * 50_000), submission())
    await spool.close()
    ids = {(await small).queue_id, (await large).queue_id}
    again = await open_spool()
    assert {line.queue_id for line in await again.list()} == ids
    assert await read(again, (await large).queue_id) == HEADER + b"large" * 50_000


@ensureDeferred
async def test_room_is_what_the_disk_has_beyond_the_minimum(open_spool):
    spool = await open_spool(minimum_free=1)
    assert spool.has_space()
    assert not spool.has_space(1 << 60)
    await spool.close()
    assert not (await open_spool(minimum_free=1 << 60)).has_space()


class OtherFileSystem(Disk):
    """A disk on which what is below ``place`` is on a file system with less space."""

    def __init__(self, place: str) -> None:
        self.place, self.free = place, 100

    def free_space(self, path):
        on_it = self.place in path.parts
        return FreeSpace(self.free, 50, 1000) if on_it else FreeSpace(1 << 40, None, 1 << 41)


@pytest.mark.parametrize("place", ["p0", "bodies"])
@ensureDeferred
async def test_space_is_measured_where_mail_is_written(open_spool, place):
    disk = OtherFileSystem(place)
    spool = await open_spool(disk=disk, minimum_free=40, refresh=0.01)
    assert (spool.has_space(60), spool.has_space(61)) == (True, False)
    disk.free = 39
    await until(lambda: not spool.has_space())
    disk.free = 41
    await until(spool.has_space)
    assert (await spool.stats()).free == 41


@ensureDeferred
async def test_a_partition_behind_a_link_is_measured_at_its_own_file_system(open_spool, tmp_path):
    seen = []

    class Watched(Disk):
        def free_space(self, path):
            seen.append(os.path.realpath(path))
            return super().free_space(path)

    (tmp_path / "spool").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "spool/p0").symlink_to(tmp_path / "elsewhere")
    await open_spool(disk=Watched())
    assert seen == [str(tmp_path / "elsewhere"), str(tmp_path / "elsewhere/bodies")]
