"""swaks, msmtp and Python's smtplib send mail into Elemta, each the way its users do."""

from __future__ import annotations

import re
import smtplib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.interop.programs import program
from tests.support.certificates import CertificateFiles, make_certificate, unproved_tls
from tests.support.daemon import Daemon

pytestmark = pytest.mark.servers

_ACCEPTED = "250 2.0.0 Message accepted for delivery; queued as "
_TEXT = "Grüße, 日本\n.\n..two dots\nfrom the end of a line   \n"
_MESSAGE = (
    f"From: a@client.test\nTo: b@example.test\nDate: Mon, 1 Jan 2024 00:00:00 +0000\nSubject: s\n\n{_TEXT}"
)


@dataclass(frozen=True)
class Node:
    daemon: Daemon
    certificate: CertificateFiles

    def arrived(self, local: str) -> bytes:
        """The one message of this mailbox."""
        (message,) = self.daemon.wait_for_mail(local)
        return message


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A daemon with TLS, a user ``alice``, and a listener for each way to submit."""
    directory = tmp_path_factory.mktemp("senders")
    certificate = make_certificate(directory)
    users = directory / "users"
    users.touch(mode=0o600)
    listeners = "".join(
        f'[[listener]]\nname = "{name}"\nendpoint = "tcp:0:interface=127.0.0.1"\n'
        f'role = "submission"\ntls = "{tls}"\n'
        for name, tls in (("submission", "starttls"), ("submissions", "implicit"))
    )
    daemon = Daemon(
        directory / "node",
        certificate.table
        + f'[auth]\ncheckers = ["elemta-users:{users}"]\n'
        # The programs send as any address.
        + '[submission]\nsenders = "any"\nadd_missing = false\n'
        + listeners,
    )
    subprocess.run(
        [*_elemtactl(daemon), "user", "add", "alice", "--password-stdin"],
        input="correct horse\n",
        text=True,
        check=True,
        timeout=90,
        capture_output=True,
    )
    daemon.start()
    yield Node(daemon, certificate)
    daemon.kill()


def _elemtactl(daemon: Daemon) -> list[str]:
    return [str(Path(sys.executable).with_name("elemtactl")), "--config", str(daemon.config)]


def _protocol(message: bytes) -> str:
    """The word after ``with`` in Elemta's Received field, which says how the message came."""
    found = re.search(rb"\(Elemta\) with (\w+) id ", message)
    assert found, message[:400]
    return found[1].decode()


def _body(message: bytes) -> str:
    return message.partition(b"\r\n\r\n")[2].decode().replace("\r\n", "\n")


# swaks

Swaks = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def swaks(node: Node) -> Swaks:
    path = program("swaks")

    def run(*options: str, listener: str = "mx", status: int = 0) -> subprocess.CompletedProcess[str]:
        server = f"127.0.0.1:{node.daemon.port_of(listener)}"
        done = subprocess.run(
            [path, "--server", server, "--from", "a@client.test", "--helo", "swaks.test", *options],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


def test_swaks_sends_a_first_mail(node: Node, swaks: Swaks) -> None:
    done = swaks("--to", "first@example.test", "--header", "Subject: first", "--body", "hello")
    assert f"<-  {_ACCEPTED}" in done.stdout
    message = node.arrived("first")
    assert message.startswith(b"Return-Path: <a@client.test>\r\nReceived: from swaks.test ([127.0.0.1])\r\n")
    assert b"\tfor <first@example.test>;\r\n" in message
    assert _protocol(message) == "ESMTP"
    assert _body(message).strip() == "hello"


def test_swaks_sends_after_starttls(node: Node, swaks: Swaks) -> None:
    trust = str(node.certificate.certificate)
    done = swaks("--tls", "--tls-verify", "--tls-ca-path", trust, "--to", "tls@example.test")
    assert f"<~  {_ACCEPTED}" in done.stdout
    assert _protocol(node.arrived("tls")) == "ESMTPS"


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_swaks_authenticates_after_starttls(node: Node, swaks: Swaks, mechanism: str) -> None:
    credentials = ("--auth", mechanism, "--auth-user", "alice", "--auth-password", "correct horse")
    local = f"auth-{mechanism.lower()}"
    swaks("--tls", *credentials, "--to", f"{local}@example.test", listener="submission")
    assert _protocol(node.arrived(local)) == "ESMTPSA"


def test_swaks_authenticates_where_tls_comes_first(node: Node, swaks: Swaks) -> None:
    credentials = ("--auth", "--auth-user", "alice", "--auth-password", "correct horse")
    swaks("--tls-on-connect", *credentials, "--to", "implicit@example.test", listener="submissions")
    assert _protocol(node.arrived("implicit")) == "ESMTPSA"


def test_swaks_is_told_that_its_password_is_wrong(swaks: Swaks) -> None:
    credentials = ("--auth", "--auth-user", "alice", "--auth-password", "wrong")
    done = swaks("--tls", *credentials, "--to", "never@example.test", listener="submission", status=28)
    assert "<~* 535 5.7.8" in done.stdout


def test_swaks_is_told_that_relaying_is_denied(swaks: Swaks) -> None:
    done = swaks("--to", "x@elsewhere.test", status=24)
    assert "<** 554 5.7.1 Relay access denied" in done.stdout


def test_swaks_sends_to_many_recipients_and_some_are_refused(node: Node, swaks: Swaks) -> None:
    recipients = "many1@example.test,many2@elsewhere.test,many3@example.test,many4@example.test"
    done = swaks("--to", recipients)
    assert done.stdout.count("<** 554 5.7.1 Relay access denied") == 1
    for local in ("many1", "many3", "many4"):
        message = node.arrived(local)
        assert b"\tfor <" not in message.partition(b"\r\nDate:")[0]


def test_swaks_sends_with_pipelining(node: Node, swaks: Swaks) -> None:
    recipients = ",".join(f"pipelined{number}@example.test" for number in range(40))
    done = swaks("--pipeline", "--to", recipients)
    assert _ACCEPTED in done.stdout
    for number in range(40):
        node.arrived(f"pipelined{number}")


def test_swaks_sends_eight_bits_and_dots(node: Node, swaks: Swaks, tmp_path: Path) -> None:
    data = tmp_path / "message"
    data.write_text(_MESSAGE)
    swaks("--data", f"@{data}", "--to", "eight-bit@example.test")
    assert _body(node.arrived("eight-bit")).rstrip("\n") == _TEXT.rstrip("\n")


# msmtp

Msmtp = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def msmtp(node: Node, tmp_path: Path) -> Msmtp:
    path = program("msmtp")
    configuration = tmp_path / "msmtprc"
    configuration.touch(mode=0o600)

    def run(*arguments: str, listener: str = "mx", account: str = "") -> subprocess.CompletedProcess[str]:
        configuration.write_text(
            f"account default\nhost 127.0.0.1\nport {node.daemon.port_of(listener)}\n"
            f"from a@client.test\ndomain msmtp.test\n{account}\n"
        )
        return subprocess.run(
            [path, "-C", str(configuration), *arguments],
            input=_MESSAGE,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    return run


def test_msmtp_sends_a_mail(node: Node, msmtp: Msmtp) -> None:
    done = msmtp("msmtp1@example.test", "msmtp2@example.test")
    assert done.returncode == 0, done.stderr
    for local in ("msmtp1", "msmtp2"):
        message = node.arrived(local)
        assert _protocol(message) == "ESMTP"
        assert _body(message) == _TEXT


@pytest.mark.parametrize(("listener", "starttls"), [("submission", "on"), ("submissions", "off")])
def test_msmtp_submits_over_tls_that_it_verified(
    node: Node, msmtp: Msmtp, listener: str, starttls: str
) -> None:
    account = (
        f"tls on\ntls_starttls {starttls}\ntls_trust_file {node.certificate.certificate}\n"
        "tls_host_override mx.example.test\nauth plain\nuser alice\npassword correct horse\n"
    )
    done = msmtp(f"msmtp-{listener}@example.test", listener=listener, account=account)
    assert done.returncode == 0, done.stderr
    message = node.arrived(f"msmtp-{listener}")
    assert _protocol(message) == "ESMTPSA"
    assert _body(message) == _TEXT


def test_msmtp_tells_its_user_why_a_recipient_was_refused(msmtp: Msmtp) -> None:
    done = msmtp("x@elsewhere.test")
    assert done.returncode != 0
    assert "554 5.7.1 Relay access denied" in done.stderr


# smtplib


def test_smtplib_sends_an_internationalised_message(node: Node) -> None:
    message = EmailMessage()
    message["From"] = "böb@client.test"
    message["To"] = "älice@example.test"
    message["Subject"] = "Grüße"
    message.set_content(_TEXT)
    with node.daemon.client() as client:
        assert client.send_message(message) == {}
    arrived = node.arrived("%C3%A4lice")
    assert arrived.startswith("Return-Path: <böb@client.test>\r\n".encode())
    assert _protocol(arrived) == "UTF8SMTP"
    assert "Subject: Grüße\r\n".encode() in arrived


@pytest.mark.parametrize("length", [998, 1000, 70_000, 1_000_000])
def test_smtplib_sends_a_line_of_any_length(node: Node, length: int) -> None:
    body = b"Subject: long\r\n\r\n" + b"." * length + b"\r\n" + b"x" * length + b"\r\n"
    local = f"long{length}"
    with node.daemon.client() as client:
        client.sendmail("a@client.test", [f"{local}@example.test"], body)
    assert node.arrived(local).endswith(b"\r\n" + body)


def test_smtplib_submits_a_message_with_attachments_over_tls(node: Node) -> None:
    message = EmailMessage()
    message["From"] = "alice@example.test"
    message["To"] = "attached@example.test"
    message.set_content(_TEXT, cte="8bit")
    message.add_attachment(bytes(range(256)) * 4000, maintype="application", subtype="octet-stream")
    message.set_boundary("boundary")
    port = node.daemon.port_of("submissions")
    with smtplib.SMTP_SSL("127.0.0.1", port, context=unproved_tls(), timeout=90) as client:
        client.login("alice", "correct horse")
        client.send_message(message)
    arrived = node.arrived("attached")
    assert _protocol(arrived) == "ESMTPSA"
    assert arrived.endswith(message.as_bytes().replace(b"\n", b"\r\n"))


def test_smtplib_sends_many_messages_over_one_connection(node: Node) -> None:
    with node.daemon.client() as client:
        client.starttls(context=unproved_tls())
        for number in range(30):
            client.sendmail("a@client.test", ["again@example.test"], f"Subject: {number}\r\n\r\nx\r\n")
        client.rset()
        client.ehlo()
        client.sendmail("a@client.test", ["again@example.test"], "Subject: last\r\n\r\nx\r\n")
    assert len(node.daemon.wait_for_mail("again", 31)) == 31


def test_smtplib_is_told_which_of_its_recipients_were_refused(node: Node) -> None:
    with node.daemon.client() as client:
        refused = client.sendmail(
            "a@client.test", ["partly@example.test", "x@elsewhere.test"], "Subject: x\r\n\r\nx\r\n"
        )
    assert refused == {"x@elsewhere.test": (554, b"5.7.1 Relay access denied")}
    node.arrived("partly")
