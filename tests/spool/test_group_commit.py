"""Many messages, few syncs; one that can't be stored does not cost the others."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import CancelledError, DeferredList, gatherResults

from elemta.address import Address
from elemta.envelope import Client, MailParameters, Recipient
from elemta.errors import SpoolError, UnknownMessage
from elemta.spool import Submission
from tests.spool.mail import FailingDisk, RecordingDisk, put, read, submission, written


@ensureDeferred
async def test_messages_that_arrive_together_share_a_sync(open_spool, counted):
    disk = RecordingDisk()
    spool = await open_spool(disk=disk)
    disk.diary.clear()
    envelopes = await gatherResults([spool.commit(written(spool, b"body"), submission()) for _ in range(300)])
    assert disk.diary.count("COMMIT") == len(counted.commits) == 1
    assert sum(counted.commits) == 300
    assert [line.queue_id for line in await spool.list(limit=999)] == [
        envelope.queue_id for envelope in envelopes
    ]


@ensureDeferred
async def test_a_batch_is_bounded_in_number_and_in_octets(open_spool, counted):
    spool = await open_spool(batch_operations=10, batch_bytes=100_000)
    await gatherResults([spool.commit(written(spool, b"body"), submission()) for _ in range(35)])
    assert counted.commits == [10, 10, 10, 5]
    await gatherResults([spool.commit(written(spool, b"x" * 40_000), submission()) for _ in range(5)])
    assert counted.commits[4:] == [2, 2, 1]


@ensureDeferred
async def test_answers_come_in_the_order_of_the_commits(open_spool):
    spool = await open_spool(batch_operations=7)
    answered: list[int] = []
    waiting = [
        spool.commit(written(spool, b"body"), submission()).addCallback(
            lambda _, n=number: answered.append(n)
        )
        for number in range(50)
    ]
    await gatherResults(waiting)
    assert answered == list(range(50))


@ensureDeferred
async def test_an_operation_that_cannot_be_done_fails_alone(open_spool):
    spool = await open_spool()
    good = [spool.commit(written(spool, b"body"), submission()) for _ in range(3)]
    twin = written(spool, b"twin")
    twin.queue_id = (await put(spool, b"first")).queue_id
    bad = spool.commit(twin, submission())
    good += [spool.commit(written(spool, b"body"), submission()) for _ in range(3)]
    results = await DeferredList([*good, bad], consumeErrors=True)
    assert [success for success, _ in results[:6]] == [True] * 6
    assert not results[6][0]
    assert results[6][1].check(SpoolError)
    assert spool.healthy
    assert len(await spool.list()) == 7
    assert await read(spool, twin.queue_id) == b"Received: from client by mx; now\r\nfirst"
    assert sum(spool.messages.values()) == 7


@ensureDeferred
async def test_a_value_that_no_database_takes_fails_alone(open_spool):
    spool = await open_spool()
    strange = Submission(
        Address("a", "b"),
        (Recipient(Address("c", "d")),),
        MailParameters(),
        Client(),
        b"",
        1j,
    )
    good, bad = (
        spool.commit(written(spool, b"body"), submission()),
        spool.commit(written(spool, b"body"), strange),
    )
    results = await DeferredList([bad, good], consumeErrors=True)
    assert [success for success, _ in results] == [False, True]
    assert results[0][1].check(SpoolError)
    assert spool.healthy


@ensureDeferred
async def test_an_unknown_message_does_not_disturb_the_batch_it_is_in(open_spool):
    spool = await open_spool()
    first = await put(spool, b"body")
    gone = spool.delete("0" * 18)
    from twisted.internet.defer import Deferred

    deleted = Deferred.fromCoroutine(gone)
    kept = spool.commit(written(spool, b"body"), submission())
    held = Deferred.fromCoroutine(spool.hold(first.queue_id))
    with pytest.raises(UnknownMessage):
        await deleted
    await kept
    await held


@ensureDeferred
async def test_giving_up_waiting_neither_undoes_the_commit_nor_holds_up_others(open_spool):
    spool = await open_spool()
    waiting = [
        spool.commit(written(spool, body), submission()) for body in (b"small", b"large" * 50_000, b"small")
    ]
    waiting[0].cancel()
    waiting[1].cancel()
    for cancelled in waiting[:2]:
        with pytest.raises(CancelledError):
            await cancelled
    await waiting[2]
    await spool.close()
    again = await open_spool()
    assert len(await again.list()) == 3


@ensureDeferred
async def test_a_caller_whose_answer_raises_does_not_hold_up_others(open_spool, unhandled_errors):
    spool = await open_spool()

    def fail(_):
        raise RuntimeError("the caller's own trouble")

    first = spool.commit(written(spool, b"body"), submission()).addCallback(fail)
    second = spool.commit(written(spool, b"body"), submission())
    await second
    with pytest.raises(RuntimeError):
        await first


@ensureDeferred
async def test_the_log_stays_short_under_steady_load(open_spool, tmp_path):
    spool = await open_spool(reserve=1 << 20)
    for _ in range(40):
        envelopes = await gatherResults(
            [spool.commit(written(spool, b"x" * 10_000), submission()) for _ in range(20)]
        )
        await gatherResults([spool._commits.submit(_delete(envelope.queue_id)) for envelope in envelopes])
    # 8 MB went through; half a MiB, and the batch that crossed the line, is what the log may hold.
    assert (tmp_path / "spool" / "p0" / "queue.db-wal").stat().st_size < 2 << 20
    assert (tmp_path / "spool" / "p0" / "queue.db").stat().st_size < 3 << 20


def _delete(queue_id):
    from elemta.spool.operations import OperatorAction, OperatorChange
    from elemta.spool.queue_id import row_key

    return OperatorChange(row_key(queue_id), queue_id, OperatorAction.DELETE, 0.0, "")


@ensureDeferred
async def test_failures_are_told_by_kind(open_spool, counted):
    disk = FailingDisk()
    spool = await open_spool(disk=disk, first_reopen=0.01)
    disk.fail("before commit")
    with pytest.raises(SpoolError):
        await put(spool, b"body")
    assert counted.failed == ["disk"]
    assert counted.commits == []
