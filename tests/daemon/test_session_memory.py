"""What a real daemon takes for a session, whatever its client sends, as /proc counts it."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon
from tests.support.wire import Wire

SESSIONS = 100
KIB = 1024
#: KiB. Of an idle session, and what any client may bring it to beside its envelope and its message.
IDLE, IDLE_WITH_TLS = 16, 48
MOST, MOST_WITH_TLS = 32, 64


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """One for each test: what a session leaves free would hide what the next one takes."""
    started = Daemon(tmp_path / "node", make_certificate(tmp_path).table)
    try:
        yield started.start()
    finally:
        started.kill()


def resident(daemon: Daemon) -> int:
    """KiB of resident memory."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def open_session(daemon: Daemon, *, tls: bool) -> Wire:
    sock = daemon.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire = Wire(sock)
    assert wire.reply().startswith("220")
    wire.command("EHLO client.test")
    if tls:
        wire.command("STARTTLS")
        wire.start_tls()
        wire.command("EHLO client.test")
    assert wire.command("MAIL FROM:<a@client.test>").startswith("250")
    return wire


def slowed(wire: Wire) -> None:
    """From now on each answer takes a second: what is sent meanwhile waits."""
    for _ in range(10):
        assert wire.command("RCPT TO:<x@elsewhere.test>").startswith("554")
    wire.send(b"RCPT TO:<x@elsewhere.test>\r\n" * 20)


def by_two_octets(wire: Wire) -> None:
    slowed(wire)
    for _ in range(2_500):
        send_what_goes(wire.sock, b"NO")


def by_seven_octets(wire: Wire) -> None:
    slowed(wire)
    for _ in range(600):
        send_what_goes(wire.sock, b"NOOP x\r")


def pipelined(wire: Wire) -> None:
    slowed(wire)
    send_what_goes(wire.sock, b"NOOP\r\n" * 20_000)


def half_a_line(wire: Wire) -> None:
    wire.send(b"NOOP " + b"x" * 2_000 + b"\r\nNOOP " + b"x" * 2_000)


def half_a_message(wire: Wire) -> None:
    assert wire.command("RCPT TO:<b@example.test>").startswith("250")
    assert wire.command("DATA").startswith("354")
    for _ in range(30):
        wire.send(b"x" * 70 + b"\r\n")


def send_what_goes(sock: socket.socket, data: bytes) -> None:
    sock.settimeout(0)
    try:
        sock.send(data)
    except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
        pass
    finally:
        sock.settimeout(60)


def settled(daemon: Daemon) -> int:
    """The resident memory once it does not change any more."""
    last = resident(daemon)
    for _ in range(100):
        time.sleep(0.05)
        now = resident(daemon)
        if now == last:
            break
        last = now
    return last


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("attack", "tls"),
    [
        (by_two_octets, False),
        (pipelined, False),
        (half_a_line, False),
        (half_a_message, False),
        (by_seven_octets, True),
        (pipelined, True),
        (half_a_message, True),
    ],
)
def test_a_session_takes_no_more_than_is_promised(
    daemon: Daemon, attack: Callable[[Wire], None], tls: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    warm = open_session(daemon, tls=tls)
    attack(warm)
    warm.sock.close()
    start = settled(daemon)
    wires = [open_session(daemon, tls=tls) for _ in range(SESSIONS)]
    idle = settled(daemon)
    for wire in wires:
        attack(wire)
    loaded = settled(daemon)
    for wire in wires:
        wire.sock.close()
    with capsys.disabled():
        print(
            f"\n  {attack.__name__}: {(idle - start) / SESSIONS:.1f} KiB a session when idle,"
            f" {(loaded - idle) / SESSIONS:.1f} KiB more",
            end="",
        )
    assert loaded - idle <= SESSIONS * (MOST_WITH_TLS if tls else MOST)
    assert idle - start <= SESSIONS * (IDLE_WITH_TLS if tls else IDLE)


@pytest.mark.timeout(180)
def test_envelopes_take_no_more_than_is_promised(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """999 recipients with a long ORCPT took 0.9 MiB, and 2.3 MiB where its characters were wide."""
    sessions = 40
    envelope = "".join(
        f"RCPT TO:<b{number}@example.test> ORCPT=utf-8;{chr(0x20000) * 120}@elsewhere.test\r\n"
        for number in range(999)
    ).encode()

    def fill(wire: Wire) -> None:
        wire.send(envelope)
        codes = [wire.reply()[:9] for _ in range(999)]
        assert codes[0] == "250 2.1.5"
        assert codes[-1] == "452 4.5.3"

    warm, *wires = [open_session(daemon, tls=False) for _ in range(sessions)]
    fill(warm)
    idle = settled(daemon)
    for wire in wires:
        fill(wire)
    loaded = settled(daemon)
    with capsys.disabled():
        print(f"\n  envelopes: {(loaded - idle) / len(wires):.0f} KiB a session", end="")
    assert loaded - idle <= len(wires) * (256 + 64)
    counted = daemon.metric(r'elemta_session_memory_bytes\{kind="envelopes".*\}')
    assert len(wires) * 200 * KIB < counted <= sessions * 256 * KIB
    assert daemon.metric(r'elemta_messages_deferred_total\{.*policy="memory",stage="rcpt".*\}') > 0
    for wire in (warm, *wires):
        assert wire.command("RSET").startswith("250")
        wire.sock.close()
    assert daemon.metric(r'elemta_session_memory_bytes\{kind="envelopes".*\}') <= 256 * KIB
