"""Recipes of docs/plugins.md on a real daemon: they open a port, keep state, edit messages and reload."""

from __future__ import annotations

import smtplib
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

RECIPES = Path(__file__).parents[2] / "docs" / "examples" / "recipes"

DROPIN = """
from counter_port import CounterPortPlugin
from tag_subject import TagSubjectPlugin
from traps import TrapsPlugin

counter_port, tag_subject, traps = CounterPortPlugin(), TagSubjectPlugin(), TrapsPlugin()
"""

CHAIN = """
[policies]
chain = ["traps", "limits", "relay", "tag-subject", "counter-port"]
[policy.traps]
addresses = ["trap@example.test"]
[policy.counter-port]
port = {port}
"""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture
def node(make_daemon: Callable[..., Daemon], tmp_path: Path, port: int) -> Daemon:
    plugins = tmp_path / "site" / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "recipes_plugin.py").write_text(DROPIN)
    path = f"{tmp_path / 'site'}:{RECIPES}"
    environ = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return make_daemon(CHAIN.format(port=port), environ=environ).start()


def told(port: int) -> int:
    """What the policy says at its port."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        return int(sock.makefile().readline())


def send(node: Daemon, subject: str) -> None:
    with node.client() as client:
        content = f"Subject: {subject}\r\n\r\nhello\r\n".encode()
        client.sendmail("a@example.org", ["anna@example.test"], content)


def test_the_recipes_work_through_a_reload(node: Daemon, port: int) -> None:
    send(node, "first")
    assert b"Subject: [external] first\n" in node.wait_for_mail("anna")[0].replace(b"\r", b"")
    deadline = time.monotonic() + 30
    while told(port) != 1:
        assert time.monotonic() < deadline, node.output()
    node.ctl("reload")
    send(node, "second")
    while told(port) != 2:
        assert time.monotonic() < deadline, node.output()
    with node.client() as client:
        client.ehlo()
        client.mail("a@example.org")
        assert client.rcpt("trap@example.test")[0] == 550
    with pytest.raises(smtplib.SMTPConnectError) as refused:
        node.client()
    assert refused.value.smtp_code == 421
