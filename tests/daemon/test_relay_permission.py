"""Policies that accept and hold everything, before ``relay`` or without it: still no open relay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.wire import Wire

MakeDaemon = Callable[..., Daemon]

DROPIN = """
from twisted.plugin import IPlugin
from zope.interface import implementer
from elemta.policy import Accept, IPolicyPlugin, IRcptPolicy, NoOptions, Quarantine


@implementer(IRcptPolicy)
class Always:
    def __init__(self, verdict):
        self.verdict = verdict

    def rcpt(self, session, transaction, recipient):
        return self.verdict


@implementer(IPlugin, IPolicyPlugin)
class AlwaysPlugin:
    options = NoOptions

    def __init__(self, name, verdict):
        self.name = name
        self.verdict = verdict

    def build(self, options, services):
        return Always(self.verdict)


always_hold = AlwaysPlugin("always-hold", Quarantine("everything is odd"))
always_accept = AlwaysPlugin("always-accept", Accept())
"""


@pytest.fixture
def plugins(tmp_path: Path) -> dict[str, str]:
    place = tmp_path / "site" / "twisted" / "plugins"
    place.mkdir(parents=True)
    (place / "always.py").write_text(DROPIN)
    return {"PYTHONPATH": str(tmp_path / "site")}


def lead(node: Daemon, *recipients: str) -> list[str]:
    """The replies to these recipients of one message, and to the message."""
    with Wire(node.socket()) as wire:
        wire.reply()
        wire.command("EHLO client.test")
        wire.command("MAIL FROM:<a@client.test>")
        replies = [wire.command(f"RCPT TO:<{recipient}>") for recipient in recipients]
        wire.command("DATA")
        return [*replies, wire.command("Subject: x\r\n\r\nx\r\n.")]


@pytest.mark.parametrize(
    "policies",
    [
        'chain = ["always-hold", "relay"]',
        'chain = ["always-hold", "always-accept", "relay"]',
        'chain = ["always-hold"]',
        'chain = ["always-hold", "relay"]\n[policy.relay]\nmode = "observe"',
    ],
)
def test_what_a_policy_holds_or_accepts_is_relayed_for_no_stranger_and_released_to_none(
    make_daemon: MakeDaemon, plugins: dict[str, str], policies: str
) -> None:
    node = make_daemon(f"[policies]\n{policies}\n", environ=plugins).start()
    foreign, local, message = lead(node, "target@foreign.test", "someone@example.test")
    assert foreign == "554 5.7.1 Relay access denied"
    assert (local[:3], message[:3]) == ("250", "250")
    (held,) = json.loads(node.ctl("--json", "queue", "list").stdout)["messages"]
    shown = json.loads(node.ctl("--json", "queue", "show", held["queue_id"]).stdout)["messages"][0]
    assert (shown["state"], shown["hold_reason"]) == ("quarantine", "everything is odd")
    assert [each["address"] for each in shown["recipients"]] == ["someone@example.test"]
    node.ctl("queue", "release", held["queue_id"])
    node.wait_for_mail("someone")


def test_a_policy_that_may_relay_grants_it_to_a_stranger(
    make_daemon: MakeDaemon, plugins: dict[str, str]
) -> None:
    node = make_daemon(
        '[policies]\nchain = ["always-accept", "relay"]\nmay_relay = ["always-accept"]\n'
        '[[route]]\ndomains = ["*"]\nto = "hold:"\n',
        environ=plugins,
    ).start()
    assert [reply[:3] for reply in lead(node, "friend@foreign.test")] == ["250", "250"]
