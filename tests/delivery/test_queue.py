"""Messages whose bodies are lost, cut or unreadable end with a notice, and keep no others waiting."""

from __future__ import annotations

import errno
import io
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.task import deferLater

from elemta.address import Address
from elemta.delivery import Retries
from elemta.delivery import bounces as bounces_module
from elemta.delivery.destinations import Destinations
from elemta.delivery.expiry import ExpiryScanner
from elemta.delivery.notices import return_to_sender
from elemta.envelope import MailParameters, Return
from elemta.message.notice import NoticeSettings
from elemta.outcome import Outcome, Status
from elemta.spool import MessageState, Spool, SpoolSettings
from tests.support.post import Hop, Post, reactor
from tests.support.runtime import runtime_of

EXPIRE = 100_000.0
LARGE = b"Subject: large\r\n\r\n" + b"x" * 100_000


def bodies(spool: Path) -> Path:
    return spool / "p0" / "bodies"


def database(spool: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(spool / "p0" / "queue.db")
    connection.isolation_level = None
    return connection


def lose_file(spool: Path, queue_id: str) -> None:
    (bodies(spool) / queue_id).unlink()


def cut_file(spool: Path, queue_id: str) -> None:
    (bodies(spool) / queue_id).write_bytes(LARGE[:50_000])


def empty_file(spool: Path, queue_id: str) -> None:
    (bodies(spool) / queue_id).write_bytes(b"")


def unreadable_file(spool: Path, queue_id: str) -> None:
    path = bodies(spool) / queue_id
    path.unlink()
    path.symlink_to(path)


def directory_for_file(spool: Path, queue_id: str) -> None:
    path = bodies(spool) / queue_id
    path.unlink()
    path.mkdir()


def lose_row(spool: Path, queue_id: str) -> None:
    with database(spool) as connection:
        connection.execute(
            "DELETE FROM body WHERE id = (SELECT id FROM message WHERE queue_id = ?)", (queue_id,)
        )


def cut_row(spool: Path, queue_id: str) -> None:
    with database(spool) as connection:
        connection.execute(
            "UPDATE body SET content = substr(content, 1, 5)"
            " WHERE id = (SELECT id FROM message WHERE queue_id = ?)",
            (queue_id,),
        )


Damage = Callable[[Path, str], None]
DAMAGES: list[tuple[Damage, bytes]] = [
    (lose_file, LARGE),
    (cut_file, LARGE),
    (empty_file, LARGE),
    (unreadable_file, LARGE),
    (directory_for_file, LARGE),
    (lose_row, b"Subject: small\r\n\r\nsmall\r\n"),
    (cut_row, b"Subject: small\r\n\r\nsmall\r\n"),
]
ANY_DAMAGE = pytest.mark.parametrize(
    ("damage", "body"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES]
)


class Old(Post):
    """Mail for a destination that is down, and time that passes as a test says."""

    def __init__(self, directory: Path, spool: Spool, now: float, passed: list[float]) -> None:
        super().__init__(directory, spool)
        self.now = now
        self.passed = passed
        self.settings = replace(self.settings, retries=Retries((60.0,), expire=EXPIRE), warn_after=1000.0)
        self.destinations = Destinations(lambda destination: 20, 100)
        self.aging = ExpiryScanner(spool, self.destinations, self.settings)
        down = Outcome("Q", Address("bob", "example.com"), Status.DEFERRED, "refused", "", "", self.now)
        self.destinations.block("", self.now + 1e9, down)

    async def walk(self, after: float) -> None:
        self.passed[0] = after
        await self.aging.walk(self.now + after, lambda: True)

    async def told(self) -> dict[str, list[str]]:
        """The kinds of notices that there are about each message, by its queue id."""
        told: dict[str, list[str]] = {}
        for summary in await self.spool.list(limit=10_000):
            if not summary.sender:
                with await self.spool.open_content(summary.queue_id) as content:
                    report = content.read().decode()
                about = report.partition("X-Elemta-Queue-Id: ")[2].split("\r\n")[0]
                action = report.partition("Action: ")[2].split("\r\n")[0]
                told.setdefault(about, []).append(action)
        return told

    def damage(self, damage: Damage, queue_id: str) -> None:
        damage(self.directory / "spool", queue_id)


@pytest_twisted.async_yield_fixture
async def old(tmp_path: Path) -> AsyncIterator[Old]:
    now, passed = time.time(), [0.0]
    spool = await Spool.open(
        SpoolSettings(tmp_path / "spool", minimum_free=0),
        runtime=runtime_of(reactor, wall=lambda: now + passed[0]),
    )
    yield Old(tmp_path, spool, now, passed)
    await spool.close()
    await deferLater(reactor, 0)


@ANY_DAMAGE
@ensureDeferred
async def test_sixty_unreadable_bodies_neither_stop_expiry_nor_delay_notices(
    old: Old, damage: Damage, body: bytes
) -> None:
    ids = [await old.send("bob@example.com", body=body, received_at=old.now) for _ in range(60)]
    for queue_id in ids:
        old.damage(damage, queue_id)
    good = await old.send("bob@example.com", received_at=old.now)
    await old.walk(2000.0)
    assert await old.told() == {queue_id: ["delayed"] for queue_id in (*ids, good)}
    await old.walk(EXPIRE + 10)
    assert await old.told() == {queue_id: ["delayed", "failed"] for queue_id in (*ids, good)}
    assert good not in await old.queued()


@ANY_DAMAGE
@pytest.mark.parametrize("ret", [None, Return.FULL, Return.HEADERS])
@ensureDeferred
async def test_the_sender_is_told_from_the_envelope_where_nothing_else_is_left(
    old: Old, damage: Damage, body: bytes, ret: Return | None
) -> None:
    queue_id = await old.send(
        "bob@example.com", body=body, received_at=old.now, parameters=MailParameters(ret=ret)
    )
    old.damage(damage, queue_id)
    await old.walk(EXPIRE + 10)
    (report,) = await old.bounces()
    assert "Final-Recipient: rfc822; bob@example.com" in report
    assert f"X-Elemta-Queue-Id: {queue_id}" in report
    assert report.rstrip().endswith("--")


@ANY_DAMAGE
@ensureDeferred
async def test_it_stays_on_hold_with_its_reason_for_as_long_again(
    old: Old, damage: Damage, body: bytes
) -> None:
    queue_id = await old.send("bob@example.com", body=body, received_at=old.now)
    old.damage(damage, queue_id)
    await old.walk(EXPIRE + 10)
    record = await old.show(queue_id)
    assert record.message.state is MessageState.HOLD
    assert "it can't be read, and the sender got a notice: " in (record.message.hold_reason or "")
    await old.walk(2 * EXPIRE)
    assert await old.queued() == [queue_id]
    await old.walk(2 * EXPIRE + 20)
    assert await old.queued() == []
    # No sender gets a second notice.
    assert len(await old.bounces()) == 1


class BadBlock(io.FileIO):
    """A file with a block that the disk does not give."""

    bad = 2 << 20

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() <= self.bad < self.tell() + (self.bad if size is None or size < 0 else size):
            raise OSError(errno.EIO, "Input/output error")
        return super().read(size)


@pytest.mark.parametrize("bad", [100, 512 << 10, 2 << 20, (4 << 20) - 10])
@ensureDeferred
async def test_a_bad_block_anywhere_in_a_large_body_holds_the_message_and_tells_its_sender(
    old: Old, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    queue_id = await old.send("bob@example.com", body=LARGE + b"x" * (4 << 20), received_at=old.now)
    open_content = old.spool.open_content

    async def open_on_bad_disk(wanted: str) -> BinaryIO:
        content = cast(Any, await open_content(wanted))
        if wanted == queue_id:
            whole, content._body = content._body, BadBlock(content._body.name)
            content._body.bad = bad
            whole.close()
        return cast(BinaryIO, content)

    monkeypatch.setattr(old.spool, "open_content", open_on_bad_disk)
    await old.walk(EXPIRE + 10)
    record = await old.show(queue_id)
    assert record.message.state is MessageState.HOLD
    assert "it can't be read, and the sender got a notice: " in (record.message.hold_reason or "")
    (report,) = await old.bounces()
    assert "bob@example.com" in report


@ANY_DAMAGE
@ensureDeferred
async def test_an_operator_can_return_and_show_it(old: Old, damage: Damage, body: bytes) -> None:
    queue_id = await old.send("bob@example.com", body=body, received_at=old.now)
    old.damage(damage, queue_id)
    assert (await old.show(queue_id)).queue_id == queue_id
    returned = await return_to_sender(old.spool, queue_id, NoticeSettings("me.example"), lambda: old.now)
    assert (returned.recipients, returned.notices) == (1, 1)
    assert await old.queued() == []
    assert len(await old.bounces()) == 1


@ensureDeferred
async def test_a_fault_with_one_message_stops_no_walk_and_is_tried_again(
    old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = await old.send("bad@example.com", received_at=old.now)
    for _ in range(3):
        await old.send("bob@example.com", received_at=old.now)
    build = bounces_module.build_dsn

    def broken(notice: Any, *args: Any, **kwargs: Any) -> Any:
        if notice.envelope.queue_id == bad:
            raise RuntimeError("a fault of ours")
        return build(notice, *args, **kwargs)

    monkeypatch.setattr(bounces_module, "build_dsn", broken)
    await old.walk(2000.0)
    assert len(await old.bounces()) == 3
    monkeypatch.setattr(bounces_module, "build_dsn", build)
    # It is left alone for a while, then told after all, and only once.
    await old.walk(2010.0)
    assert len(await old.bounces()) == 3
    for after in (2070.0, 2140.0):
        await old.walk(after)
        assert len(await old.bounces()) == 4
    await old.walk(EXPIRE + 10)
    assert await old.queued() == []
    assert len(await old.bounces()) == 8


@ensureDeferred
async def test_in_delivery_it_ends_with_a_notice_too(post: Post) -> None:
    hop = Hop()
    post.settings = replace(post.settings, retries=Retries((0.3,), expire=1.0, jitter=0.0))
    queue_id = await post.send("bob@example.com", body=LARGE)
    lose_file(post.directory / "spool", queue_id)
    post.start(await post.listen(hop))
    good = await post.send("eve@example.com")
    await post.until(lambda: len(hop.messages) == 1)
    for _ in range(1000):
        if reports := await post.bounces():
            break
        await deferLater(reactor, 0.02)
    assert good not in await post.queued()
    assert (await post.reached(queue_id, MessageState.HOLD)).message.hold_reason is not None
    assert "bob@example.com" in reports[0]
    assert "Status: 5.4.7" in reports[0]
