"""The policy ``milter`` and Debian's spamass-milter with spamd behind it."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.policies.real.programs import GTUBE, SpamAssassin
from tests.support.daemon import Daemon

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def spamassassin(open_directory: Path) -> Iterator[SpamAssassin]:
    spamassassin = SpamAssassin(open_directory / "spamassassin")
    yield spamassassin.start()
    spamassassin.stop()


@pytest.fixture(scope="module")
def daemon(spamassassin: SpamAssassin, open_directory: Path) -> Iterator[Daemon]:
    daemon = Daemon(
        open_directory / "asks-spamassassin",
        f"""
[policies]
chain = ["limits", "relay", "milter"]
[policy.milter]
endpoint = "{spamassassin.endpoint}"
timeout = "30s"
""",
    )
    yield daemon.start()
    daemon.stop()


def send(daemon: Daemon, local: str, subject: str, body: str = "Hello\r\n") -> tuple[int, str]:
    content = (
        f"From: Anna <anna@client.test>\r\nTo: {local}@example.test\r\nSubject: {subject}\r\n"
        f"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <1@client.test>\r\n\r\n{body}"
    )
    with daemon.client() as client:
        client.ehlo()
        client.mail("anna@client.test")
        client.rcpt(f"{local}@example.test")
        code, text = client.data(content.encode())
        return code, text.decode()


def test_spam_beyond_the_score_is_refused_in_the_milters_words(daemon: Daemon) -> None:
    assert send(daemon, "gtube", "s", f"{GTUBE}\r\n") == (550, "5.7.1 Blocked by SpamAssassin")


def test_a_clean_message_gets_fields_and_keeps_its_text(daemon: Daemon) -> None:
    assert send(daemon, "clean", "dinner")[0] == 250
    message = message_from_bytes(daemon.wait_for_mail("clean")[0])
    assert message["Subject"] == "dinner"
    assert message["X-Spam-Status"].startswith("No, score=")
    assert message["X-Spam-Checker-Version"]
    assert message.get_payload().split() == ["Hello"]


def test_spam_below_the_score_gets_a_new_subject_and_a_new_body(daemon: Daemon) -> None:
    assert send(daemon, "marked", "mark me")[0] == 250
    message = message_from_bytes(daemon.wait_for_mail("marked")[0])
    assert message.get_all("Subject") == ["[SPAM] mark me"]
    assert message["X-Spam-Flag"] == "YES"
    assert len(message.get_all("Content-Type")) == 1
    report, original = message.get_payload()
    assert "MARKED_BY_TEST" in report.get_payload()
    assert original.get_payload(0)["Subject"] == "mark me"


def test_several_messages_of_one_session_are_each_judged(daemon: Daemon) -> None:
    with daemon.client() as client:
        for number in range(2):
            client.sendmail(
                "anna@client.test", ["several@example.test"], f"Subject: mark me {number}\r\n\r\nx\r\n"
            )
        with pytest.raises(smtplib.SMTPDataError):
            client.sendmail("anna@client.test", ["several@example.test"], f"Subject: s\r\n\r\n{GTUBE}\r\n")
    subjects = sorted(message_from_bytes(text)["Subject"] for text in daemon.wait_for_mail("several", 2))
    assert subjects == ["[SPAM] mark me 0", "[SPAM] mark me 1"]


def test_without_the_milter_mail_waits_until_it_is_back(daemon: Daemon, spamassassin: SpamAssassin) -> None:
    spamassassin.stop_milter()
    with pytest.raises((smtplib.SMTPException, OSError)) as refused, daemon.client() as client:
        client.sendmail("anna@client.test", ["back@example.test"], "Subject: s\r\n\r\nx\r\n")
    assert getattr(refused.value, "smtp_code", 400) // 100 == 4
    spamassassin.start_milter()
    assert send(daemon, "back", "dinner")[0] == 250
    daemon.wait_for_mail("back")
