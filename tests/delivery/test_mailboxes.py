"""Whether a Maildir exists is found out beside the reactor, in bounded time and space."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elemta.address import Address
from elemta.delivery import maildir as module
from elemta.delivery.maildir import Mailboxes
from elemta.delivery.routes import MaildirRoute, Placeholder
from elemta.errors import MailboxUnknown
from tests.support.runtime import runtime_of

BOB = Address("bob", "example.com")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mailboxes(clock: Clock) -> Iterator[Mailboxes]:
    mailboxes = Mailboxes(runtime_of(reactor, reactor=clock, monotonic=clock.seconds))
    yield mailboxes
    mailboxes.stop()


@pytest.fixture
def route(tmp_path: Path) -> MaildirRoute:
    template = (f"{tmp_path}/", Placeholder.DOMAIN, "/", Placeholder.LOCAL)
    return MaildirRoute("maildir:", frozenset({"*"}), template=template)


async def found(answer: bool | Deferred[bool]) -> bool:
    return await answer if isinstance(answer, Deferred) else answer


@ensureDeferred
async def test_a_directory_is_found_also_if_another_process_made_it(
    mailboxes: Mailboxes, route: MaildirRoute, tmp_path: Path, clock: Clock
) -> None:
    assert not await found(mailboxes.exists(route, BOB))
    (tmp_path / "example.com/bob").mkdir(parents=True)
    clock.advance(module.REMEMBER_MISSING)
    assert await found(mailboxes.exists(route, BOB))
    assert await found(mailboxes.exists(route, Address("BOB", "example.com")))


@ensureDeferred
async def test_an_answer_is_remembered_for_a_moment(
    mailboxes: Mailboxes, route: MaildirRoute, tmp_path: Path, clock: Clock
) -> None:
    (tmp_path / "example.com/bob").mkdir(parents=True)
    assert await found(mailboxes.exists(route, BOB))
    (tmp_path / "example.com/bob").rmdir()
    assert mailboxes.exists(route, BOB) is True
    clock.advance(module.REMEMBER_FOUND)
    assert not await found(mailboxes.exists(route, BOB))
    assert mailboxes.exists(route, BOB) is False
    mailboxes.forget()
    assert isinstance(mailboxes.exists(route, BOB), Deferred)


@ensureDeferred
async def test_a_flood_of_names_takes_bounded_memory(
    clock: Clock, route: MaildirRoute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_REMEMBERED", 5)
    mailboxes = Mailboxes(runtime_of(reactor, reactor=clock, monotonic=clock.seconds))
    for number in range(20):
        assert not await found(mailboxes.exists(route, Address(f"u{number}", "example.com")))
    assert len(mailboxes._remembered) == 5
    mailboxes.stop()


@pytest.mark.parametrize(
    "error", [PermissionError(13, "no"), OSError(5, "EIO"), NotADirectoryError(20, "no")]
)
@ensureDeferred
async def test_trouble_of_the_file_system_is_no_missing_mailbox(
    mailboxes: Mailboxes, route: MaildirRoute, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(path: Any) -> Any:
        raise error

    monkeypatch.setattr(module.os, "stat", fail)
    with pytest.raises(MailboxUnknown):
        await found(mailboxes.exists(route, BOB))


@ensureDeferred
async def test_a_disk_that_hangs_costs_a_deadline_and_bounded_room(
    route: MaildirRoute, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    real = module.os.stat
    monkeypatch.setattr(module.os, "stat", lambda path: (go.wait(60), real("/"))[1])
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    mailboxes = Mailboxes(runtime_of(reactor, reactor=clock, monotonic=clock.seconds))
    answers = [mailboxes.exists(route, Address(f"u{number}", "example.com")) for number in range(10)]
    with pytest.raises(MailboxUnknown):
        mailboxes.exists(route, BOB)
    failures: list[Any] = []
    for answer in answers:
        assert isinstance(answer, Deferred)
        answer.addErrback(failures.append)
    clock.advance(module.DEADLINE)
    assert [failure.type for failure in failures] == [MailboxUnknown] * 10
    go.set()
    while mailboxes._asked:
        from twisted.internet.task import deferLater

        await deferLater(reactor, 0.005)
    mailboxes.stop()
