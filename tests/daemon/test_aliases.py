"""Aliases and tags on a real daemon: the copies, what is refused, and what a reload does."""

from __future__ import annotations

import signal
import smtplib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

MakeDaemon = Callable[..., Daemon]
MESSAGE = "Subject: x\r\n\r\nx\r\n"
ALIASES = """
postmaster           root@example.test
root                 anna@example.test
team@example.test    anna@example.test, Bob@Example.test, carl@other.test
@old.test            @example.test
"""


ROUTE = """
[[route]]
domains = ["other.test"]
create_mailboxes = true
to = "maildir:{spool}/mail/{domain}/{local}"
"""


@pytest.fixture
def aliases(tmp_path: Path) -> Path:
    path = tmp_path / "aliases"
    path.write_text(ALIASES)
    return path


@pytest.fixture
def daemon(make_daemon: MakeDaemon, aliases: Path) -> Daemon:
    daemon = make_daemon(
        ROUTE,
        mailboxes=False,
        domains=f'aliases = "{aliases}"',
        server="max_recipients = 4",
    )
    text = daemon.config.read_text().replace(
        'local = ["example.test"]', 'local = ["example.test", "old.test"]'
    )
    daemon.config.write_text(text)
    return daemon.start()


def rcpt(daemon: Daemon, *recipients: str) -> list[tuple[int, bytes]]:
    with daemon.client() as client:
        client.ehlo()
        assert client.mail("a@client.test")[0] == 250
        return [client.rcpt(each) for each in recipients]


def test_each_mailbox_gets_one_copy_by_whatever_names_and_aliases(daemon: Daemon) -> None:
    named = ["team@example.test", "Anna+shop@example.test", "TEAM@old.test", "bob@EXAMPLE.test"]
    with daemon.client() as client:
        assert client.sendmail("a@client.test", named, MESSAGE) == {}
    for local, domain in (("anna", "example.test"), ("bob", "example.test"), ("carl", "other.test")):
        assert len(daemon.wait_for_mail(local, domain=domain)) == 1
    assert daemon.records("message.accepted")[0]["recipient_count"] == 3
    expanded = daemon.wait_for("recipient.expanded", recipient="team@example.test")
    assert expanded["targets"] == [
        "anna@example.test",
        "Bob@example.test",
        "carl@other.test",
    ]
    assert sorted(path.name for path in (daemon.spool / "mail/example.test").iterdir()) == ["anna", "bob"]


def test_postmaster_and_root_are_read_by_a_user(daemon: Daemon) -> None:
    for number, named in enumerate(("postmaster", "postmaster@old.test", "root@example.test"), start=1):
        with daemon.client() as client:
            client.ehlo()
            client.mail("a@client.test")
            assert client.docmd(f"RCPT TO:<{named}>")[0] == 250
            assert client.data(MESSAGE.encode())[0] == 250
        text = daemon.wait_for_mail("anna", number)[-1]
        # The address that the client named, and not where it leads
        assert b"for <anna@" not in text
        assert named.encode() in text


def test_an_alias_lets_nobody_relay(daemon: Daemon) -> None:
    denied = (554, b"5.7.1 Relay access denied")
    assert rcpt(daemon, "carl@other.test", "x%other.test@old.test", '"x@other.test"@old.test') == [denied] * 3
    assert rcpt(daemon, "anna+x%other.test@example.test", "other.test!x@old.test") == [denied] * 2


def test_the_recipient_that_would_be_too_many_is_refused_at_its_own_command(daemon: Daemon) -> None:
    too_many = (452, b"4.5.3 Too many recipients")
    answers = rcpt(
        daemon, "team@example.test", "anna@example.test", "root@old.test", "postmaster@example.test"
    )
    assert [code for code, _ in answers] == [250] * 4
    with daemon.client() as client:
        client.ehlo()
        client.mail("a@client.test")
        assert client.rcpt("anna@example.test")[0] == 250
        (daemon.spool / "mail/example.test/dora").mkdir(parents=True)
        assert client.rcpt("dora@example.test")[0] == 250
        assert client.rcpt("team@example.test")[0] == 250
        (daemon.spool / "mail/example.test/emil").mkdir(parents=True)
        assert client.rcpt("emil@example.test") == too_many
        # The same mailbox again is no more.
        assert client.rcpt("dora+x@example.test")[0] == 250
        assert client.data(MESSAGE.encode())[0] == 250
    assert daemon.records("message.accepted")[0]["recipient_count"] == 4


def test_an_address_without_a_mailbox_behind_it_is_refused(daemon: Daemon) -> None:
    assert rcpt(daemon, "nobody@example.test", "nobody@old.test") == [(550, b"5.1.1 No such mailbox")] * 2


def test_a_reload_reads_the_file_again_and_a_bad_one_changes_nothing(daemon: Daemon, aliases: Path) -> None:
    aliases.write_text("a@example.test b@example.test\nb@example.test a@example.test\n")
    daemon.signal(signal.SIGHUP)
    fault = daemon.wait_for("config.reload_refused")["fault"]
    assert fault.startswith(f"{aliases}: line 1: leads into a loop: ")
    assert rcpt(daemon, "root@example.test")[0][0] == 250
    check = daemon.ctl("config", "check", check=False)
    assert check.returncode == 78
    assert f"{aliases}: line 1: leads into a loop" in check.stdout + check.stderr
    started = subprocess.run(
        [
            str(Path(sys.executable).with_name("twistd")),
            "-n",
            "elemta",
            "--check",
            "--config",
            str(daemon.config),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert started.returncode == 78
    assert f"{aliases}: line 1: leads into a loop" in started.stderr
    aliases.write_text("new@example.test anna@example.test\n")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("config.reloaded")
    assert [code for code, _ in rcpt(daemon, "new@example.test", "root@example.test")] == [250, 550]
    with daemon.client() as client, pytest.raises(smtplib.SMTPRecipientsRefused):
        client.sendmail("a@client.test", ["team@example.test"], MESSAGE)


def test_a_sender_hears_once_that_the_mail_went_to_all_of_an_alias(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.ehlo()
        client.mail("reader@example.test", ["ENVID=abc", "RET=HDRS"])
        (daemon.spool / "mail/example.test/reader").mkdir(parents=True)
        assert (
            client.rcpt("team@example.test", ["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;list@client.test"])[0]
            == 250
        )
        assert client.data(b"Subject: hello all\r\n\r\nx\r\n")[0] == 250
    for local, domain in (("anna", "example.test"), ("bob", "example.test"), ("carl", "other.test")):
        daemon.wait_for_mail(local, domain=domain)
    (notice,) = daemon.wait_for_mail("reader")
    text = notice.decode().replace("\r\n", "\n")
    assert "Original-Recipient: rfc822; list@client.test\n" in text
    assert "Final-Recipient: rfc822; team@example.test\nAction: expanded\nStatus: 2.0.0\n" in text
    assert "Original-Envelope-Id: abc\n" in text
    assert "Subject: hello all\n" in text
    assert "anna@" not in text
    daemon.stop()
    assert len(daemon.mailbox("reader")) == 1


def test_a_notice_to_a_sender_that_is_an_alias_goes_where_its_mail_goes(daemon: Daemon) -> None:
    (daemon.spool / "mail/example.test/gone").mkdir(parents=True)
    with daemon.client() as client:
        client.ehlo()
        client.mail("root@example.test")
        assert client.rcpt("gone@example.test")[0] == 250
        (daemon.spool / "mail/example.test/gone").rmdir()
        assert client.data(MESSAGE.encode())[0] == 250
    notice = daemon.wait_for_mail("anna")[0]
    assert b"To: <root@example.test>" in notice
    assert b"Final-Recipient: rfc822; gone@example.test" in notice
