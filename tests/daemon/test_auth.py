"""AUTH on a submission listener, with a users file that ``elemtactl`` made."""

from __future__ import annotations

import base64
import smtplib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon
from tests.support.wire import Wire


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("auth")
    files = make_certificate(directory)
    users = directory / "users"
    users.touch(mode=0o600)
    daemon = Daemon(
        directory / "node",
        files.table
        + f'[auth]\ncheckers = ["elemta-users:{users}"]\n'
        + '[[listener]]\nname = "submission"\nendpoint = "tcp:0:interface=127.0.0.1"\nrole = "submission"\n'
        + '[[route]]\ndomains = ["*"]\nto = "hold:"\n',
    )
    daemon.add_user("alice", "correct horse")
    yield daemon.start()
    daemon.kill()


def start_tls(client: smtplib.SMTP) -> None:
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    client.starttls(context=context)
    client.ehlo()


def test_without_authentication_a_submission_listener_takes_no_mail(node: Daemon) -> None:
    with node.client("submission") as client:
        client.ehlo()
        assert client.docmd("MAIL FROM:<alice@example.test>")[0] == 530


def test_auth_is_not_offered_before_tls(node: Daemon) -> None:
    with node.client("submission") as client:
        client.ehlo()
        assert not client.has_extn("auth")
        assert client.docmd("AUTH", "PLAIN AGFsaWNlAHg=")[0] in (504, 538)
        start_tls(client)
        assert client.esmtp_features["auth"].split() == ["PLAIN", "LOGIN"]


@pytest.mark.parametrize("mechanism", ["plain", "login"])
def test_a_user_with_the_right_password_may_relay(node: Daemon, mechanism: str) -> None:
    with node.client("submission") as client:
        client.ehlo()
        start_tls(client)
        client.user, client.password = "alice", "correct horse"
        authenticate = client.auth_plain if mechanism == "plain" else client.auth_login
        assert client.auth(mechanism, authenticate)[0] == 235
        client.sendmail("alice@example.test", ["far@elsewhere.test"], "Subject: out\r\n\r\nx\r\n")
    record = node.wait_for("message.accepted", user="alice")
    shown = node.ctl("queue", "show", record["queue_id"]).stdout
    assert "elsewhere.test" in shown


def test_a_wrong_password_and_an_unknown_user_are_told_the_same(node: Daemon) -> None:
    replies = []
    for name in ("alice", "nobody"):
        with Wire(node.socket("submission")) as wire:
            wire.reply()
            wire.command("EHLO client.test")
            wire.command("STARTTLS")
            wire.start_tls()
            wire.command("EHLO client.test")
            token = base64.b64encode(f"\0{name}\0wrong".encode()).decode()
            replies.append(wire.command(f"AUTH PLAIN {token}"))
    assert replies[0] == replies[1]
    assert replies[0].startswith("535 5.7.8")


def test_failures_are_slowed(node: Daemon) -> None:
    token = base64.b64encode(b"\0mallory\0guess").decode()
    with Wire(node.socket("submission")) as wire:
        wire.reply()
        wire.command("EHLO client.test")
        wire.command("STARTTLS")
        wire.start_tls()
        wire.command("EHLO client.test")
        began = time.monotonic()
        assert wire.command(f"AUTH PLAIN {token}").startswith("535")
        assert wire.command(f"AUTH PLAIN {token}").startswith("535")
        assert time.monotonic() - began >= 2.5


def test_no_password_is_in_the_log(node: Daemon) -> None:
    assert "correct horse" not in node.output()
    assert base64.b64encode(b"\0alice\0correct horse").decode() not in node.output()
    assert "guess" not in node.output()


def test_a_limit_of_failed_logins_does_what_it_was_told(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.touch(mode=0o600)
    daemon = Daemon(
        tmp_path / "node",
        f'[auth]\ncheckers = ["elemta-users:{users}"]\nrequire_tls = false\n'
        '[[limit]]\nname = "guesses"\nper = ["ip"]\ncounts = "auth_failures"\nrates = ["1/1h"]\n'
        'on_exceed = "disconnect"\n',
    )
    daemon.add_user("alice", "correct horse")
    daemon.start()
    token = base64.b64encode(b"\0alice\0wrong").decode()
    try:
        with Wire(daemon.socket()) as wire:
            wire.reply()
            wire.command("EHLO client.test")
            assert wire.command(f"AUTH PLAIN {token}").startswith("535")
            refused = wire.command(f"AUTH PLAIN {token}")
            assert refused.startswith("421 4.7.0")
            assert "guesses" in refused
            assert wire.is_closed()
    finally:
        daemon.kill()
