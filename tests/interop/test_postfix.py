"""Postfix on either side: it relays through Elemta, and takes mail from it."""

from __future__ import annotations

import json
import re
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.postfix import Postfix
from tests.interop.programs import wait_until
from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon

pytestmark = pytest.mark.servers

_TEXT = "Grüße\r\n.\r\n..two\r\ntrailing  \r\n" + "x" * 3000 + "\r\n"
_MESSAGE = (
    b"From: a@client.test\r\nTo: b@example.test\r\nMessage-ID: <1@client.test>\r\n"
    b"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nSubject: s\r\n\r\n" + _TEXT.encode()
)


def submit(postfix: Postfix, recipients: list[str], message: bytes = _MESSAGE, *options: str) -> None:
    with smtplib.SMTP("127.0.0.1", postfix.port, local_hostname="client.test", timeout=90) as client:
        client.sendmail("a@client.test", recipients, message, mail_options=("BODY=8BITMIME", *options))


# Postfix relays through Elemta


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that knows some mailboxes, with TLS."""
    directory = tmp_path_factory.mktemp("postfix")
    boxes = directory / "recipients"
    boxes.write_text("".join(f"{name}@example.test\n" for name in ("one", "two", "three", "many", "jürgen")))
    daemon = Daemon(
        directory / "node",
        make_certificate(directory).table + '[[route]]\ndomains = ["held.test"]\nto = "hold:"\n',
        domains=f'recipients = "{boxes}"\nrelay_from = ["127.0.0.0/8"]',
    ).start()
    yield daemon
    daemon.kill()


@pytest.fixture(scope="module")
def relay(node: Daemon, open_directory: Path) -> Iterator[Postfix]:
    """A Postfix whose relayhost is Elemta, which it talks to over TLS only."""
    postfix = Postfix.relaying_to(open_directory / "relay", node.port, tls=True)
    yield postfix.start()
    postfix.stop()


def test_postfix_relays_a_message_that_arrives_as_it_was(node: Daemon, relay: Postfix) -> None:
    submit(relay, ["one@example.test"])
    (message,) = node.wait_for_mail("one")
    assert message.endswith(b"\r\n" + _MESSAGE)
    head = message[: -len(_MESSAGE)].decode()
    assert re.match(
        r"Return-Path: <a@client\.test>\r\nReceived: from postfix\.test \(\[127\.0\.0\.1\]\)\r\n"
        r"\t\(TLSv1\.\d\)\r\n\tby mx\.example\.test \(Elemta\) with ESMTPS id [\w-]+\r\n"
        r"\tfor <one@example\.test>;\r\n\t[^\r\n]+\r\nReceived: from client\.test ",
        head,
    ), head


def test_postfix_learns_what_became_of_each_recipient(node: Daemon, relay: Postfix) -> None:
    submit(relay, ["two@example.test", "nobody@example.test", "three@example.test"])
    node.wait_for_mail("two")
    node.wait_for_mail("three")
    wait_until("the refused recipient", lambda: "to=<nobody@example.test>" in relay.log())
    statuses = dict(re.findall(r"to=<(\w+)@example\.test>.*? status=(\w+)", relay.log()))
    assert statuses == statuses | {"two": "sent", "nobody": "bounced", "three": "sent"}
    assert "550 5.1.1 No such mailbox (in reply to RCPT TO command)" in relay.log()
    queue_id = node.records("message.accepted")[-1]["queue_id"]
    assert f"250 2.0.0 Message accepted for delivery; queued as {queue_id}" in relay.log()


def test_postfix_relays_a_burst_over_connections_that_it_uses_again(node: Daemon, relay: Postfix) -> None:
    before = node.metric("elemta_connections_opened_total")
    with smtplib.SMTP("127.0.0.1", relay.port, local_hostname="client.test", timeout=90) as client:
        for number in range(60):
            text = f"Subject: {number}\r\n\r\nnumber {number}\r\n"
            client.sendmail("a@client.test", ["many@example.test"], text)
    messages = node.wait_for_mail("many", 60, seconds=90)
    bodies = {message.partition(b"\r\n\r\n")[2] for message in messages}
    assert bodies == {f"number {number}\r\n".encode() for number in range(60)}
    assert 0 < node.metric("elemta_connections_opened_total") - before < 60


def test_postfix_relays_to_an_internationalised_address(node: Daemon, relay: Postfix) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port, local_hostname="client.test", timeout=90) as client:
        client.sendmail(
            "a@client.test", ["jürgen@example.test"], _MESSAGE, mail_options=("SMTPUTF8", "BODY=8BITMIME")
        )
    (message,) = node.wait_for_mail("j%C3%BCrgen")
    assert b" with UTF8SMTPS id " in message
    assert message.endswith(_MESSAGE)


def test_postfix_hands_on_what_the_sender_wants_to_be_told(node: Daemon, relay: Postfix) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port, local_hostname="client.test", timeout=90) as client:
        client.sendmail(
            "dsn@client.test",
            ["one@held.test"],
            b"Subject: dsn\r\n\r\nx\r\n",
            mail_options=("RET=HDRS", "ENVID=dsn+2B1"),
            rcpt_options=("NOTIFY=FAILURE,DELAY", "ORCPT=rfc822;first+2Bx@client.test"),
        )
    record = node.wait_for("message.accepted", sender="dsn@client.test")
    (shown,) = json.loads(node.ctl("--json", "queue", "show", record["queue_id"]).stdout)["messages"]
    assert (shown["parameters"]["ret"], shown["parameters"]["envid"]) == ("HDRS", "dsn+1")
    (recipient,) = shown["recipients"]
    assert sorted(recipient["notify"]) == ["DELAY", "FAILURE"]
    assert recipient["orcpt"] == "rfc822;first+x@client.test"


# Postfix takes mail from Elemta


@pytest.fixture(scope="module")
def next_hop(open_directory: Path) -> Iterator[Postfix]:
    postfix = Postfix.with_mailboxes(open_directory / "next-hop", "far.test", ["anna", "bert", "utf8"])
    yield postfix.start()
    postfix.stop()


@pytest.fixture(scope="module")
def gateway(next_hop: Postfix, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose mail for ``far.test`` goes to Postfix."""
    daemon = Daemon(
        tmp_path_factory.mktemp("gateway") / "node",
        f'[[route]]\ndomains = ["far.test"]\nto = "smtp://127.0.0.1:{next_hop.port}"\n',
        domains='relay_from = ["127.0.0.0/8"]',
    ).start()
    yield daemon
    daemon.kill()


def test_a_message_reaches_postfix_as_it_was(gateway: Daemon, next_hop: Postfix) -> None:
    with gateway.client() as client:
        client.sendmail("a@client.test", ["anna@far.test"], _MESSAGE, mail_options=["BODY=8BITMIME"])
    wait_until("the message", lambda: len(next_hop.mailbox("anna")) == 1)
    (message,) = next_hop.mailbox("anna")
    # A Maildir of Postfix's has the line ends of the system.
    assert message.endswith(b"\n" + _MESSAGE.replace(b"\r\n", b"\n"))
    assert b"Return-Path: <a@client.test>\n" in message
    assert b"(Elemta) with ESMTP id " in message


def test_each_recipient_at_postfix_gets_an_outcome_of_its_own(gateway: Daemon, next_hop: Postfix) -> None:
    with gateway.client() as client:
        client.sendmail(
            "sender@example.test",
            ["anna@far.test", "nobody@far.test", "bert@far.test"],
            "Subject: three\r\n\r\nx\r\n",
        )
    failed = gateway.wait_for("delivery.attempted", recipient="nobody@far.test")
    assert (failed["status"], failed["code"], failed["enhanced"]) == ("failed", 550, "5.1.1")
    assert "User unknown" in failed["reply"]
    for local in ("anna", "bert"):
        sent = gateway.wait_for(
            "delivery.attempted", recipient=f"{local}@far.test", queue_id=failed["queue_id"]
        )
        assert (sent["status"], sent["code"]) == ("delivered", 250)
        wait_until(
            local, lambda box=local: any(b"Subject: three\n" in mail for mail in next_hop.mailbox(box))
        )
    # The sender gets a notice of what failed for good, which is no longer in the queue.
    (notice,) = gateway.wait_for_mail("sender")
    assert b"Final-Recipient: rfc822; nobody@far.test" in notice
    assert b"User unknown" in notice
    assert b"anna@far.test" not in notice
    wait_until("an empty queue", lambda: failed["queue_id"] not in gateway.ctl("queue", "list").stdout)


def test_mail_waits_while_postfix_is_away_and_goes_when_it_is_back(
    open_directory: Path, tmp_path: Path
) -> None:
    postfix = Postfix.with_mailboxes(open_directory / "away", "away.test", ["carl"])
    daemon = Daemon(
        tmp_path / "node",
        f'[[route]]\ndomains = ["away.test"]\nto = "smtp://127.0.0.1:{postfix.port}"\n',
        domains='relay_from = ["127.0.0.0/8"]',
        spool='retry = ["1s"]',
    ).start()
    try:
        with daemon.client() as client:
            client.sendmail("a@client.test", ["carl@away.test"], _MESSAGE, mail_options=["BODY=8BITMIME"])
        deferred = daemon.wait_for("delivery.attempted", recipient="carl@away.test")
        assert (deferred["status"], deferred["enhanced"]) == ("deferred", "4.4.1")
        postfix.start()
        wait_until("the message", lambda: len(postfix.mailbox("carl")) == 1)
        assert postfix.mailbox("carl")[0].endswith(_MESSAGE.replace(b"\r\n", b"\n"))
    finally:
        daemon.kill()
        postfix.stop()
