"""The conversation over a real socket with a real daemon: order, attacks, and what a client sees."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.smtp.test_chunking import READABLE, UNREADABLE
from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon
from tests.support.wire import Wire

MAIL = b"MAIL FROM:<sender@client.test>\r\n"
RCPT = b"RCPT TO:<user@example.test>\r\n"

SLOW_POLICY = """
from dataclasses import dataclass
from twisted.internet.task import deferLater
from twisted.plugin import IPlugin
from zope.interface import implementer
from elemta.policy import CONTINUE, IPolicyPlugin, IRcptPolicy, Reject, NoOptions

@implementer(IRcptPolicy)
class Slow:
    def __init__(self, reactor):
        self.reactor = reactor
    async def rcpt(self, session, transaction, recipient):
        if recipient.local.startswith("slow"):
            await deferLater(self.reactor, 1.0)
            return Reject("too slow for you")
        return CONTINUE

@implementer(IPlugin, IPolicyPlugin)
class SlowPlugin:
    name = "slow"
    options = NoOptions
    def build(self, options, services):
        return Slow(services.reactor)

slow = SlowPlugin()
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with TLS and a policy that takes a second."""
    directory = tmp_path_factory.mktemp("conversation")
    plugins = directory / "lib/twisted/plugins"
    plugins.mkdir(parents=True)
    (plugins / "slow_policy.py").write_text(SLOW_POLICY)
    certificate = make_certificate(directory)
    daemon = Daemon(
        directory / "node",
        certificate.table + '[policies]\nchain = ["limits", "slow", "relay"]\n',
        server='max_message_size = "1MiB"\n',
        environ={"PYTHONPATH": str(directory / "lib")},
    )
    daemon.start()
    yield daemon
    daemon.kill()


def connect(daemon: Daemon) -> Wire:
    wire = Wire(daemon.socket())
    assert wire.reply() == "220 mx.example.test ESMTP Elemta"
    return wire


def test_a_mail_command_sent_behind_starttls_is_not_executed(node: Daemon) -> None:
    with connect(node) as wire:
        wire.command("EHLO client.test")
        wire.send(b"STARTTLS\r\nMAIL FROM:<injected@client.test>\r\n")
        assert wire.reply().startswith(("501", "503", "554"))
        assert wire.is_closed()


def test_after_starttls_the_session_begins_anew(node: Daemon) -> None:
    with connect(node) as wire:
        assert "STARTTLS" in wire.command("EHLO client.test")
        assert wire.command("STARTTLS").startswith("220 2.0.0")
        wire.start_tls()
        assert wire.command("MAIL FROM:<a@client.test>").startswith("503")
        assert "STARTTLS" not in wire.command("EHLO client.test")
        assert wire.command("MAIL FROM:<a@client.test>").startswith("250 2.1.0")


def test_replies_come_in_order_when_a_policy_takes_a_second(node: Daemon) -> None:
    with connect(node) as wire:
        wire.command("EHLO client.test")
        began = time.monotonic()
        wire.send(MAIL + b"RCPT TO:<slow1@example.test>\r\n" + RCPT + b"RSET\r\nNOOP\r\n")
        assert [wire.reply() for _ in range(5)] == [
            "250 2.1.0 Sender OK",
            "550 5.7.1 too slow for you",
            "250 2.1.5 Recipient OK",
            "250 2.0.0 OK",
            "250 2.0.0 OK",
        ]
        assert time.monotonic() - began >= 1.0


def test_other_sessions_do_not_notice_a_slow_policy(node: Daemon) -> None:
    took = []
    with connect(node) as slow, connect(node) as quick:
        slow.command("EHLO slow.test")
        quick.command("EHLO quick.test")
        # A machine that is busy may take a second for it by itself, but not every time.
        while not took or (took[-1] >= 0.9 and len(took) < 10):
            slow.send(MAIL + b"RCPT TO:<slow2@example.test>\r\n")
            began = time.monotonic()
            for _ in range(5):
                assert quick.command("NOOP").startswith("250")
            took.append(time.monotonic() - began)
            assert slow.reply().startswith("250")
            assert slow.reply().startswith("550")
            slow.command("RSET")
    assert took[-1] < 0.9


END_OF_DATA_VARIANTS = {
    "lf dot lf": b"\n.\n",
    "lf dot crlf": b"\n.\r\n",
    "cr dot cr": b"\r.\r",
    "crlf dot lf": b"\r\n.\n",
    "crlf dot cr": b"\r\n.\r",
    "cr dot crlf": b"\r.\r\n",
    "nul between": b"\r\n.\x00\r\n",
    "lf crlf dot lf": b"\n\r\n.\n",
}


@pytest.mark.parametrize("variant", END_OF_DATA_VARIANTS.values(), ids=END_OF_DATA_VARIANTS.keys())
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "byte by byte"])
def test_only_crlf_dot_crlf_ends_a_message(node: Daemon, variant: bytes, whole: bool) -> None:
    smuggled = b"MAIL FROM:<smuggled@client.test>\r\nRCPT TO:<user@example.test>\r\nDATA\r\nsmuggled\r\n"
    message = b"Subject: outer\r\n\r\nouter" + variant + smuggled + b"\r\n.\r\n"
    with connect(node) as wire:
        wire.command("EHLO client.test")
        wire.send(MAIL + RCPT + b"DATA\r\n")
        assert [wire.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
        if whole:
            wire.send(message)
        else:
            wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for octet in message:
                wire.send(bytes([octet]))
        # One message, one reply, and it is a refusal: nothing of what was inside was executed.
        assert wire.reply().startswith("550 5.6.0")
        if b"\0" in variant:
            assert wire.command("NOOP") == "250 2.0.0 OK"
        else:
            assert wire.is_closed()


def test_a_dot_split_over_reads_is_still_the_end(node: Daemon) -> None:
    with connect(node) as wire:
        wire.command("EHLO client.test")
        wire.send(MAIL + RCPT + b"DATA\r\n")
        for _ in range(3):
            wire.reply()
        for part in (b"Subject: x\r\n\r\nbody\r", b"\n", b".", b"\r", b"\n"):
            wire.send(part)
            time.sleep(0.02)
        assert "queued as" in wire.reply()


def test_a_client_that_never_reads_costs_bounded_memory_and_is_not_waited_for(node: Daemon) -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", node.port))
    sock.settimeout(1.0)
    sock.sendall(b"")
    time.sleep(0.2)
    before = resident(node.pid)
    sent = 0
    try:
        # HELP has a long reply, so replies outgrow what was sent.
        for _ in range(20_000):
            sent += sock.send(b"HELP\r\n" * 100)
    except (TimeoutError, ConnectionError):
        pass
    assert sent < 12_000_000
    assert resident(node.pid) - before < 16 * 1024
    with connect(node) as wire:
        assert wire.command("NOOP").startswith("250")
    sock.close()


def test_a_client_that_talks_before_the_greeting_is_refused(make_slow_greeting: Daemon) -> None:
    sock = make_slow_greeting.socket()
    sock.sendall(b"EHLO early.test\r\n")
    with Wire(sock) as wire:
        assert wire.reply().startswith("554 5.5.1")
        assert wire.is_closed()


def test_http_on_the_smtp_port_is_told_so_and_closed(node: Daemon) -> None:
    with connect(node) as wire:
        wire.send(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nMAIL FROM:<x@y.test>\r\n")
        assert wire.reply().startswith("554")
        assert wire.is_closed()


def test_a_second_mail_after_a_finished_message_is_welcome(node: Daemon) -> None:
    with connect(node) as wire:
        wire.command("EHLO client.test")
        for _ in range(3):
            wire.send(MAIL + RCPT + b"DATA\r\n")
            assert [wire.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
            wire.send(b"Subject: again\r\n\r\nbody\r\n.\r\n")
            assert wire.reply().startswith("250 2.0.0 Message accepted for delivery; queued as ")


def test_chunks_make_the_same_message_as_data(node: Daemon) -> None:
    with connect(node) as wire:
        wire.command("EHLO client.test")
        wire.send(b"MAIL FROM:<s@client.test>\r\nRCPT TO:<chunks@example.test>\r\n")
        wire.send(b"BDAT 16\r\nSubject: x\r\n\r\nhi" + b"BDAT 6 LAST\r\n .\r\n\r\n")
        assert [wire.reply()[:3] for _ in range(4)] == ["250", "250", "250", "250"]
    (message,) = node.wait_for_mail("chunks")
    assert message.endswith((b"Subject: x\n\nhi .\n\n", b"Subject: x\r\n\r\nhi .\r\n\r\n"))


def test_behind_a_bdat_that_cannot_be_read_nothing_is_executed(node: Daemon) -> None:
    for line in UNREADABLE:
        if line in READABLE:
            continue
        with connect(node) as wire:
            wire.command("EHLO client.test")
            wire.send(MAIL + RCPT)
            assert [wire.reply()[:3] for _ in range(2)] == ["250", "250"]
            wire.send(line + b"\r\n" + b"NOOP\r\n" * 3000)
            assert (line, wire.reply()) == (line, "501 5.5.4 Syntax: BDAT size [LAST]")
            assert wire.is_closed(), line


def test_the_greeting_and_ehlo_say_what_users_scripts_know(node: Daemon) -> None:
    with connect(node) as wire:
        lines = wire.command("EHLO client.test").splitlines()
        offered = {line[4:].split(" ")[0] for line in lines[1:]}
        assert offered >= {
            "PIPELINING",
            "SIZE",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
            "CHUNKING",
            "DSN",
            "STARTTLS",
        }
        assert wire.command("MAIL FROM:<a@client.test> SIZE=99999999").startswith("552 5.3.4")
        wire.command("MAIL FROM:<a@client.test>")
        assert wire.command("RCPT TO:<a@elsewhere.test>") == "554 5.7.1 Relay access denied"


def resident(pid: int) -> int:
    """KiB of resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


SLOW_GREETING = """
from twisted.internet.task import deferLater
from twisted.plugin import IPlugin
from zope.interface import implementer
from elemta.policy import CONTINUE, IConnectPolicy, IPolicyPlugin, NoOptions

@implementer(IConnectPolicy)
class Pause:
    def __init__(self, reactor):
        self.reactor = reactor
    async def connected(self, session):
        await deferLater(self.reactor, 0.5)
        return CONTINUE

@implementer(IPlugin, IPolicyPlugin)
class PausePlugin:
    name = "pause"
    options = NoOptions
    def build(self, options, services):
        return Pause(services.reactor)

pause = PausePlugin()
"""


@pytest.fixture
def make_slow_greeting(make_daemon: Callable[..., Daemon], tmp_path: Path) -> Daemon:
    """A daemon that greets after half a second."""
    plugins = tmp_path / "lib/twisted/plugins"
    plugins.mkdir(parents=True)
    (plugins / "pause_policy.py").write_text(SLOW_GREETING)
    return make_daemon(
        '[policies]\nchain = ["pause", "relay"]\n',
        listener='early_talkers = "reject"',
        environ={"PYTHONPATH": str(tmp_path / "lib")},
    ).start()
