"""How holds end: by their time, by their share of the disk, and never while an operator wants them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred
from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater

from elemta.address import NULL
from elemta.outcome import Status
from elemta.runtime.disk import FreeSpace
from elemta.spool import Disk, HoldCause, MessageState, Spool
from elemta.spool.holds import Holds
from elemta.spool.operations import QueueCounts
from elemta.spool.parts import space_of
from tests.spool.mail import HEADER, Counted, outcome, put, submission, written

reactor: Any = _reactor
MIB = 1024 * 1024


class SmallDisk(Disk):
    """A disk of a size that a test chooses."""

    def __init__(self, total: int, free: int) -> None:
        self.total, self.free = total, free

    def free_space(self, path: Any) -> FreeSpace:
        return FreeSpace(self.free, None, self.total)


async def fail_notice(spool: Spool, body: bytes = b"x", *names: str) -> str:
    """A notice that can't be delivered."""
    notice = submission(*names, at=time.time())
    object.__setattr__(notice, "sender", NULL)
    queue_id = (await spool.commit(written(spool, body), notice)).queue_id
    outcomes = [outcome(queue_id, name, Status.FAILED) for name in names or ("bob",)]
    await spool.settle(
        queue_id,
        outcomes,
        part=0,
        retry_at=None,
        hold_reason="undeliverable, and the sender <> gets no notice",
        hold=HoldCause.UNDELIVERABLE,
    )
    return queue_id


async def settled(spool: Spool) -> None:
    """When nothing is removed any more."""
    for _ in range(1000):
        await deferLater(reactor, 0.005)
        share = spool._holds.share
        if not spool._holds._at_work and share is not None and spool._commits.counts.undeliverable <= share:
            return
    raise AssertionError("it did not end")


@pytest.mark.parametrize("size", [100, 30_000, 300_000])
@ensureDeferred
async def test_undeliverable_notices_never_take_more_than_a_tenth_of_the_disk(
    open_spool: Any, counted: Counted, events: list[Any], size: int
) -> None:
    octets = space_of(size + len(HEADER), 1)
    spool = await open_spool(disk=SmallDisk(total=60 * octets, free=50 * octets), reserve=4096)
    ids = [await fail_notice(spool, b"y" * size) for _ in range(20)]
    await settled(spool)
    left = [line.queue_id for line in await spool.list()]
    assert left == ids[-6:]
    assert (await spool.stats()).undeliverable == 6 * octets
    assert counted.ended == ["over_share"] * 14
    ended = [event for event in events if event.get("event") == "hold.ended"]
    assert [event["queue_id"] for event in ended] == ids[:14]
    assert {event["reason"] for event in ended} == {"over_share"}
    bodies = spool.settings.directory / "p0" / "bodies"
    for _ in range(1000):
        # A thread removes the files after the rows.
        if {path.name for path in bodies.iterdir()} <= set(left):
            return
        await deferLater(reactor, 0.005)
    raise AssertionError("bodies are left")


@ensureDeferred
async def test_rows_of_many_recipients_count_for_the_share(open_spool: Any) -> None:
    spool = await open_spool(disk=SmallDisk(total=20 * MIB, free=10 * MIB), reserve=4096)
    names = [f"user{number}" for number in range(500)]
    for _ in range(8):
        await fail_notice(spool, b"x", *names)
    await settled(spool)
    assert (await spool.stats()).undeliverable <= 2 * MIB
    assert 1 <= len(await spool.list()) <= 4


@ensureDeferred
async def test_a_disk_that_fills_for_another_reason_costs_undeliverable_notices_first(
    open_spool: Any,
) -> None:
    disk = SmallDisk(total=1000 * MIB, free=500 * MIB)
    spool = await open_spool(disk=disk, reserve=4096, minimum_free=256 * MIB, refresh=0.01)
    kept = await put(spool, b"mail with a sender", hold_reason="quarantined")
    for _ in range(5):
        await fail_notice(spool, b"y" * 100_000)
    await settled(spool)
    assert len(await spool.list()) == 6
    disk.free = 256 * MIB + 200_000
    for _ in range(100):
        await settled(spool)
        if len(await spool.list()) <= 5:
            break
    disk.free = 255 * MIB
    for _ in range(100):
        await settled(spool)
        if len(await spool.list()) == 1:
            break
    assert [line.queue_id for line in await spool.list()] == [kept.queue_id]


@ensureDeferred
async def test_what_an_operator_holds_is_nobody_elses(open_spool: Any, counted: Counted) -> None:
    spool = await open_spool(disk=SmallDisk(total=MIB, free=MIB // 2), reserve=4096)
    cared_for = await fail_notice(spool, b"y" * 50_000)
    await spool.hold(cared_for, "for the lawyers")
    released = await fail_notice(spool, b"y" * 1000)
    await spool.release(released)
    assert (await spool.stats()).undeliverable == 0
    assert await spool.held(time.time() + 1e9, 10) == []
    for _ in range(5):
        await fail_notice(spool, b"y" * 50_000)
    await settled(spool)
    left = {line.queue_id: line.state for line in await spool.list()}
    assert left[cared_for] is MessageState.HOLD
    assert left[released] is MessageState.ACTIVE
    assert counted.ended


@pytest.mark.parametrize("cares", ["hold", "release", "delete"])
@ensureDeferred
async def test_an_operator_who_is_faster_wins(open_spool: Any, counted: Counted, cares: str) -> None:
    spool = await open_spool()
    queue_id = await fail_notice(spool)
    (held,) = await spool.held(time.time() + 10, 10)
    await getattr(spool, cares)(queue_id)
    await spool.end_hold(held, [outcome(queue_id, "bob", Status.FAILED)], "removed")
    assert len(await spool.list()) == (0 if cares == "delete" else 1)
    assert counted.ended == []


@ensureDeferred
async def test_holds_and_what_they_take_are_known_after_a_restart(open_spool: Any) -> None:
    spool = await open_spool(disk=SmallDisk(total=1000 * MIB, free=500 * MIB))
    ids = [await fail_notice(spool, b"y" * size, "ann", "bob") for size in (10, 100_000)]
    quarantined = await put(spool, b"x", hold_reason="spam", hold=HoldCause.QUARANTINE)
    before = (await spool.stats()).undeliverable
    assert before > 100_000
    held = await spool.held(time.time() + 1, 10)
    await spool.close()
    again = await open_spool(disk=SmallDisk(total=1000 * MIB, free=500 * MIB))
    assert (await again.stats()).undeliverable == before
    assert await again.held(time.time() + 1, 10) == held
    assert [(each.message.queue_id, each.hold) for each in held] == [
        (ids[0], HoldCause.UNDELIVERABLE),
        (ids[1], HoldCause.UNDELIVERABLE),
        (quarantined.queue_id, HoldCause.QUARANTINE),
    ]
    await again.close()
    # A disk that is now too small is put in order at the start.
    small = await open_spool(disk=SmallDisk(total=MIB, free=MIB))
    await settled(small)
    assert ids[1] not in [line.queue_id for line in await small.list()] or (
        (await small.stats()).undeliverable <= MIB // 10
    )


@ensureDeferred
async def test_of_a_message_that_is_held_in_part_only_that_part_ends(open_spool: Any) -> None:
    spool = await open_spool()
    queue_id = (await put(spool, b"x", "ann", "bob")).queue_id
    await spool.settle(
        queue_id,
        [outcome(queue_id, "ann", Status.FAILED), outcome(queue_id, "bob", Status.DEFERRED)],
        part=0,
        retry_at=time.time() + 100,
        hold_reason="undeliverable",
        hold=HoldCause.UNDELIVERABLE,
    )
    (held,) = await spool.held(time.time() + 1, 10)
    assert [str(each.address) for each in held.message.pending] == ["ann@example.com"]
    await spool.end_hold(held, [outcome(queue_id, "ann", Status.FAILED)], "removed")
    message = (await spool.show(queue_id)).message
    assert message.state is MessageState.DEFERRED
    assert message.hold_reason is None
    assert [str(each.address) for each in message.pending] == ["bob@example.com"]
    assert (await spool.stats()).undeliverable == 0


@given(
    total=st.integers(0, 10**12),
    free=st.integers(0, 10**12),
    held=st.integers(0, 10**12),
    minimum=st.integers(0, 10**10),
)
def test_the_share_is_at_most_a_tenth_and_leaves_the_minimum_free(
    total: int, free: int, held: int, minimum: int
) -> None:
    holds = Holds(
        None,  # type: ignore[arg-type]  # nothing is removed here
        lambda: QueueCounts(undeliverable=held),
        Counted(),
        minimum_free=minimum,
        now=lambda: 0.0,
    )
    holds._at_work = True
    assert holds.share is None
    holds.look(FreeSpace(free, None, total))
    share = holds.share
    assert share is not None
    assert 0 <= share <= total // 10
    if share:
        # If notices filled their share, and nothing else changed, there would be space for mail.
        assert free + held - share >= minimum + share
