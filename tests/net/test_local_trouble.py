"""What goes wrong on this side is never told as a 5xx, whatever it is and whatever policies make of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, fail

from elemta.config import OnError
from elemta.delivery.maildir import Mailboxes
from elemta.delivery.routes import MaildirRoute, Placeholder, RouteTable
from elemta.errors import MailboxUnknown, SpoolError, SpoolFull
from elemta.net import message_commit
from elemta.net.factory import ESMTPFactory
from elemta.policy import CONTINUE, Accept
from elemta.runtime import Runtime
from tests.net.conftest import BLOCK, Client, Place, StuckDisk, reply_of

TROUBLE = "451 4.3.0 Local trouble, try again later"
DEFERRED = "451 4.3.0 Local trouble, please try again later"
FULL = "452 4.3.1 Insufficient storage, try again later"
ENVELOPE = b"MAIL FROM:<a@client.test>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n"
#: A message that goes to a file, and one that does not.
LARGE, SMALL = b"Subject: x\r\n\r\n" + BLOCK * 200, b"Subject: x\r\n\r\nx\r\n"


def _bug(*_: object, **__: object) -> Any:
    raise RuntimeError("a bug of ours")


def _reads(place: Place) -> None:
    """The policy reads each message, and whatever fails there is a refusal for good."""

    class Reads(type(place.policy)):  # type: ignore[misc]
        def message(self, session: Any, transaction: Any, message: Any) -> Any:
            with message.open() as file:
                file.read()
            return CONTINUE

    place.policy = Reads()
    place.on_error = OnError.REJECT


@dataclass
class Scene:
    """Where something is going to fail."""

    place: Place
    disk: StuckDisk
    patch: pytest.MonkeyPatch
    root: Path
    factory: ESMTPFactory | None = None

    def change(self, **changes: Any) -> None:
        """Other terms for the session."""
        self.factory = self.factory or self.place.factory
        assert self.factory.context is not None
        self.factory.context = replace(self.factory.context, **changes)

    def mailboxes(self, look: Callable[..., Any] | None = None, root: str = "") -> None:
        """Recipients need a Maildir; ``look`` is how that is found out."""
        from twisted.internet import reactor

        mailboxes = Mailboxes(Runtime.of(reactor))
        if look is not None:
            self.patch.setattr(mailboxes, "exists", look)
        template = (f"{root or self.root}/", Placeholder.DOMAIN, "/", Placeholder.LOCAL)
        route = MaildirRoute("maildir:", frozenset({"*"}), template=template, root=root)
        self.change(mailboxes=mailboxes, routes=RouteTable((route,)))

    def patch_spool(self, name: str, value: object) -> None:
        self.patch.setattr(type(self.place.spool), name, value)


def _failed(error: Exception) -> Callable[..., Deferred[Any]]:
    return lambda *_: fail(error)


def _raise(error: Exception) -> Callable[..., Any]:
    def raises(*_: object) -> Any:
        raise error

    return raises


CASES: dict[str, tuple[Callable[[Scene], object], bytes, str]] = {
    "a body can't be written": (lambda s: s.disk.fail("write"), LARGE, TROUBLE),
    "a body finds no room": (lambda s: s.disk.fail("write", number=errno.ENOSPC), LARGE, FULL),
    "a body can't be written on": (lambda s: s.disk.fail("write", 9, errno.EDQUOT), LARGE, FULL),
    "a body can't be synced": (lambda s: s.disk.fail("fdatasync"), LARGE, TROUBLE),
    "a body gets no name": (lambda s: s.disk.fail("rename"), LARGE, TROUBLE),
    "a directory can't be synced": (lambda s: s.disk.fail("fsync"), LARGE, TROUBLE),
    "the database fails": (lambda s: s.disk.fail("before commit"), SMALL, TROUBLE),
    "the database is full": (lambda s: s.disk.fail("before commit", number=errno.ENOSPC), SMALL, FULL),
    "the database fails afterwards": (lambda s: s.disk.fail("after commit"), SMALL, TROUBLE),
    "the spool is not trusted": (lambda s: s.patch_spool("healthy", False), SMALL, TROUBLE),
    "the disk is nearly full": (lambda s: s.patch_spool("has_space", lambda *_: False), SMALL, FULL),
    "a commit raises": (lambda s: s.patch_spool("commit", _bug), SMALL, TROUBLE),
    "a commit fails oddly": (lambda s: s.patch_spool("commit", _failed(ValueError())), SMALL, TROUBLE),
    "a commit says no": (lambda s: s.patch_spool("commit", _failed(SpoolError("no"))), SMALL, TROUBLE),
    "a commit says full": (lambda s: s.patch_spool("commit", _failed(SpoolFull("no"))), SMALL, FULL),
    "a field can't be made": (
        lambda s: s.patch.setattr(message_commit, "received_field", _bug),
        SMALL,
        TROUBLE,
    ),
    "routes fail": (lambda s: s.patch.setattr(RouteTable, "hold_reason", _bug), SMALL, TROUBLE),
    "mailboxes are not known": (lambda s: s.mailboxes(_failed(MailboxUnknown("?"))), SMALL, TROUBLE),
    "mailboxes raise": (lambda s: s.mailboxes(_raise(MailboxUnknown("?"))), SMALL, TROUBLE),
    "looking for mailboxes breaks": (lambda s: s.mailboxes(_bug), SMALL, TROUBLE),
    "no mail is mounted": (lambda s: s.mailboxes(root=f"{s.root}/missing"), SMALL, TROUBLE),
}


async def _converse(client: Client, message: bytes) -> list[str]:
    """The replies up to the one to the message, or to what was refused before it."""
    client.said()
    client.send(b"EHLO client.test\r\n")
    client.protocol.dataReceived(ENVELOPE)
    said = []
    while not said or said[-1].startswith("250 2.1"):
        said += await reply_of(client)
    if said[-1].startswith("354"):
        client.protocol.dataReceived(message + b".\r\n")
        said += await reply_of(client)
    return said


@pytest.mark.parametrize("case", CASES)
@ensureDeferred
async def test_no_local_trouble_is_a_5xx(
    case: str, place: Place, disk: StuckDisk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    breaks, message, reply = CASES[case]
    _reads(place)
    scene = Scene(place, disk, monkeypatch, tmp_path)
    breaks(scene)
    said = await _converse(place.connect(factory=scene.factory), message)
    monkeypatch.undo()
    assert reply in said
    # What a client pipelined behind it finds no transaction, which RFC 5321 §4.1.4 calls 503.
    assert all(line[0] in "23" for line in said[: said.index(reply)])


@pytest.mark.parametrize("broken", ["raises", "hangs", "is nonsense"])
@ensureDeferred
async def test_a_policy_that_may_grant_relaying_and_fails_refuses_nobody_for_good(
    place: Place, broken: str
) -> None:
    from elemta.policy.chain import LoadedPolicy, PolicyChain
    from elemta.policy.relay_permission import RelayPermission

    place.on_error = OnError.ACCEPT
    factory = place.factory
    assert factory.context is not None
    common = replace(factory.context.chain.policies[0].common, on_error=OnError.ACCEPT)
    chain = PolicyChain(
        [LoadedPolicy("grants", place.policy, common)],
        place.clock,
        relay=RelayPermission(granted_by=frozenset({"grants"})),
    )
    factory.context = replace(factory.context, chain=chain)
    client = place.connect(factory=factory)
    client.said()
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\n")
    rcpt = b"RCPT TO:<b@foreign.test>\r\n"
    place.policy.answers["rcpt"] = Accept()
    assert client.send(rcpt) == ["250 2.1.5 Recipient OK"]
    place.policy.answers["rcpt"] = CONTINUE
    assert client.send(rcpt) == ["554 5.7.1 Relay access denied"]
    place.policy.answers["rcpt"] = {"raises": _bug, "hangs": Deferred, "is nonsense": "?"}[broken]
    client.protocol.dataReceived(rcpt)
    place.clock.advance(place.policy_timeout)
    assert client.said() == [DEFERRED]
