"""Dovecot takes mail from Elemta by LMTP, over TCP and over a Unix socket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.dovecot import Dovecot
from tests.interop.programs import wait_until
from tests.support.daemon import Daemon

pytestmark = pytest.mark.servers

_USERS = ("anna", "bert", "deferred-tcp", "deferred-unix", *(f"user{number}" for number in range(30)))
_MESSAGE = (
    b"From: a@client.test\r\nSubject: s\r\n\r\n"
    + "Grüße\r\n.\r\n..two\r\n".encode()
    + b"x" * 70_000
    + b"\r\n"
)


@dataclass(frozen=True)
class Way:
    """A daemon in front of Dovecot, and the domain whose mail goes there over TCP or over a socket."""

    node: Daemon
    dovecot: Dovecot
    domain: str

    def address(self, local: str) -> str:
        return f"{local}@{self.domain}"

    def send(self, subject: str, *locals_: str) -> str:
        """Send a message; its queue id."""
        before = len(self.node.records("message.accepted"))
        with self.node.client() as client:
            recipients = [self.address(local) for local in locals_]
            message = _MESSAGE.replace(b"Subject: s", b"Subject: " + subject.encode())
            assert (
                client.sendmail("a@example.test", recipients, message, mail_options=["BODY=8BITMIME"]) == {}
            )
        return str(self.node.records("message.accepted")[before]["queue_id"])

    def outcome(self, queue_id: str, local: str) -> tuple[str, int, str]:
        record = self.node.wait_for("delivery.attempted", queue_id=queue_id, recipient=self.address(local))
        return record["status"], record["code"], record["enhanced"]

    def stored(self, local: str, subject: str) -> list[bytes]:
        """The messages of this user with this subject, from its field on."""
        mark = b"\r\nFrom: a@client.test\r\nSubject: " + subject.encode() + b"\r\n"
        return [mail[mail.index(mark) + 2 :] for mail in self.dovecot.mailbox(local) if mark in mail]

    def notices(self, queue_id: str) -> list[bytes]:
        """The notices that the sender got of a message."""
        notices = [path.read_bytes() for path in self.node.mailbox("a")]
        return [notice for notice in notices if f"Queue-Id: {queue_id}".encode() in notice]


@pytest.fixture(scope="module")
def dovecot(open_directory: Path) -> Iterator[Dovecot]:
    dovecot = Dovecot(open_directory / "dovecot", _USERS)
    yield dovecot.start()
    dovecot.stop()


@pytest.fixture(scope="module")
def node(dovecot: Dovecot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(
        tmp_path_factory.mktemp("lmtp") / "node",
        "[submission]\nadd_missing = false\n"
        f'[[route]]\ndomains = ["tcp.test"]\nto = "lmtp://127.0.0.1:{dovecot.port}"\n'
        f'[[route]]\ndomains = ["unix.test"]\nto = "lmtp+unix://{dovecot.socket}"\n',
        domains='relay_from = ["127.0.0.0/8"]',
        spool='retry = ["1s"]',
    ).start()
    yield daemon
    daemon.kill()


@pytest.fixture(params=["tcp.test", "unix.test"], ids=["tcp", "unix"])
def way(node: Daemon, dovecot: Dovecot, request: pytest.FixtureRequest) -> Way:
    return Way(node, dovecot, request.param)


def test_a_message_lies_in_dovecots_maildir_as_it_was(way: Way) -> None:
    subject = f"whole by {way.domain}"
    queue_id = way.send(subject, "anna")
    assert way.outcome(queue_id, "anna") == ("delivered", 250, "2.0.0")
    (stored,) = way.stored("anna", subject)
    assert stored == _MESSAGE.replace(b"Subject: s", b"Subject: " + subject.encode())


def test_each_recipient_gets_the_outcome_that_dovecot_gave(way: Way) -> None:
    subject = f"three by {way.domain}"
    queue_id = way.send(subject, "anna", "nobody", "bert")
    assert way.outcome(queue_id, "anna") == ("delivered", 250, "2.0.0")
    assert way.outcome(queue_id, "nobody") == ("failed", 550, "5.1.1")
    assert way.outcome(queue_id, "bert") == ("delivered", 250, "2.0.0")
    assert [len(way.stored(local, subject)) for local in ("anna", "bert", "nobody")] == [1, 1, 0]
    # The sender gets a notice of what failed for good, and for which recipients.
    wait_until("the notice", lambda: bool(way.notices(queue_id)))
    (notice,) = way.notices(queue_id)
    assert b"User doesn't exist" in notice
    assert f"Final-Recipient: rfc822; {way.address('nobody')}".encode() in notice
    assert notice.count(b"Final-Recipient:") == 1


def test_one_transaction_serves_many_users(way: Way) -> None:
    subject = f"many by {way.domain}"
    users = [f"user{number}" for number in range(30)]
    queue_id = way.send(subject, *users)
    for user in users:
        assert way.outcome(queue_id, user) == ("delivered", 250, "2.0.0")
        assert len(way.stored(user, subject)) == 1


def test_only_who_was_deferred_is_tried_again(way: Way) -> None:
    subject = f"again by {way.domain}"
    local = f"deferred-{way.domain.partition('.')[0]}"
    # A file where the home should be: Dovecot cannot store, and says 4xx for this user alone.
    broken = way.dovecot.directory / "mail" / local
    broken.touch()
    queue_id = way.send(subject, "bert", local)
    assert way.outcome(queue_id, "bert") == ("delivered", 250, "2.0.0")
    status, code, _ = way.outcome(queue_id, local)
    assert (status, code // 100) == ("deferred", 4)
    broken.unlink()
    wait_until("the message", lambda: len(way.stored(local, subject)) == 1)
    assert len(way.stored("bert", subject)) == 1


def test_mail_waits_while_dovecot_is_away(open_directory: Path, tmp_path: Path) -> None:
    dovecot = Dovecot(open_directory / "away", ["anna"])
    daemon = Daemon(
        tmp_path / "node",
        f'[[route]]\ndomains = ["away.test"]\nto = "lmtp+unix://{dovecot.socket}"\n',
        domains='relay_from = ["127.0.0.0/8"]',
        spool='retry = ["1s"]',
    ).start()
    way = Way(daemon, dovecot, "away.test")
    try:
        queue_id = way.send("early", "anna")
        assert way.outcome(queue_id, "anna") == ("deferred", 0, "4.4.1")
        dovecot.start()
        wait_until("the message", lambda: len(way.stored("anna", "early")) == 1)
    finally:
        daemon.kill()
        dovecot.stop()
