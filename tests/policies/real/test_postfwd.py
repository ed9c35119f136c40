"""The policy ``policy-client``, Debian's postfwd, and Elemta's own policy service."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.policies.real.programs import Postfwd
from tests.support.daemon import Daemon

RULES = """
id=REFUSED; sender==spam@client.test; action=REJECT not from you
id=CODE; sender==code@client.test; action=554 5.7.9 a code of its own
id=LATER; sender==later@client.test; action=DEFER come back
id=HOLD; sender==hold@client.test; protocol_state==RCPT; action=HOLD look at this
id=DROP; sender==drop@client.test; protocol_state==RCPT; action=DISCARD
id=FIELD; sender==top@client.test; protocol_state==RCPT; action=PREPEND X-Postfwd: $$client_address
id=LARGE; sender==large@client.test; protocol_state==END-OF-MESSAGE; size>=20000; action=552 5.3.4 too large
id=REST; action=DUNNO
"""


@pytest.fixture(scope="module")
def postfwd(open_directory: Path) -> Iterator[Daemon]:
    """A daemon that asks postfwd."""
    postfwd = Postfwd(open_directory / "postfwd", RULES)
    postfwd.start()
    daemon = Daemon(
        open_directory / "asks-postfwd",
        f"""
[policies]
chain = ["limits", "policy-client", "relay"]
[policy.policy-client]
endpoint = "{postfwd.endpoint}"
""",
    )
    yield daemon.start()
    daemon.stop()
    postfwd.stop()


def at_rcpt(daemon: Daemon, sender: str) -> tuple[int, str]:
    with daemon.client() as client:
        client.ehlo()
        client.mail(sender)
        code, text = client.rcpt("b@example.test")
        return code, text.decode()


def send(daemon: Daemon, sender: str, local: str, size: int = 10) -> None:
    with daemon.client() as client:
        client.sendmail(
            sender,
            [f"{local}@example.test"],
            b"Subject: s\r\n\r\n" + b"0123456789abcd\r\n" * (size // 16 + 1),
        )


@pytest.mark.servers
@pytest.mark.parametrize(
    ("sender", "reply"),
    [
        ("spam@client.test", (554, "5.7.1 not from you")),
        ("code@client.test", (554, "5.7.9 a code of its own")),
        ("later@client.test", (450, "4.7.1 come back")),
    ],
)
def test_postfwd_refuses_and_defers_in_its_own_words(
    postfwd: Daemon, sender: str, reply: tuple[int, str]
) -> None:
    assert at_rcpt(postfwd, sender) == reply


@pytest.mark.servers
def test_postfwd_lets_mail_pass_and_the_relay_policy_still_decides(postfwd: Daemon) -> None:
    send(postfwd, "fine@client.test", "fine")
    postfwd.wait_for_mail("fine")
    with postfwd.client() as client, pytest.raises(smtplib.SMTPRecipientsRefused):
        client.sendmail("fine@client.test", ["b@elsewhere.test"], b"Subject: s\r\n\r\n")


@pytest.mark.servers
def test_a_field_of_postfwd_stands_on_top_once(postfwd: Daemon) -> None:
    with postfwd.client() as client:
        client.sendmail(
            "top@client.test", ["one@example.test", "two@example.test"], b"Subject: s\r\n\r\nHello\r\n"
        )
    for local in ("one", "two"):
        (message,) = postfwd.wait_for_mail(local)
        assert message.count(b"X-Postfwd: 127.0.0.1") == 1


@pytest.mark.servers
def test_postfwd_holds_and_discards(postfwd: Daemon) -> None:
    send(postfwd, "hold@client.test", "held")
    assert "hold@client.test" in postfwd.ctl("queue", "list").stdout
    send(postfwd, "drop@client.test", "dropped")
    assert "drop@client.test" not in postfwd.ctl("queue", "list").stdout
    assert postfwd.mailbox("held") == postfwd.mailbox("dropped") == []


@pytest.mark.servers
def test_postfwd_sees_the_size_at_the_end_of_the_message(postfwd: Daemon) -> None:
    with pytest.raises(smtplib.SMTPDataError) as refused:
        send(postfwd, "large@client.test", "large", 30_000)
    assert refused.value.smtp_code == 552
    assert refused.value.smtp_error.startswith(b"5.3.4 too large")
    send(postfwd, "large@client.test", "small")
    postfwd.wait_for_mail("small")


@pytest.mark.servers
def test_a_postfwd_that_was_started_again_is_asked_again(open_directory: Path) -> None:
    postfwd = Postfwd(open_directory / "again", RULES)
    postfwd.start()
    daemon = Daemon(
        open_directory / "asks-again",
        f'[policies]\nchain = ["limits", "policy-client", "relay"]\n'
        f'[policy.policy-client]\nendpoint = "{postfwd.endpoint}"\n',
    )
    daemon.start()
    try:
        assert at_rcpt(daemon, "fine@client.test")[0] == 250
        postfwd.stop()
        assert at_rcpt(daemon, "fine@client.test")[0] // 100 == 4
        postfwd.start()
        assert at_rcpt(daemon, "spam@client.test") == (554, "5.7.1 not from you")
        assert at_rcpt(daemon, "fine@client.test")[0] == 250
    finally:
        daemon.stop()
        postfwd.stop()


SERVICE = """
listener = []
[server]
hostname = "limits.example.test"
[spool]
directory = "{spool}"
minimum_free = "1MiB"
[metrics]
endpoint = "tcp:0:interface=127.0.0.1"
[console]
endpoint = ""
[resources]
max_requests_per_window = 0
[[policy_service]]
name = "limits"
endpoint = "tcp:0:interface=127.0.0.1"
charge_messages_at = "end_of_message"
[[limit]]
name = "recipients-per-sender"
per = ["sender"]
counts = "recipients"
rates = ["3/1h"]
"""


def test_elemta_asks_the_policy_service_of_another_elemta(tmp_path: Path) -> None:
    service = Daemon(tmp_path / "service", mailboxes=False)
    service.config.write_text(SERVICE.format(spool=service.spool))
    service.start()
    try:
        endpoint = f"tcp:host=127.0.0.1:port={service.port_of('limits')}"
        daemon = Daemon(
            tmp_path / "edge",
            f'[policies]\nchain = ["limits", "policy-client", "relay"]\n'
            f'[policy.policy-client]\nendpoint = "{endpoint}"\n',
        )
        daemon.start()
        try:
            with daemon.client() as client:
                client.ehlo()
                client.mail("anna@client.test")
                codes = [client.rcpt(f"r{number}@example.test")[0] for number in range(5)]
                assert codes[:3] == [250, 250, 250]
                assert {code // 100 for code in codes[3:]} == {4}
                assert client.data(b"Subject: s\r\n\r\nHello\r\n")[0] == 250
            assert at_rcpt(daemon, "bert@client.test")[0] == 250
            daemon.wait_for_mail("r0")
        finally:
            daemon.stop()
    finally:
        service.stop()
