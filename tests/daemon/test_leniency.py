"""Addresses as the world writes them, from a client to the next hop; early talkers; bare newlines."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.programs import wait_until
from tests.interop.sink import Sink, Taken
from tests.support.daemon import Daemon
from tests.support.wire import Wire

CONTENT = b"From: a@b.test\r\nSubject: x\r\n\r\nhi\r\n.\r\n"
LONG = "v" * 200
STRICT = '[[listener]]\nname = "strict"\nendpoint = "tcp:0:interface=127.0.0.1"\nstrict = true\n'
RELAYS = 'relay_from = ["127.0.0.0/8"]'


@pytest.fixture
def sinks() -> Iterator[tuple[Sink, Sink]]:
    """A next hop that takes everything, and one that takes nothing."""
    with Sink("DSN", "8BITMIME") as takes, Sink(greeting="554 no mail here") as refuses:
        yield takes, refuses


@pytest.fixture
def node(sinks: tuple[Sink, Sink], make_daemon: Callable[..., Daemon]) -> Daemon:
    """It relays for this host: refused.test to the sink that takes nothing, the rest to the other one."""
    takes, refuses = sinks
    routes = "".join(
        f'[[route]]\ndomains = ["{domains}"]\nto = "smtp://127.0.0.1:{sink.port}"\n'
        for domains, sink in (("refused.test", refuses), ("*", takes))
    )
    return make_daemon(STRICT + routes, domains=RELAYS, mailboxes=False).start()


def deliver(node: Daemon, mail: str, *recipients: str, content: bytes = CONTENT) -> str:
    with Wire(node.socket()) as wire:
        assert wire.reply().startswith("220")
        assert wire.command("EHLO Annas PC").startswith("250")
        assert wire.command(mail) == "250 2.1.0 Sender OK"
        for recipient in recipients:
            assert wire.command(recipient) == "250 2.1.5 Recipient OK"
        assert wire.command("DATA").startswith("354")
        wire.send(content)
        return wire.reply()


def test_what_was_forgiven_travels_to_the_next_hop_as_it_was_written(
    node: Daemon, sinks: tuple[Sink, Sink]
) -> None:
    takes, _ = sinks
    recipients = {
        "RCPT TO:<user..name@mobile.test>": "user..name@mobile.test",
        "RCPT TO:< .user.@mobile.test > ORCPT=a=b": ".user.@mobile.test",
        'RCPT TO:<"a..b"@quoted.test>': '"a..b"@quoted.test',
        "RCPT TO:root@db_1.internal": "root@db_1.internal",
        f"RCPT\tTO : <{LONG}@b.test>": f"{LONG}@b.test",
        "RCPT TO:<root>": "root@example.test",
    }
    mail = f"MAIL FROM:<{LONG}..@lists_1.test> ENVID=QQ314159= XVERP"
    assert deliver(node, mail, *recipients).startswith("250 2.0.0 Message accepted")
    wait_until("all of it", lambda: len(takes.by_recipient()) == len(recipients))
    assert set(takes.by_recipient()) == set(recipients.values())
    assert {taken.mail.partition(" SIZE")[0] for taken in takes.taken} == {
        f"MAIL FROM:<{LONG}..@lists_1.test>"
    }
    assert takes.faults == []
    # Each kind is counted, and stands once in the log.
    kinds = (
        "helo_name dots long_local_part underscore envid unknown_parameter orcpt no_brackets blanks no_domain"
    )
    for kind in kinds.split():
        assert node.metric(rf'elemta_leniency_total{{.*kind="{kind}"') >= 1, kind
    logged = [record["kind"] for record in node.records("command.forgiven")]
    assert sorted(logged) == sorted(kinds.split())
    assert node.records("command.forgiven")[0]["text"] == "Annas PC"


def test_a_notice_quotes_what_was_sent(node: Daemon, sinks: tuple[Sink, Sink]) -> None:
    takes, _ = sinks
    deliver(node, "MAIL FROM:<sender.@mobile.test>", "RCPT TO:<user..name@refused.test>")
    node.ctl("queue", "bounce", "--yes", str(node.records("message.accepted")[0]["queue_id"]))
    wait_until("the notice", lambda: bool(takes.taken))
    (notice,) = takes.taken
    assert notice.recipients == ("sender.@mobile.test",)
    assert b"\r\nFinal-Recipient: rfc822; user..name@refused.test\r\n" in notice.content
    assert b"\r\nTo: <sender.@mobile.test>\r\n" in notice.content


def test_a_strict_listener_keeps_to_the_grammar(node: Daemon) -> None:
    with Wire(node.socket("strict")) as wire:
        wire.reply()
        assert wire.command("EHLO Annas PC") == "501 5.5.4 Domain name or address literal required"
        wire.command("EHLO x.test")
        assert wire.command("MAIL FROM:a@b.test") == "501 5.1.7 Bad sender address syntax"
        assert wire.command("MAIL FROM:<a@b.test> X=1").startswith("555 5.5.4")
        assert wire.command("MAIL FROM:<a@b.test>").startswith("250")
        assert wire.command("RCPT TO:<user..name@mobile.test>") == "501 5.1.3 Bad recipient address syntax"
        assert wire.command("RCPT TO:<c@d.test>").startswith("250")
        assert wire.command("DATA").startswith("354")
        wire.send(b"a\nb\r\n.\r\n")
        assert wire.reply() == "550 5.6.0 Message contains a bare CR or LF"


def test_bare_newlines_of_relay_from_leave_as_crlf(node: Daemon, sinks: tuple[Sink, Sink]) -> None:
    takes, _ = sinks
    content = b"Subject: two\n\nlines\n.\nMAIL FROM:<evil@b.test>\r.\rend\r\n.\r\n"
    assert deliver(node, "MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>", content=content).startswith("250")
    wait_until("it", lambda: bool(takes.taken))
    taken: Taken = takes.taken[0]
    header, _, body = taken.content.partition(b"\r\n\r\n")
    assert b"\r\nSubject: two" in header
    assert body == b"lines\r\n.\r\nMAIL FROM:<evil@b.test>\r\n.\r\nend\r\n"
    assert len(takes.taken) == 1
    assert takes.faults == []


def test_a_client_that_ends_its_message_with_bare_lfs_is_answered_at_once(
    make_daemon: Callable[..., Daemon],
) -> None:
    node = make_daemon().start()
    with Wire(node.socket(timeout=20.0)) as wire:
        wire.send(b"EHLO test\nMAIL FROM:<a@b.test>\nRCPT TO:<user@example.test>\nDATA\n")
        assert [wire.reply()[:3] for _ in range(5)] == ["220", "250", "250", "250", "354"]
        wire.send(b"Subject: x\n\nhi\n.\nQUIT\n")
        assert wire.reply() == "550 5.6.0 Message contains a bare CR or LF"
        assert wire.is_closed()


@pytest.mark.parametrize("slow", [False, True], ids=["at once", "slow"])
@pytest.mark.parametrize("early_talkers", ["wait", "reject"])
def test_a_client_that_talks_first_gets_the_same_answer_each_time(
    early_talkers: str, slow: bool, make_daemon: Callable[..., Daemon], slow_connects: Path
) -> None:
    node = make_daemon(
        '[policies]\nchain = ["pause", "relay"]\n' if slow else "",
        listener=f'early_talkers = "{early_talkers}"',
        environ={"PYTHONPATH": str(slow_connects)},
    ).start()
    said = set()
    for _ in range(10):
        with Wire(node.socket()) as wire:
            wire.send(b"EHLO test\n")
            wire.sock.shutdown(socket.SHUT_WR)
            said.add((wire.reply(), wire.reply()[:3], wire.is_closed()))
    if early_talkers == "wait":
        assert {(greeting[:3], reply) for greeting, reply, _ in said} == {("220", "250")}
    else:
        assert said == {("554 5.5.1 Client spoke before the greeting", "", True)}
    with Wire(node.socket()) as wire:
        assert wire.reply() == "220 mx.example.test ESMTP Elemta"


@pytest.fixture
def slow_connects(tmp_path: Path) -> Path:
    """A directory with a policy that answers each connection after a fifth of a second."""
    plugins = tmp_path / "lib/twisted/plugins"
    plugins.mkdir(parents=True)
    (plugins / "pause_policy.py").write_text(
        """
from twisted.internet.task import deferLater
from twisted.plugin import IPlugin
from zope.interface import implementer
from elemta.policy import CONTINUE, IConnectPolicy, IPolicyPlugin, NoOptions

@implementer(IConnectPolicy)
class Pause:
    def __init__(self, reactor):
        self.reactor = reactor

    def connected(self, session):
        return deferLater(self.reactor, 0.2, lambda: CONTINUE)

@implementer(IPlugin, IPolicyPlugin)
class PausePlugin:
    name = "pause"
    options = NoOptions

    def build(self, options, services):
        return Pause(services.reactor)

pause = PausePlugin()
"""
    )
    return tmp_path / "lib"
