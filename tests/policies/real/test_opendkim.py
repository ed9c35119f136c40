"""The policy ``milter`` and Debian's OpenDKIM: its signatures hold after the delivery."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dkim
import pytest

from tests.policies.real.programs import OpenDKIM
from tests.support.daemon import Daemon

pytestmark = pytest.mark.servers

SIMPLE = (
    b"From: Anna <anna@signed.test>\r\nTo: b@example.test\r\nSubject: s\r\n"
    b"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <1@signed.test>\r\n\r\nHello\r\n"
)
ODD = (
    b"From:Anna <anna@signed.test>\r\nTO:  b@example.test\r\n"
    b"Subject:  folded\r\n\t  twice\r\n  and   spaced \r\n"
    + "X-Raw: Grüße\r\n".encode()
    + b"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <2@signed.test>\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + "Grüße  \r\n.\r\n..dots\r\n\r\n\r\n".encode()
)
LONG = SIMPLE.replace(b"Hello\r\n", b"0123456789abcde\r\n" * 30_000)
EMPTY = SIMPLE.replace(b"Hello\r\n", b"")
LATIN = SIMPLE.replace(b"Subject: s", b"Subject: \xe4\xf6")


@dataclass(frozen=True)
class Signing:
    daemon: Daemon
    opendkim: OpenDKIM


@pytest.fixture(scope="module", params=["simple/simple", "relaxed/relaxed", "simple/relaxed"])
def signing(request: pytest.FixtureRequest, open_directory: Path) -> Iterator[Signing]:
    directory = open_directory / request.param.replace("/", "-")
    opendkim = OpenDKIM(
        directory / "opendkim", domain="signed.test", selector="sel", canonicalization=request.param
    )
    opendkim.start()
    daemon = Daemon(
        directory / "node",
        f"""
[policies]
chain = ["limits", "relay", "milter"]
[policy.milter]
endpoint = "{opendkim.endpoint}"
""",
    )
    yield Signing(daemon.start(), opendkim)
    daemon.stop()
    opendkim.stop()


@pytest.mark.parametrize(
    "content", [SIMPLE, ODD, LONG, EMPTY, LATIN], ids=["plain", "odd", "long", "empty", "latin"]
)
def test_the_signature_holds_after_the_delivery(
    signing: Signing, content: bytes, request: pytest.FixtureRequest
) -> None:
    local = request.node.callspec.id.replace("/", "-").lower()
    with signing.daemon.client() as client:
        client.ehlo()
        client.mail("anna@signed.test", ["BODY=8BITMIME"])
        assert client.rcpt(f"{local}@example.test")[0] == 250
        client.putcmd("data")
        assert client.getreply()[0] == 354
        client.send(content.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        reply = client.getreply()
        assert reply[0] == 250, reply
    (delivered,) = signing.daemon.wait_for_mail(local)
    message = delivered if b"\r\n" in delivered else delivered.replace(b"\n", b"\r\n")
    assert message.count(b"DKIM-Signature:") == 1
    assert dkim.verify(message, dnsfunc=lambda *_, **__: signing.opendkim.record)


def test_messages_of_one_session_are_each_signed(signing: Signing) -> None:
    with signing.daemon.client() as client:
        for _ in range(3):
            client.sendmail("anna@signed.test", ["many@example.test"], SIMPLE)
        client.mail("anna@signed.test")
        client.rset()
        client.sendmail("anna@signed.test", ["many@example.test"], SIMPLE)
    for delivered in signing.daemon.wait_for_mail("many", 4):
        message = delivered if b"\r\n" in delivered else delivered.replace(b"\n", b"\r\n")
        assert dkim.verify(message, dnsfunc=lambda *_, **__: signing.opendkim.record)


def test_without_opendkim_mail_waits_and_a_session_after_it_came_back_is_signed(
    signing: Signing,
) -> None:
    daemon, opendkim = signing.daemon, signing.opendkim
    with daemon.client() as client:
        client.ehlo()
        opendkim.stop()
        assert client.mail("anna@signed.test")[0] // 100 == 4
    with pytest.raises((smtplib.SMTPException, OSError)) as refused, daemon.client() as client:
        client.sendmail("anna@signed.test", ["back@example.test"], SIMPLE)
    assert getattr(refused.value, "smtp_code", 400) // 100 == 4
    opendkim.start()
    with daemon.client() as client:
        client.sendmail("anna@signed.test", ["back@example.test"], SIMPLE)
    (message,) = daemon.wait_for_mail("back")
    assert dkim.verify(message, dnsfunc=lambda *_, **__: opendkim.record)
