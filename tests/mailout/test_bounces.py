"""The notices that come out of a daemon, read as a mail client does and as a mailing list does."""

from __future__ import annotations

import email
import email.policy
import socket
from email.message import EmailMessage
from typing import Any

import pytest
from flufl.bounce import all_failures

from tests.durability.ledger import Ledger
from tests.durability.load import Sink, serving
from tests.support.daemon import Daemon

MESSAGE = (
    b"From: Alice <alice@example.test>\r\nTo: bob@strict.test, carol@dead.test\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= am Montag\r\nMessage-ID: <1@laptop.example.test>\r\n"
    b"\r\n.Hello\r\n"
)


class Strict(Sink):
    def reply_to(self, recipient: str) -> str:
        return "550 5.1.1 no such user here"


@pytest.fixture(scope="module")
def notices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A failure and a delay of one message, as they lie in its sender's mailbox."""
    with serving(Strict(Ledger())) as strict, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        daemon = Daemon(
            tmp_path_factory.mktemp("bounces") / "node",
            f'[[route]]\ndomains = ["strict.test"]\nto = "smtp://127.0.0.1:{strict.port}"\n'
            f'[[route]]\ndomains = ["dead.test"]\nto = "smtp://127.0.0.1:{dead.getsockname()[1]}"\n',
            spool='retry = ["1s"]\nwarn_after = "1s"\n',
            domains='relay_from = ["127.0.0.0/8"]\n',
        ).start()
        try:
            with daemon.client() as client:
                client.sendmail(
                    "alice@example.test",
                    ["bob@strict.test", "carol@dead.test"],
                    MESSAGE,
                    ["ENVID=monday+2B1", "RET=FULL"],
                )
            mails = daemon.wait_for_mail("alice", 2, seconds=60.0)
        finally:
            daemon.stop()
    return {_action(mail): mail for mail in mails}


def _action(mail: bytes) -> str:
    return "failed" if b"\nAction: failed\r\n" in mail else "delayed"


def _parsed(mail: bytes) -> EmailMessage:
    return email.message_from_bytes(mail, policy=email.policy.default)


@pytest.mark.parametrize(
    ("action", "address"), [("failed", "bob@strict.test"), ("delayed", "carol@dead.test")]
)
def test_a_notice_is_a_multipart_report_about_the_recipient_that_it_is_for(
    notices: dict[str, Any], action: str, address: str
) -> None:
    report: Any = _parsed(notices[action])
    assert [part.defects for part in report.walk() if part.defects] == []
    assert report.get_content_type() == "multipart/report"
    assert report.get_param("report-type") == "delivery-status"
    assert (report["Return-Path"], report["To"]) == ("<>", "alice@example.test")
    assert report["Auto-Submitted"] == "auto-replied"
    text, status, original = report.iter_parts()
    assert text.get_content_type() == "text/plain"
    assert address in text.get_content()
    assert "Grüße am Montag" in text.get_content()
    about_message, about_recipient = status.get_payload()
    assert about_message["Reporting-MTA"] == "dns; mx.example.test"
    assert about_message["Original-Envelope-Id"] == "monday+1"
    assert about_recipient["Final-Recipient"] == f"rfc822; {address}"
    assert about_recipient["Action"] == action
    assert about_recipient["Status"] == {"failed": "5.1.1", "delayed": "4.4.1"}[action]
    whole = action == "failed"
    assert original.get_content_type() == ("message/rfc822" if whole else "text/rfc822-headers")
    assert b"Message-ID: <1@laptop.example.test>" in original.as_bytes()
    assert (b"\n.Hello" in original.as_bytes()) is whole


def test_a_mailing_list_finds_out_who_is_gone_and_who_is_only_late(notices: dict[str, Any]) -> None:
    found = {action: all_failures(_parsed(notices[action])) for action in ("failed", "delayed")}
    names = {action: [sorted(map(_text, kind)) for kind in kinds] for action, kinds in found.items()}
    assert names == {"failed": [[], ["bob@strict.test"]], "delayed": [["carol@dead.test"], []]}


def _text(address: str | bytes) -> str:
    return address.decode() if isinstance(address, bytes) else address
