"""Users, clients in relay_from and programs hand in mail at a real daemon; what arrives is looked at."""

from __future__ import annotations

import email
import email.policy
import os
import signal
import smtplib
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.programs import wait_until
from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon

MakeDaemon = Callable[..., Daemon]

OURS = ["Return-Path", "Received"]


class Node:
    """A daemon with a submission listener, users, aliases and a file of senders."""

    def __init__(
        self, make_daemon: MakeDaemon, directory: Path, settings: str = "", domains: str = ""
    ) -> None:
        files = make_certificate(directory)
        users = directory / "users"
        users.touch(mode=0o600)
        self.senders = directory / "senders"
        self.senders.write_text("anna  press@corp.example, @anna.example\n")
        aliases = directory / "aliases"
        aliases.write_text("sales@example.test  anna@example.test, bob@example.test\n")
        self.daemon = make_daemon(
            files.table
            + f'[auth]\ncheckers = ["elemta-users:{users}"]\n'
            + f'[submission]\nsender_map = "{self.senders}"\n{settings}\n'
            + '[[listener]]\nname = "submission"\nrole = "submission"\n'
            + 'endpoint = "tcp:0:interface=127.0.0.1"\n',
            domains=f'aliases = "{aliases}"\n{domains}',
        )
        self.daemon.add_user("anna", "secret")
        self.daemon.start()

    def client(self, listener: str = "submission", *, login: bool = True) -> smtplib.SMTP:
        client = self.daemon.client(listener)
        client.ehlo("annas-laptop.test")
        if login:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            client.starttls(context=context)
            client.ehlo("annas-laptop.test")
            client.login("anna", "secret")
        return client

    def arrived(self, name: str) -> bytes:
        return self.daemon.wait_for_mail(name)[-1]


@pytest.fixture
def node(make_daemon: MakeDaemon, tmp_path: Path) -> Node:
    return Node(make_daemon, tmp_path)


def names(content: bytes) -> list[str]:
    return [name for name, _ in email.message_from_bytes(content).raw_items()]


def outcome(
    client: smtplib.SMTP, sender: str, message: bytes, to: str = "box@example.test"
) -> tuple[int, str]:
    """What the client hears about a message, at the first refusal or at its end."""
    code, text = client.mail(sender)
    if code == 250:
        assert client.rcpt(to)[0] == 250
        code, text = client.data(message)
    else:
        client.rset()
    return code, text.decode()


def test_a_user_sends_as_the_user_and_as_nobody_else(node: Node) -> None:
    with node.client() as client:
        for sender in (
            "anna@example.test",
            "Anna+x@example.test",
            "sales@example.test",
            "x@anna.example",
            "",
        ):
            assert outcome(client, sender, b"From: anna@example.test\r\n\r\nx\r\n")[0] == 250, sender
        for sender in ("bob@example.test", "anna@corp.example"):
            assert outcome(client, sender, b"") == (553, "5.7.1 You may not send as this address"), sender
        other = b"From: Anna <anna@example.test>,\r\n Boss <boss@corp.example>\r\n\r\nx\r\n"
        refused = (550, "5.7.1 You may not send as an address in From or Sender")
        assert outcome(client, "anna@example.test", other) == refused
        assert outcome(client, "anna@example.test", b"Sender: boss@corp.example\r\n\r\nx\r\n") == refused
        unreadable = (550, "5.7.1 The addresses in From or Sender cannot be read")
        assert outcome(client, "anna@example.test", b"From: boss@\r\n\r\nx\r\n") == unreadable
        # The session goes on.
        assert outcome(client, "anna@example.test", b"From: press@corp.example\r\n\r\nx\r\n")[0] == 250
    assert len(node.daemon.wait_for_mail("box", 6)) == 6
    assert node.daemon.metric(r'elemta_messages_rejected_total\{.*policy="submission",stage="mail"\}') == 2
    (reason, *_) = [
        record["reason"] for record in node.daemon.records("command.refused") if record["verb"] == "MAIL"
    ]
    assert reason == "bob@example.test is not an address of anna"


def test_the_same_holds_for_a_user_at_an_mx_listener_and_for_no_stranger(node: Node) -> None:
    with node.client("mx") as client:
        assert outcome(client, "bob@example.test", b"")[0] == 553
    with node.client("mx", login=False) as client:
        assert outcome(client, "bob@example.test", b"Bcc: x@example.test\r\n\r\nx\r\n")[0] == 250
    assert names(node.arrived("box")) == [*OURS, "Bcc"]


@pytest.mark.parametrize("size", [10, 300_000])
def test_what_a_user_sends_is_completed(node: Node, size: int) -> None:
    body = (b"x" * 70 + b"\r\n") * (size // 70 + 1)
    header = b"Subject: x\r\nBcc: secret@example.test,\r\n\tmore@example.test\r\n"
    with node.client() as client:
        assert outcome(client, "anna@example.test", header + b"\r\n" + body)[0] == 250
    content = node.arrived("box")
    assert names(content) == [*OURS, "Subject", "Date", "From", "Message-ID"]
    assert content.partition(b"\r\n\r\n")[2] == body
    parsed = email.message_from_bytes(content, policy=email.policy.default)
    assert parsed["From"] == "anna@example.test"
    assert parsed["Date"].datetime is not None
    assert parsed["Message-ID"].endswith("@mx.example.test>")
    assert parsed["Message-ID"].strip("<>").partition("@")[0] in parsed["Received"]


def test_a_client_in_relay_from_gets_the_same_and_names_any_sender(
    make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    node = Node(make_daemon, tmp_path, domains='relay_from = ["127.0.0.1"]')
    with node.client("mx", login=False) as client:
        assert outcome(client, "cron@corp.example", b"Bcc: a@b.c\r\n\r\nx\r\n")[0] == 250
        message = b"From: boss@corp.example\r\n\r\nx\r\n"
        assert outcome(client, "cron@corp.example", message, "other@example.test")[0] == 250
    assert names(node.arrived("box")) == [*OURS, "Date", "From", "Message-ID"]
    assert names(node.arrived("other")) == [*OURS, "From", "Date", "Message-ID"]


def test_settings_turn_it_off_and_hide_the_client(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    settings = 'add_missing = false\nremove_bcc = false\nsenders = "any"\nhide_client = true\n'
    node = Node(make_daemon, tmp_path, settings)
    with node.client() as client:
        message = b"Bcc: x@example.test\r\nwords\r\n\r\nx\r\n"
        assert outcome(client, "boss@corp.example", message)[0] == 250
    with node.client("mx", login=False) as client:
        assert outcome(client, "a@corp.example", b"A: b\r\n\r\n", "other@example.test")[0] == 250
    content = node.arrived("box")
    assert content.endswith(b"\r\n" + message)
    received = email.message_from_bytes(content)["Received"]
    assert received.startswith("by mx.example.test (Elemta) with ESMTPSA id ")
    assert "annas-laptop" not in received
    assert "127.0.0.1" not in received
    # Others than users and relay_from are not hidden.
    assert "annas-laptop" in email.message_from_bytes(node.arrived("other"))["Received"]


def test_a_reload_reads_the_file_of_senders_again(node: Node) -> None:
    node.senders.write_text("anna  press@corp.example\nanna  bob@example.test\n")
    node.daemon.signal(signal.SIGHUP)
    node.daemon.wait_for("config.reloaded")
    with node.client() as client:
        assert outcome(client, "bob@example.test", b"From: bob@example.test\r\n\r\nx\r\n")[0] == 250
        assert outcome(client, "x@anna.example", b"")[0] == 553
    node.senders.write_text("anna  press@corp.example\nanna\n")
    node.daemon.signal(signal.SIGHUP)
    wait_until("the fault is logged", lambda: "senders: line 2" in node.daemon.output())
    with node.client() as client:
        assert outcome(client, "bob@example.test", b"From: bob@example.test\r\n\r\nx\r\n")[0] == 250
    # Both checks find it, too.
    checked = node.daemon.ctl("config", "check", check=False)
    assert checked.returncode == 78
    assert f"{node.senders}: line 2: " in checked.stdout + checked.stderr
    started = subprocess.run(
        [Path(sys.executable).with_name("twistd"), "elemta", "--config", node.daemon.config, "--check"],
        cwd=node.daemon.directory,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert started.returncode == 78
    assert f"{node.senders}: line 2: " in started.stderr


def test_what_elemta_sendmail_hands_in_is_completed(node: Node) -> None:
    program = Path(sys.executable).with_name("elemta-sendmail")
    config = node.daemon.directory / "for-sendmail.toml"
    config.write_text(f'[[listener]]\nname = "mx"\nendpoint = "tcp:{node.daemon.port}:interface=127.0.0.1"\n')
    subprocess.run(
        [program, "-f", "cron@example.test", "box@example.test"],
        input=b"Subject: x\nBcc: secret@example.test,\n more@example.test\nresent-BCC: y@example.test\n\nx\n",
        env={**os.environ, "ELEMTA_CONFIG": str(config)},
        check=True,
        timeout=90,
    )
    assert sorted(names(node.arrived("box"))) == sorted([*OURS, "Date", "From", "Message-ID", "Subject"])
