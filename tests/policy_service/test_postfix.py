"""Real Postfix instances that ask for limits."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.postfix import Postfix
from tests.support.daemon import Daemon
from tests.support.limit_tables import limit_table, policy_service_table
from tests.support.open_directory import open_directory

pytestmark = pytest.mark.servers

TABLES = (
    policy_service_table("postfix")
    + limit_table("recipients-per-sender", "sender", "recipients", "5/1h")
    + limit_table("messages-per-domain", "sender_domain", "messages", "4/1h", on_exceed="reject")
)


@pytest.fixture(scope="module", name="open_directory")
def _open_directory() -> Iterator[Path]:
    """A directory that Postfix's own users can enter."""
    with open_directory("policy-") as path:
        yield path


def postfix(directory: Path, node: Daemon, name: str) -> Postfix:
    service = f"check_policy_service {{ inet:127.0.0.1:{node.port_of('postfix')}, timeout=10s }}"
    return Postfix.with_mailboxes(
        directory / name,
        "example.com",
        ["one", "two", "three"],
        more=(
            f"smtpd_recipient_restrictions = {service}, reject_unauth_destination\n"
            f"smtpd_end_of_data_restrictions = {service}\n"
        ),
    ).start()


def send(server: Postfix, sender: str, recipients: list[str]) -> list[int]:
    """The codes: one for each recipient, then that of the message."""
    with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test", timeout=60) as client:
        client.ehlo()
        assert client.mail(sender)[0] == 250
        codes = [client.rcpt(recipient)[0] for recipient in recipients]
        if 250 in codes:
            codes.append(client.data(b"Subject: s\r\n\r\ntext\r\n")[0])
        return codes


def test_several_postfixes_have_one_limit(open_directory: Path, node: Daemon) -> None:
    servers = [postfix(open_directory, node, f"p{number}") for number in range(3)]
    try:
        codes = [send(servers[n % 3], "anna@a.test", ["one@example.com"])[0] for n in range(8)]
        assert codes.count(250) == 4 or codes.count(250) == 5
        # Four messages of the domain pass; of the fifth its recipient did.
        domain = [send(servers[n % 3], f"user{n}@b.test", ["one@example.com"])[-1] for n in range(6)]
        assert domain.count(250) == 4
        assert set(domain) == {250, 554}
        # The recipients of one message are charged one by one.
        assert send(servers[0], "c@c.test", ["one@example.com", "two@example.com", "three@example.com"]) == [
            250,
            250,
            250,
            250,
        ]
        assert send(servers[1], "c@c.test", ["one@example.com", "two@example.com", "three@example.com"]) == [
            250,
            250,
            450,
            250,
        ]
    finally:
        for server in servers:
            server.stop()


def test_a_daemon_that_was_killed_is_postfix_s_default_action_and_comes_back(
    open_directory: Path, node: Daemon
) -> None:
    service = f"{{ inet:127.0.0.1:{node.port_of('postfix')}, timeout=5s, default_action=DUNNO }}"
    server = Postfix.with_mailboxes(
        open_directory / "default",
        "example.com",
        ["one"],
        more=f"smtpd_recipient_restrictions = check_policy_service {service}, reject_unauth_destination\n"
        "smtpd_policy_service_retry_delay = 1s\n",
    ).start()
    try:
        assert [send(server, "a@a.test", ["one@example.com"])[0] for _ in range(6)] == [250] * 5 + [450]
        node.kill()
        assert send(server, "a@a.test", ["one@example.com"])[0] == 250
    finally:
        server.stop()
