"""TLS clients of many kinds against a real daemon: openssl's, recorded ones, and those that close early."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from elemta.net.client_hello import read_client_hello
from tests.support.certificates import make_certificate
from tests.support.client_hellos import RECORDED
from tests.support.daemon import Daemon
from tests.support.wire import Wire

LISTENERS = ("mx", "implicit")
IMPLICIT = '[[listener]]\nname = "implicit"\nendpoint = "tcp:0:interface=127.0.0.1"\ntls = "implicit"\n'
#: Options of openssl s_client. DEFAULT@SECLEVEL=1 is what old systems have.
OPENSSL = {
    "as it is": [],
    "with a name": ["-servername", "mx.example.test"],
    "with an unknown name": ["-servername", "unknown.test"],
    "without a name": ["-noservername"],
    "TLS 1.2": ["-tls1_2"],
    "TLS 1.3": ["-tls1_3"],
    "ALPN smtp": ["-alpn", "smtp"],
    "ALPN h2": ["-alpn", "h2"],
    "ALPN of several, TLS 1.2": ["-tls1_2", "-alpn", "h2,http/1.1,imap,x"],
    "RSA only, TLS 1.2": ["-tls1_2", "-cipher", "ECDHE+aRSA"],
    "RSA only, TLS 1.3": ["-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256"],
    "ECDSA only, TLS 1.2": ["-tls1_2", "-cipher", "ECDHE+aECDSA"],
    "ECDSA only, TLS 1.3": ["-tls1_3", "-sigalgs", "ecdsa_secp256r1_sha256"],
    "one group": ["-groups", "P-256"],
    "P-384": ["-groups", "P-384"],
    "without tickets": ["-no_ticket"],
    "small records": ["-max_send_frag", "512"],
    "asks for OCSP": ["-status"],
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """With an RSA and an ECDSA certificate for one name."""
    directory = tmp_path_factory.mktemp("clients")
    tables = make_certificate(directory, with_rsa=True, stem="rsa-").table
    tables += make_certificate(directory, stem="ecdsa-").table.replace("[tls]", "[[certificate]]")
    started = Daemon(directory / "node", IMPLICIT + tables)
    try:
        yield started.start()
    finally:
        started.kill()


def s_client(daemon: Daemon, listener: str, options: list[str]) -> str:
    done = subprocess.run(
        [
            "openssl",
            "s_client",
            "-crlf",
            "-ign_eof",
            "-connect",
            f"127.0.0.1:{daemon.port_of(listener)}",
            *(["-starttls", "smtp"] if listener == "mx" else []),
            *options,
        ],
        input=b"EHLO client.test\nQUIT\n",
        capture_output=True,
        timeout=90,
        check=False,
    )
    return done.stdout.decode("utf-8", "replace") + done.stderr.decode("utf-8", "replace")


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("client", OPENSSL)
def test_openssl_is_served(daemon: Daemon, listener: str, client: str) -> None:
    said = s_client(daemon, listener, OPENSSL[client])
    assert "\n221 2.0.0" in said, said
    assert "alert" not in said
    if "ALPN" in client:
        assert "No ALPN negotiated" in said
    for kind, word in (("RSA only", "RSA"), ("ECDSA only", "ECDSA")):
        if client.startswith(kind):
            assert any(word in line for line in said.splitlines() if "Peer signature type" in line), said


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_client_that_resumes_its_session_is_served(
    daemon: Daemon, listener: str, version: str, tmp_path: Path
) -> None:
    kept = tmp_path / "session"
    first = s_client(daemon, listener, [version, "-sess_out", str(kept)])
    assert "\n221 2.0.0" in first
    if kept.exists():
        again = s_client(daemon, listener, [version, "-sess_in", str(kept)])
        assert "\n221 2.0.0" in again
        assert "alert" not in again


@pytest.mark.parametrize("cut", [0, 1, 5, 11, 100])
@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("client", RECORDED)
def test_a_recorded_hello_gets_the_servers_hello(
    daemon: Daemon, listener: str, client: str, cut: int
) -> None:
    octets = RECORDED[client]
    with Wire(daemon.socket(listener)) as wire:
        if listener == "mx":
            assert wire.reply().startswith("220")
            wire.command("EHLO client.test")
            assert wire.command("STARTTLS").startswith("220")
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.send(octets[:cut])
        wire.send(octets[cut:])
        answer = b""
        while len(answer) < 6:
            data = wire.sock.recv(4096)
            assert data, "the daemon closed"
            answer += data
    # A handshake record with a ServerHello, and no alert (RFC 8446 §4.1.3, §5.1)
    assert answer[0] == 22, answer[:20].hex()
    assert answer[5] == 2


@pytest.mark.parametrize("client", RECORDED)
def test_a_recorded_hello_is_read_for_the_log(client: str) -> None:
    hello = read_client_hello(RECORDED[client])
    assert hello.found
    assert hello.server_name == ("" if "without a name" in client else "mx.example.test")
    assert "TLSv1.2" in hello.versions
    assert ("TLSv1.3" in hello.versions) == (client in ("Java 17", "Go 1.19"))


class Memory:
    """A TLS client that decides which octets leave in one segment."""

    def __init__(self, sock: socket.socket, version: ssl.TLSVersion) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        self.sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out)
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                self._in.write(sock.recv(65536))
            else:
                break
        self.flush()

    def receive(self) -> None:
        self._in.write(self.sock.recv(65536))

    def flush(self) -> None:
        self.sock.sendall(self._out.read())

    def lines_until_closed(self) -> list[str]:
        """Each whole line up to the server's close_notify, or the end of the connection."""
        text = b""
        while True:
            try:
                data = self.tls.read(4096)
            except ssl.SSLWantReadError:
                more = self.sock.recv(65536)
                if not more:
                    break
                self._in.write(more)
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                break
            if not data:
                break
            text += data
        return text.decode().splitlines()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("listener", LISTENERS)
def test_a_close_notify_right_behind_the_dot_gets_its_answer_and_one_message(
    daemon: Daemon, listener: str, version: ssl.TLSVersion
) -> None:
    recipient = f"{listener}-{version.name}".lower()
    sock = daemon.socket(listener)
    if listener == "mx":
        wire = Wire(sock)
        wire.reply()
        wire.command("EHLO client.test")
        wire.command("STARTTLS")
    with sock:
        client = Memory(sock, version)
        commands = (
            "EHLO client.test",
            "MAIL FROM:<a@client.test>",
            f"RCPT TO:<{recipient}@example.test>",
            "DATA",
        )
        client.tls.write("".join(f"{command}\r\n" for command in commands).encode())
        client.flush()
        text = ""
        while "354 " not in text:
            with contextlib.suppress(ssl.SSLWantReadError):
                text += client.tls.read(4096).decode()
                continue
            client.receive()
        client.tls.write(b"Subject: x\r\n\r\nx\r\n.\r\n")
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.flush()
        answers = client.lines_until_closed()
    daemon.wait_for_mail(recipient)
    assert len(daemon.mailbox(recipient)) == 1
    assert [line for line in answers if line.startswith("250 2.0.0")], answers


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("last", ["QUIT", "NOOP"])
def test_behind_a_close_notify_the_daemon_closes_the_connection_at_once(
    daemon: Daemon, last: str, version: ssl.TLSVersion
) -> None:
    """Whichever side closes TLS first; the deadline of a close is ten seconds."""
    with daemon.socket("implicit", timeout=8) as sock:
        client = Memory(sock, version)
        client.tls.write(f"{last}\r\n".encode())
        if last == "QUIT":
            client.flush()
            assert [line[:3] for line in client.lines_until_closed()] == ["220", "221"]
        with contextlib.suppress(ssl.SSLError):
            client.tls.unwrap()
        client.flush()
        while sock.recv(4096):
            pass
