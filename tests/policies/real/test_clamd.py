"""The policy ``clamav`` and Debian's clamd, with signatures of the test's own."""

from __future__ import annotations

import hashlib
import smtplib
from collections.abc import Iterator
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

import pytest

from tests.policies.real.programs import Clamd
from tests.support.daemon import Daemon

pytestmark = pytest.mark.servers

PATTERN = b"ELEMTA-TEST-PATTERN-7f3a91"
ATTACHED = b"MZ, or nearly so. " * 400
HASH = f"{hashlib.md5(ATTACHED, usedforsecurity=False).hexdigest()}:{len(ATTACHED)}:Elemta.Attached"


@pytest.fixture(scope="module")
def clamd(open_directory: Path) -> Iterator[Clamd]:
    clamd = Clamd(
        open_directory / "clamd",
        patterns={"Elemta.Pattern": PATTERN},
        hashes=[HASH],
        more="StreamMaxLength 1M\n",
    )
    yield clamd.start()
    clamd.stop()


@pytest.fixture(scope="module")
def daemon(clamd: Clamd, open_directory: Path) -> Iterator[Daemon]:
    """The daemon; the scanned listener refuses, "down" and "open" have a clamd that is not there."""
    nowhere = open_directory / "nowhere.ctl"
    daemon = Daemon(
        open_directory / "node",
        f"""
[[listener]]
name = "down"
endpoint = "tcp:0:interface=127.0.0.1"
[[listener]]
name = "open"
endpoint = "tcp:0:interface=127.0.0.1"
[[listener]]
name = "held"
endpoint = "tcp:0:interface=127.0.0.1"
[policies]
chain = ["limits", "relay", "clamav", "hold-viruses", "down", "open"]
[policy.clamav]
endpoint = "{clamd.endpoint}"
listeners = ["mx"]
[policy.hold-viruses]
use = "clamav"
endpoint = "{clamd.endpoint}"
quarantine = true
listeners = ["held"]
[policy.down]
use = "clamav"
endpoint = "unix:{nowhere}"
on_error = "defer"
listeners = ["down"]
[policy.open]
use = "clamav"
endpoint = "unix:{nowhere}"
on_error = "accept"
listeners = ["open"]
""",
    )
    yield daemon.start()
    daemon.stop()


def send(daemon: Daemon, content: bytes, local: str, listener: str = "mx") -> tuple[int, str]:
    """The reply to the message."""
    with daemon.client(listener) as client:
        client.ehlo()
        client.mail("a@client.test")
        assert client.rcpt(f"{local}@example.test")[0] == 250
        code, text = client.data(content)
        return code, text.decode()


def attachment(content: bytes) -> bytes:
    message = EmailMessage()
    message["Subject"] = "a file"
    message.set_content("See the file.")
    message.add_attachment(content, maintype="application", subtype="octet-stream", filename="a.bin")
    return message.as_bytes(policy=SMTP)


@pytest.mark.parametrize(
    ("content", "virus"),
    [
        (b"Subject: s\r\n\r\n" + PATTERN + b"\r\n", "Elemta.Pattern.UNOFFICIAL"),
        (attachment(PATTERN), "Elemta.Pattern.UNOFFICIAL"),
        (attachment(ATTACHED), "Elemta.Attached.UNOFFICIAL"),
        (b"Subject: s\r\n\r\n" + b"line of text\r\n" * 20_000 + PATTERN + b"\r\n", "Elemta.Pattern"),
    ],
    ids=["in the text", "in an attachment", "an attachment by its hash", "behind many blocks"],
)  # fmt: skip
def test_clamd_finds_a_virus_and_the_message_is_refused(daemon: Daemon, content: bytes, virus: str) -> None:
    code, text = send(daemon, content, "target")
    assert (code, text[:5]) == (554, "5.7.1")
    assert virus in text
    assert daemon.mailbox("target") == []


def test_a_clean_message_passes_as_it_is(daemon: Daemon) -> None:
    content = attachment(ATTACHED[:-1])
    assert send(daemon, content, "clean")[0] == 250
    assert (
        daemon.wait_for_mail("clean")[0]
        .replace(b"\r\n", b"\n")
        .endswith(content.replace(b"\r\n", b"\n").partition(b"\n\n")[2])
    )
    assert daemon.metric(r'elemta_plugin_clamav_scanned_total\{.*result="clean"') >= 1


def test_a_message_beyond_clamds_own_limit_passes_and_the_log_says_so(daemon: Daemon) -> None:
    assert send(daemon, b"Subject: s\r\n\r\n" + b"0123456789abcde\r\n" * 200_000, "large")[0] == 250
    daemon.wait_for_mail("large")
    assert "clamd takes no message as large as" in daemon.output()


def test_a_virus_is_held_where_the_options_say_so(daemon: Daemon) -> None:
    assert send(daemon, b"Subject: s\r\n\r\n" + PATTERN + b"\r\n", "quarantined", "held")[0] == 250
    assert "Elemta.Pattern" in daemon.ctl("queue", "list", "--json").stdout
    assert daemon.mailbox("quarantined") == []


def test_without_clamd_on_error_decides(daemon: Daemon) -> None:
    virus = b"Subject: s\r\n\r\n" + PATTERN + b"\r\n"
    assert send(daemon, virus, "later", "down")[0] // 100 == 4
    assert send(daemon, virus, "unscanned", "open")[0] == 250
    daemon.wait_for_mail("unscanned")
    assert daemon.mailbox("later") == []


def test_clamd_may_be_started_again(clamd: Clamd, daemon: Daemon) -> None:
    clamd.stop()
    code, _ = send(daemon, b"Subject: s\r\n\r\nclean\r\n", "again")
    assert code // 100 == 4
    clamd.start()
    assert send(daemon, b"Subject: s\r\n\r\nclean\r\n", "again")[0] == 250
    with pytest.raises(smtplib.SMTPDataError), daemon.client() as client:
        client.sendmail("a@client.test", ["again@example.test"], b"Subject: s\r\n\r\n" + PATTERN + b"\r\n")
