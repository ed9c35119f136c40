"""The policy ``policy-client`` and Debian's policyd-spf."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.policies.real.programs import PolicydSpf
from tests.support.daemon import Daemon
from tests.support.nameservers import Nsd

pytestmark = pytest.mark.servers

ZONE = """
fail A 192.0.2.1
fail TXT "v=spf1 -all"
pass TXT "v=spf1 ip4:127.0.0.1 -all"
soft TXT "v=spf1 ~all"
broken TXT "v=spf1 include:nosuch.client.test -all"
"""


@dataclass(frozen=True)
class Checked:
    daemon: Daemon
    policyd: PolicydSpf


@pytest.fixture(scope="module")
def checked(open_directory: Path) -> Iterator[Checked]:
    nsd = Nsd(open_directory / "nsd", {"client.test": ZONE})
    nsd.start()
    policyd = PolicydSpf(open_directory / "policyd-spf", nsd.address).start()
    daemon = Daemon(
        open_directory / "asks-policyd-spf",
        f"""
[policies]
chain = ["limits", "policy-client", "relay"]
[policy.policy-client]
endpoint = "{policyd.endpoint}"
timeout = "60s"
""",
    )
    yield Checked(daemon.start(), policyd)
    daemon.stop()
    policyd.stop()
    nsd.stop()


def at_rcpt(daemon: Daemon, sender: str, helo: str = "client.invalid") -> tuple[int, str]:
    with daemon.client() as client:
        client.ehlo(helo)
        client.mail(sender)
        code, text = client.rcpt("b@example.test")
        return code, text.decode()


@pytest.mark.parametrize(
    ("sender", "helo", "code", "enhanced"),
    [
        ("a@fail.client.test", "client.invalid", 550, "5.7.23"),
        ("", "fail.client.test", 550, "5.7.23"),
        ("a@broken.client.test", "client.invalid", 550, "5.7.24"),
        ("a@pass.client.test", "client.invalid", 250, "2.1.5"),
        ("a@soft.client.test", "client.invalid", 250, "2.1.5"),
        ("a@nothing.client.test", "client.invalid", 250, "2.1.5"),
    ],
)
def test_the_client_reads_what_policyd_spf_says(
    checked: Checked, sender: str, helo: str, code: int, enhanced: str
) -> None:
    found, text = at_rcpt(checked.daemon, sender, helo)
    assert (found, text.partition(" ")[0]) == (code, enhanced), text


def test_its_field_stands_on_top_once_for_all_recipients(checked: Checked) -> None:
    with checked.daemon.client() as client:
        client.sendmail(
            "a@pass.client.test", ["one@example.test", "two@example.test"], "Subject: s\r\n\r\nHello\r\n"
        )
    for local in ("one", "two"):
        (message,) = checked.daemon.wait_for_mail(local)
        assert message.lower().count(b"received-spf: pass") == 1


def test_a_process_that_dies_is_asked_anew(checked: Checked) -> None:
    assert at_rcpt(checked.daemon, "a@pass.client.test")[0] == 250
    before = checked.policyd.started
    checked.policyd.kill_all()
    assert at_rcpt(checked.daemon, "a@fail.client.test")[0] == 550
    assert checked.policyd.started > before
