"""Clients that reset, stall, half-close, never read or come by the hundred, over real sockets."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import make_certificate, unproved_tls
from tests.support.daemon import Daemon
from tests.support.wire import Wire

Step = Callable[[socket.socket], None]

ENVELOPE = b"MAIL FROM:<a@client.test>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a plain listener, one with implicit TLS, and both again behind PROXY."""
    directory = tmp_path_factory.mktemp("hostile")
    local = 'endpoint = "tcp:0:interface=127.0.0.1"\n'
    proxied = local + 'proxy_protocol_from = ["127.0.0.0/8"]\n'
    daemon = Daemon(
        directory / "node",
        make_certificate(directory).table
        + f'[[listener]]\nname = "tls"\ntls = "implicit"\n{local}'
        + f'[[listener]]\nname = "proxied"\n{proxied}'
        + f'[[listener]]\nname = "proxied-tls"\ntls = "implicit"\n{proxied}',
        server='max_message_size = "4MiB"\nmax_recipients = 1000000\n',
    )
    yield daemon.start()
    daemon.kill()


@pytest.fixture(autouse=True)
def _nothing_is_left(node: Daemon) -> Iterator[None]:
    """Whatever a client did: its session is gone, and no error was logged."""
    yield
    deadline = time.monotonic() + 45
    still_open = r"elemta_connections_open\{"
    while node.metric(still_open) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert node.metric(still_open) == 0
    alarms = [r for r in node.records() if r["level"] in ("error", "critical") or "traceback" in r]
    assert alarms == []


def reset(sock: socket.socket) -> None:
    """Close with an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def client_hello() -> bytes:
    """The first octets of a real handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = unproved_tls().wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


CONVERSATION = (
    b"EHLO client.test\r\n",
    b"NOOP",
    b"\r\n",
    b"MAIL FROM:<a@client.test>\r\n",
    b"RCPT TO:<b@example.test>\r\n",
    b"BDAT 5\r\n",
    b"12345",
    b"BDAT 100000\r\n",
    b"x" * 60_000,
    b"\r\nRSET\r\n" + ENVELOPE,
    b"Subject: x\r\n\r\n",
    b"y" * 1_500_000,
    b"\r\n.",
    b"\r\n",
    b"AUTH PLAIN\r\n",
    b"QUIT\r\n",
)


@pytest.mark.parametrize("waits", [0.0, 0.03])
@pytest.mark.parametrize("stage", range(len(CONVERSATION) + 1))
def test_a_client_may_reset_at_any_stage(node: Daemon, stage: int, waits: float) -> None:
    sock = node.socket()
    sock.settimeout(2)
    for piece in CONVERSATION[:stage]:
        try:
            sock.sendall(piece)
        except (ConnectionError, TimeoutError):
            break
        time.sleep(waits)
    reset(sock)


@pytest.mark.parametrize("stage", range(6))
@pytest.mark.parametrize("listener", ["mx", "tls"])
def test_a_client_may_reset_at_any_stage_of_tls(node: Daemon, listener: str, stage: int) -> None:
    sock = node.socket(listener)
    if listener == "mx":
        wire = Wire(sock)
        wire.reply()
        wire.command("EHLO client.test")
        wire.command("STARTTLS")
    hello = client_hello()
    if stage == 1:
        sock.sendall(hello[: len(hello) // 2])
    elif stage == 2:
        sock.sendall(hello)
    elif stage >= 3:
        sock = unproved_tls().wrap_socket(sock)
        if stage == 4:
            sock.sendall(b"EHLO client.test\r\n" + ENVELOPE[:20])
        elif stage == 5:
            sock.sendall(b"EHLO client.test\r\n" + ENVELOPE)
            sock.recv(10)
    time.sleep(0.02 * (stage % 2))
    reset(sock)


@pytest.mark.parametrize("stage", range(4))
def test_a_client_may_half_close_at_any_stage(node: Daemon, stage: int) -> None:
    with contextlib.closing(node.socket()) as sock:
        sock.sendall(b"".join((b"EHLO client.test\r\n", ENVELOPE, b"Subject: x\r\n\r\nx\r\n.\r\n")[:stage]))
        sock.shutdown(socket.SHUT_WR)
        while True:
            try:
                if not sock.recv(65536):
                    break
            except ConnectionError:
                break


@pytest.mark.parametrize("listener", ["mx", "proxied"])
def test_a_client_that_closes_its_half_behind_its_dot_is_told_that_its_message_is_queued(
    node: Daemon, listener: str
) -> None:
    with Wire(node.socket(listener)) as wire:
        if listener == "proxied":
            wire.send(b"PROXY TCP4 203.0.113.77 198.51.100.1 1111 25\r\n")
        wire.reply()
        wire.command("EHLO client.test")
        wire.send(ENVELOPE)
        assert [wire.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
        wire.send(b"Subject: x\r\n\r\nx\r\n.\r\nQUIT\r\n")
        wire.sock.shutdown(socket.SHUT_WR)
        assert "queued as" in wire.reply()
        assert wire.reply().startswith("221")
        assert wire.is_closed()


@pytest.mark.parametrize(
    "noise",
    [
        b"EHLO client.test\r\n",
        b"\x16\x03\x01\xff\xff" + b"\0" * 2000,
        b"\xff" * 5000,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_noise_where_a_handshake_belongs_ends_the_connection(node: Daemon, noise: bytes) -> None:
    with Wire(node.socket("tls")) as wire:
        wire.send(noise)
        try:
            data = wire.sock.recv(1000)
        except ConnectionError:
            data = b""
        assert b"220" not in data  # an alert of TLS at most


@pytest.mark.parametrize("listener", ["mx", "tls"])
def test_a_client_that_never_reads_is_not_read_from_and_then_gets_every_reply(
    node: Daemon, listener: str
) -> None:
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", node.port_of(listener)))
    with contextlib.closing(unproved_tls().wrap_socket(raw) if listener == "tls" else raw) as sock:
        sock.settimeout(1.0)
        time.sleep(0.1)
        sock.sendall(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\n")
        before = resident(node)
        sent = send_until_nobody_reads(sock)
        assert resident(node) - before < 64 * 1024
        with Wire(node.socket()) as other:
            assert other.reply().startswith("220")
            assert other.command("NOOP").startswith("250")
        expected = sent // len(RCPT)
        assert expected > 1000
        said = bytearray()
        accepted = seen = 0
        sock.settimeout(60)
        while accepted < expected:
            data = sock.recv(1 << 20)
            assert data
            said += data
            end = said.rfind(b"\n") + 1
            accepted += said.count(b"250 2.1.5 Recipient OK\r\n", seen, end)
            seen = end
        assert said.count(b"\r\n") - said.count(b"250-") == 3 + expected
        reset(sock)


RCPT = b"RCPT TO:<b@example.test>\r\n"


def send_until_nobody_reads(sock: socket.socket) -> int:
    """Send commands that are all fine and whose replies are longer than themselves; how many octets went."""
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 60_000_000:
            sent += sock.send((RCPT * 200)[sent % len(RCPT) :])
    assert sent < 60_000_000
    return sent


def resident(node: Daemon) -> int:
    """KiB of resident memory."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{node.pid}/status").read_text())
    assert found is not None
    return int(found[1])


def test_thousands_of_connections_that_say_nothing_leave_nothing(node: Daemon) -> None:
    descriptors = len(list(Path(f"/proc/{node.pid}/fd").iterdir()))
    for number in range(2000):
        sock = node.socket()
        if number % 2:
            reset(sock)
        else:
            sock.close()
    deadline = time.monotonic() + 45
    while len(list(Path(f"/proc/{node.pid}/fd").iterdir())) > descriptors and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(list(Path(f"/proc/{node.pid}/fd").iterdir())) <= descriptors


class TLSBehindHeader:
    """A TLS client whose first flight is sent together with the last of a PROXY header."""

    def __init__(self, sock: socket.socket, header: bytes) -> None:
        self._sock = sock
        self._header = header
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = unproved_tls().wrap_bio(self._incoming, self._outgoing)

    def _do(self, call: Callable[..., Any], *arguments: object) -> Any:
        while True:
            try:
                return call(*arguments)
            except ssl.SSLWantReadError:
                self._flush()
                data = self._sock.recv(65536)
                assert data, "the server closed"
                self._incoming.write(data)
            finally:
                self._flush()

    def _flush(self) -> None:
        out = self._outgoing.read()
        if out:
            self._sock.sendall(self._header + out)
            self._header = b""

    def handshake(self) -> None:
        self._do(self._tls.do_handshake)

    def read(self) -> bytes:
        return bytes(self._do(self._tls.read, 1000))

    def write(self, data: bytes) -> None:
        self._do(self._tls.write, data)


@pytest.mark.parametrize("cut", [0, 1, 20, 45])
def test_a_proxy_header_and_the_whole_client_hello_may_come_in_one_segment(node: Daemon, cut: int) -> None:
    address = f"203.0.113.{cut + 1}"
    header = f"PROXY TCP4 {address} 198.51.100.1 1111 465\r\n".encode()
    with contextlib.closing(node.socket("proxied-tls")) as sock:
        sock.sendall(header[:cut])
        time.sleep(0.02)
        client = TLSBehindHeader(sock, header[cut:])
        client.handshake()
        assert client.read() == b"220 mx.example.test ESMTP Elemta\r\n"
        client.write(b"NONSENSE\r\n")
        assert client.read().startswith(b"500")
        node.wait_for("command.refused", client_ip=address)


def test_one_address_that_stalls_its_handshakes_leaves_room_for_others(
    make_daemon: Any, tmp_path: Path
) -> None:
    daemon = make_daemon(
        make_certificate(tmp_path).table
        + '[[listener]]\nname = "tls"\ntls = "implicit"\nendpoint = "tcp:0:interface=127.0.0.1"\n'
    )
    text = daemon.config.read_text().replace("max_connections_per_ip = 10000", "max_connections_per_ip = 5")
    daemon.config.write_text(text.replace("[resources]", "[resources]\nmax_connections = 8"))
    daemon.start()
    stalled = [daemon.socket("tls") for _ in range(12)]
    try:
        deadline = time.monotonic() + 45
        while daemon.metric("elemta_connections_refused_total") < 7 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert daemon.metric('elemta_connections_refused_total.*reason="max_connections_per_ip"') == 7
        with (
            socket.create_connection(
                ("127.0.0.1", daemon.port_of("tls")), timeout=90, source_address=("127.0.0.2", 0)
            ) as sock,
            Wire(sock) as wire,
        ):
            wire.start_tls()
            assert wire.reply() == "220 mx.example.test ESMTP Elemta"
    finally:
        for sock in stalled:
            sock.close()


def test_nothing_that_a_client_says_becomes_a_line_of_the_log_or_a_label(node: Daemon) -> None:
    said = [
        "EHLO x\x1b[31m",
        'EHLO evil.test","event":"message.accepted',
        "EVILVERB evil.test",
        "MAIL FROM:<evil\u2028line@evil.test> SMTPUTF8",
        'MAIL FROM:<"evil\\" {0} %s"@evil.test>',
        "RCPT TO:<evil@evil.test>",
        "VRFY {evil.__class__}",
        "AUTH EVILMECHANISM",
        "X" * 1900,
    ]
    with Wire(node.socket()) as wire:
        wire.reply()
        wire.command("EHLO evil.test")
        for line in said:
            wire.command(line)
    for line in node.output().splitlines():
        assert line.startswith("{"), line
        assert line.endswith("}"), line
        assert line.isprintable()
    assert len(node.records()) == len(node.output().splitlines())
    assert not node.records("message.accepted") or all(
        "queue_id" in r for r in node.records("message.accepted")
    )
    assert "evil" not in node.get("/metrics").lower()
