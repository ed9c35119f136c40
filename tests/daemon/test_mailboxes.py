"""Which addresses have a mailbox: mail to an address creates none."""

from __future__ import annotations

import os
import smtplib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.programs import wait_until
from tests.support.daemon import Daemon

MESSAGE = "Subject: x\r\n\r\nx\r\n"


def answer(daemon: Daemon, *recipients: str, sender: str = "a@client.test") -> list[tuple[int, bytes]]:
    with daemon.client() as client:
        client.ehlo()
        assert client.mail(sender)[0] == 250
        return [client.rcpt(recipient) for recipient in recipients]


def send(daemon: Daemon, recipient: str, sender: str = "a@client.test") -> None:
    with daemon.client() as client:
        client.sendmail(sender, [recipient], MESSAGE)


def inodes(daemon: Daemon) -> int:
    return sum(len(directories) for _, directories, _ in os.walk(daemon.spool / "mail"))


@pytest.fixture
def strict(make_daemon: Callable[..., Daemon]) -> Daemon:
    """The default: no catch-all."""
    return make_daemon(mailboxes=False, domains='relay_from = ["127.0.0.1"]', spool='retry = ["1s"]').start()


def test_by_default_a_flood_of_names_makes_no_mailbox(strict: Daemon) -> None:
    names = [f"name-{number}@example.test" for number in range(500)]
    answers = answer(strict, *names)
    assert set(answers) <= {
        (550, b"5.1.1 No such mailbox"),
        (451, b"4.3.0 Local trouble, try again later"),
    } | {each for each in answers if each[0] == 421}
    assert answers[0] == (550, b"5.1.1 No such mailbox")
    assert inodes(strict) == 0


def test_a_mailbox_that_an_operator_makes_takes_mail_soon(strict: Daemon) -> None:
    assert answer(strict, "anna@example.test")[0][0] == 550
    (strict.spool / "mail/example.test/anna").mkdir(parents=True)
    wait_until("the Maildir is seen", lambda: answer(strict, "anna@example.test")[0][0] == 250)
    send(strict, "Anna@Example.TEST")
    assert len(strict.wait_for_mail("anna")) == 1


def test_postmaster_has_a_mailbox(strict: Daemon) -> None:
    send(strict, "Postmaster@example.test")
    assert len(strict.wait_for_mail("postmaster")) == 1


def test_a_name_of_recipients_has_a_mailbox_and_no_other(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    recipients = tmp_path / "recipients"
    recipients.write_text("bob@example.test\n")
    daemon = make_daemon(mailboxes=False, domains=f'recipients = "{recipients}"').start()
    assert [code for code, _ in answer(daemon, "bob@example.test", "carl@example.test")] == [250, 550]
    send(daemon, "bob@example.test")
    assert len(daemon.wait_for_mail("bob")) == 1


def test_a_notice_to_a_name_without_a_mailbox_makes_none(strict: Daemon) -> None:
    send(strict, "x@[127.0.0.1]", sender="forged@example.test")
    failed = strict.wait_for("delivery.attempted", recipient="x@[127.0.0.1]")
    assert (failed["status"], failed["enhanced"]) == ("failed", "5.4.4")
    notice = strict.wait_for("delivery.attempted", recipient="forged@example.test")
    assert (notice["status"], notice["enhanced"]) == ("failed", "5.1.1")
    assert inodes(strict) == 0


def test_a_mailbox_that_is_removed_while_mail_waits_is_not_made_again(strict: Daemon) -> None:
    directory = strict.spool / "mail/example.test/gone"
    directory.mkdir(parents=True)
    (strict.spool / "mail/example.test/a").mkdir()
    with strict.client() as client:
        client.ehlo()
        client.mail("a@example.test")
        assert client.rcpt("gone@example.test")[0] == 250
        directory.rmdir()
        assert client.data(MESSAGE)[0] == 250
    outcome = strict.wait_for("delivery.attempted", recipient="gone@example.test")
    assert (outcome["status"], outcome["enhanced"]) == ("failed", "5.1.1")
    assert b"5.1.1" in strict.wait_for_mail("a")[0]
    assert not directory.exists()


def test_with_create_mailboxes_any_name_has_one(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon().start()
    send(daemon, "anyone@example.test")
    assert len(daemon.wait_for_mail("anyone")) == 1


def test_a_file_system_that_gives_no_answer_is_local_trouble(strict: Daemon) -> None:
    (strict.spool / "mail").mkdir()
    (strict.spool / "mail/example.test").write_bytes(b"a file where a directory should be")
    assert answer(strict, "bob@example.test")[0] == (451, b"4.3.0 Local trouble, try again later")


def test_a_stranger_who_may_not_relay_hears_that_first(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(mailboxes=False).start()
    with pytest.raises(smtplib.SMTPRecipientsRefused) as raised:
        send(daemon, "bob@elsewhere.test")
    assert raised.value.recipients["bob@elsewhere.test"][0] == 554
