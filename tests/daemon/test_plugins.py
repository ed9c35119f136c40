"""Policies from outside this tree in a real daemon: found, named, and unable to take it down."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.wire import Wire

MakeDaemon = Callable[..., Daemon]

PACKAGE = '''
from twisted.internet.defer import Deferred
from twisted.plugin import IPlugin
from zope.interface import implementer
from elemta.policy import CONTINUE, IPolicyPlugin, IRcptPolicy, NoOptions, Reject


@implementer(IRcptPolicy)
class Troubled:
    """Refuses one recipient, hangs for a second, raises for a third, gives an invalid answer for a fourth."""

    def rcpt(self, session, transaction, recipient):
        if recipient.local == "refused":
            return Reject("no such mailbox yet", enhanced="5.1.1")
        if recipient.local == "hangs":
            return Deferred()
        if recipient.local == "raises":
            raise RuntimeError("out of cheese")
        if recipient.local == "invalid":
            return "OK"
        return CONTINUE


@implementer(IPlugin, IPolicyPlugin)
class TroubledPlugin:
    name = "troubled"
    options = NoOptions

    def build(self, options, services):
        return Troubled()


troubled = TroubledPlugin()
'''


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip put another author's package."""
    source = tmp_path_factory.mktemp("troubled-source")
    (source / "troubled.py").write_text(PACKAGE)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "elemta-troubled"\nversion = "1.0"\n'
        '[project.entry-points."elemta.policies"]\ntroubled = "troubled:troubled"\n'
        '[tool.setuptools]\npy-modules = ["troubled"]\n'
    )
    target = tmp_path_factory.mktemp("troubled-installed")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--target",
            str(target),
            str(source),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return target


@pytest.fixture
def node(make_daemon: MakeDaemon, installed: Path) -> Daemon:
    return make_daemon(
        '[policies]\nchain = ["limits", "troubled", "relay"]\n'
        '[policy.troubled]\ntimeout = "3s"\non_error = "defer"\n',
        environ={"PYTHONPATH": str(installed)},
    ).start()


def rcpt(daemon: Daemon, local: str) -> str:
    with Wire(daemon.socket()) as wire:
        wire.reply()
        wire.command("EHLO client.test")
        wire.command("MAIL FROM:<a@client.test>")
        return wire.command(f"RCPT TO:<{local}@example.test>")


def test_a_package_installed_by_pip_refuses_one_recipient_and_is_named_in_the_log(node: Daemon) -> None:
    assert rcpt(node, "refused") == "550 5.1.1 no such mailbox yet"
    assert rcpt(node, "welcome").startswith("250")
    assert any(record.get("policy") == "troubled" for record in node.records())


def test_a_policy_that_raises_costs_its_own_verdict_and_is_named(node: Daemon) -> None:
    assert rcpt(node, "raises").startswith("451 4.3.0")
    assert rcpt(node, "welcome").startswith("250")
    assert any(
        record.get("policy") == "troubled" and "out of cheese" in str(record) for record in node.records()
    )
    assert node.metric(r'elemta_policy_failures.*policy="troubled"') >= 1


def test_a_policy_with_an_invalid_answer_costs_its_own_verdict(node: Daemon) -> None:
    assert rcpt(node, "invalid").startswith("451 4.3.0")
    assert rcpt(node, "welcome").startswith("250")


def test_a_policy_that_hangs_costs_its_own_deadline_while_other_sessions_go_on(node: Daemon) -> None:
    others = []
    with Wire(node.socket()) as hanging:
        hanging.reply()
        hanging.command("EHLO client.test")
        # A machine that is busy may need that long by itself, but not every time.
        while not others or (others[-1] >= 2.8 and len(others) < 5):
            hanging.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<hangs@example.test>\r\n")
            began = time.monotonic()
            assert hanging.reply().startswith("250")
            for _ in range(3):
                assert rcpt(node, "welcome").startswith("250")
            others.append(time.monotonic() - began)
            assert hanging.reply().startswith("451 4.3.0")
            assert 2.5 < time.monotonic() - began < 45
            hanging.command("RSET")
    assert others[-1] < 2.8


def test_a_plugin_that_the_chain_names_and_nobody_has_stops_the_start(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon('[policies]\nchain = ["troubled", "relay"]\n')
    process = daemon.launch()
    assert process.wait(timeout=90) == 78
    assert "troubled" in daemon.output()


def test_elemtactl_lists_the_plugin_and_where_it_is_from(node: Daemon) -> None:
    listed = node.ctl("plugins").stdout
    assert "troubled" in listed
    assert "relay" in listed
