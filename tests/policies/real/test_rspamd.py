"""Debian's rspamd, asked by the policy ``rspamd`` over HTTP and by ``milter`` through its proxy."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.policies.real.programs import GTUBE, Rspamd
from tests.support.daemon import Daemon

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def rspamd(open_directory: Path) -> Iterator[Rspamd]:
    rspamd = Rspamd(open_directory / "rspamd")
    yield rspamd.start()
    rspamd.stop()


@pytest.fixture(scope="module")
def daemon(rspamd: Rspamd, open_directory: Path) -> Iterator[Daemon]:
    daemon = Daemon(
        open_directory / "node",
        f"""
[[listener]]
name = "milter"
endpoint = "tcp:0:interface=127.0.0.1"
[policies]
chain = ["limits", "relay", "rspamd", "milter"]
[policy.rspamd]
url = "{rspamd.url}"
timeout = "30s"
listeners = ["mx"]
[policy.milter]
endpoint = "{rspamd.milter_endpoint}"
timeout = "30s"
listeners = ["milter"]
""",
    )
    yield daemon.start()
    daemon.stop()


@pytest.fixture(params=["mx", "milter"])
def listener(request: pytest.FixtureRequest) -> str:
    """Over HTTP, and as a milter."""
    return str(request.param)


def send(daemon: Daemon, listener: str, local: str, subject: str, body: str = "Hello\r\n") -> tuple[int, str]:
    content = (
        f"From: Anna <anna@client.test>\r\nTo: {local}@example.test\r\nSubject: {subject}\r\n"
        "Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <1@client.test>\r\nX-Remove-Me: 1\r\n"
        f"x-remove-me: 2\r\nX-Keep: 1\r\n\r\n{body}"
    )
    with daemon.client(listener) as client:
        client.ehlo()
        client.mail("anna@client.test")
        client.rcpt(f"{local}@example.test")
        code, text = client.data(content.encode())
        return code, text.decode()


def delivered(daemon: Daemon, local: str) -> bytes:
    (message,) = daemon.wait_for_mail(local)
    return message.replace(b"\r\n", b"\n")


def test_gtube_is_refused(daemon: Daemon, listener: str) -> None:
    code, text = send(daemon, listener, f"gtube-{listener}", "spam", f"{GTUBE}\r\n")
    assert (code, text[:5]) == (554, "5.7.1")
    assert "Gtube" in text or "pam" in text
    assert daemon.mailbox(f"gtube-{listener}") == []


def test_a_clean_message_gets_the_fields_that_rspamd_adds_and_loses_those_that_it_removes(
    daemon: Daemon, listener: str
) -> None:
    assert send(daemon, listener, f"clean-{listener}", "clean")[0] == 250
    header = delivered(daemon, f"clean-{listener}").partition(b"\n\n")[0]
    assert b"\nX-Rspamd-Test: seen client.test 127.0.0.1" in b"\n" + header
    assert f"\nX-Rspamd-Rcpt: clean-{listener}@example.test".encode() in b"\n" + header
    assert b"remove-me" not in header.lower()
    assert b"X-Keep: 1" in header
    assert b"X-Spam: Yes" not in header


def test_rspamd_learns_every_recipient(daemon: Daemon, listener: str) -> None:
    recipients = [f"r{number}-{listener}@example.test" for number in range(3)]
    content = (
        b"From: Anna <anna@client.test>\r\nTo: r@example.test\r\nSubject: s\r\n"
        b"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <2@client.test>\r\n\r\nHello\r\n"
    )
    with daemon.client(listener) as client:
        client.sendmail("anna@client.test", recipients, content)
    for number in range(3):
        assert b"X-Rspamd-Rcpts: 3" in delivered(daemon, f"r{number}-{listener}")


def test_the_action_add_header_marks_the_message(daemon: Daemon, listener: str) -> None:
    assert send(daemon, listener, f"marked-{listener}", "mark me")[0] == 250
    assert b"X-Spam: Yes" in delivered(daemon, f"marked-{listener}")


def test_the_action_rewrite_subject_changes_the_subject(daemon: Daemon, listener: str) -> None:
    assert send(daemon, listener, f"rewritten-{listener}", "rewrite me")[0] == 250
    header = delivered(daemon, f"rewritten-{listener}").partition(b"\n\n")[0]
    assert header.lower().count(b"\nsubject:") == 1
    assert b"Subject: [SPAM] rewrite me" in header


def test_soft_reject_defers(daemon: Daemon, listener: str) -> None:
    code, text = send(daemon, listener, f"later-{listener}", "come back")
    assert (code, text[:5]) == (451, "4.7.1"), text
    assert daemon.mailbox(f"later-{listener}") == []


def test_the_action_greylist_defers_over_http_and_rspamds_own_proxy_lets_it_pass(daemon: Daemon) -> None:
    """In rspamd the action alone says that greylisting is due; its module makes a soft reject of it.

    Elemta keeps the time for the bare action, which no other part of rspamd does.
    """
    code, text = send(daemon, "mx", "greylisted", "greylist me")
    assert (code, text[:5]) == (451, "4.7.1"), text
    assert daemon.mailbox("greylisted") == []
    assert send(daemon, "milter", "not-greylisted", "greylist me")[0] == 250


def test_the_log_and_the_metric_say_what_rspamd_did(daemon: Daemon) -> None:
    before = daemon.metric(r'elemta_plugin_rspamd_actions_total\{.*action="reject"')
    send(daemon, "mx", "counted", "spam", f"{GTUBE}\r\n")
    assert daemon.metric(r'elemta_plugin_rspamd_actions_total\{.*action="reject"') == before + 1


def test_without_rspamd_on_error_decides_and_a_new_rspamd_is_asked_again(
    daemon: Daemon, rspamd: Rspamd, listener: str
) -> None:
    rspamd.stop()
    try:
        with daemon.client(listener) as client:
            client.ehlo()
            codes = [
                client.mail("anna@client.test")[0],
                client.rcpt(f"away-{listener}@example.test")[0],
                client.data(b"Subject: clean\r\n\r\nHello\r\n")[0] if listener == "mx" else 0,
            ]
    except smtplib.SMTPResponseException as refused:  # the greeting, or DATA
        codes = [refused.smtp_code]
    finally:
        rspamd.start()
    assert any(code // 100 == 4 for code in codes), codes
    assert send(daemon, listener, f"back-{listener}", "clean")[0] == 250
    assert daemon.mailbox(f"away-{listener}") == []
