"""A real Exim that asks for limits with the ACL of docs/postfix.md, as it stands there."""

from __future__ import annotations

import re
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.exim import Exim
from tests.support.daemon import Daemon
from tests.support.limit_tables import limit_table, policy_service_table
from tests.support.open_directory import open_directory

pytestmark = pytest.mark.servers

PAGE = Path(__file__).parents[2] / "docs" / "postfix.md"
TABLES = (
    policy_service_table("exim", charge_messages_at="rcpt")
    + limit_table("recipients-per-sender", "sender", "recipients", "3/1h")
    + limit_table("messages-per-domain", "sender_domain", "messages", "2/1h", on_exceed="reject")
    + limit_table("bytes-per-helo", "helo", "bytes", "10MiB/1h", on_exceed="disconnect")
    + limit_table("recipients-per-user", "user", "recipients", "1/1h")
)


def statements(port: int) -> str:
    """What the page puts before the other statements of the ACL."""
    shown = re.search(r"^```\nacl_check_rcpt:\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert shown is not None
    text = shown[1].replace("inet:127.0.0.1:10031", f"inet:127.0.0.1:{port}")
    assert text != shown[1]
    return text


@pytest.fixture
def exim(node: Daemon) -> Iterator[Exim]:
    with open_directory("policy-") as place:
        server = Exim(place / "exim", before_accept=statements(node.port_of("exim"))).start()
        yield server
        server.stop()


def client(server: Exim, helo: str = "client.test") -> smtplib.SMTP:
    opened = smtplib.SMTP("127.0.0.1", server.port, local_hostname=helo, timeout=60)
    opened.ehlo()
    return opened


def ask(opened: smtplib.SMTP, sender: str, recipients: int = 1, size: int = 0) -> list[tuple[int, bytes]]:
    """The answers to the recipients of one message, and that to the message where one was accepted."""
    assert opened.mail(sender, [f"SIZE={size}"] if size else [])[0] == 250
    answers = [opened.rcpt(f"to{number}@example.com") for number in range(recipients)]
    if any(code == 250 for code, _ in answers):
        assert opened.data(b"Subject: s\r\n\r\ntext\r\n")[0] == 250
    else:
        opened.rset()
    return answers


def test_a_limit_of_recipients_defers(exim: Exim) -> None:
    with client(exim) as opened:
        answers = ask(opened, "anna@a.test", recipients=4)
    assert [code for code, _ in answers] == [250] * 3 + [451]
    assert re.match(rb"4\.7\.1 \w", answers[3][1])


def test_a_limit_of_messages_counts_each_message_once_and_rejects(exim: Exim) -> None:
    with client(exim) as opened:
        assert [code for code, _ in ask(opened, "one@b.test", recipients=3)] == [250] * 3
        assert [code for code, _ in ask(opened, "two@b.test")] == [250]
        ((code, text),) = ask(opened, "three@b.test")
    assert code == 550
    assert re.match(rb"5\.7\.1 \w", text)


def test_a_limit_of_bytes_counts_the_size_that_was_announced(exim: Exim) -> None:
    with client(exim, "big.test") as opened:
        assert [code for code, _ in ask(opened, "one@c.test", size=9 * 1024 * 1024)] == [250]
        ((code, text),) = ask(opened, "two@d.test", size=2 * 1024 * 1024)
    assert code == 421
    assert re.match(rb"4\.7\.0 \w", text)


def test_a_user_is_the_one_that_logged_in(exim: Exim) -> None:
    with client(exim) as opened:
        opened.login("alice", "correct horse")
        assert [code for code, _ in ask(opened, "one@e.test", recipients=2)] == [250, 451]


def test_mail_passes_when_elemta_is_gone(exim: Exim, node: Daemon) -> None:
    node.kill()
    with client(exim) as opened:
        assert [code for code, _ in ask(opened, "anna@a.test", recipients=5)] == [250] * 5
