"""TLS handshakes with a real daemon: any ALPN offer is served, and weak ciphers are not."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from elemta.config import load
from elemta.errors import ConfigError
from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon
from tests.support.wire import Wire

#: What clients offer by ALPN: nothing, the name that SMTP might have, names of HTTP, and what has no sense.
OFFERS = (
    [],
    ["smtp"],
    ["h2"],
    ["http/1.1"],
    ["h2", "http/1.1"],
    ["nonsense", "smtp", "h2", "imap", "acme-tls/1"],
    ["\x01"],
    ["x" * 255],
    [f"protocol-{number}" for number in range(100)],
)
LISTENERS = ("mx", "implicit")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """STARTTLS at ``mx``, implicit TLS at ``implicit``; with an RSA key, which static RSA needs."""
    directory = tmp_path_factory.mktemp("tls")
    implicit = '[[listener]]\nname = "implicit"\nendpoint = "tcp:0:interface=127.0.0.1"\ntls = "implicit"\n'
    started = Daemon(directory / "node", implicit + make_certificate(directory, with_rsa=True).table)
    try:
        yield started.start()
    finally:
        started.kill()


def context_of(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    return context


def opened(daemon: Daemon, listener: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection whose handshake is done."""
    plain = daemon.socket(listener)
    if listener == "mx":
        wire = Wire(plain)
        assert wire.reply().startswith("220")
        assert "STARTTLS" in wire.command("EHLO client.test")
        assert wire.command("STARTTLS").startswith("220")
    return context.wrap_socket(plain)


def is_served(sock: socket.socket, listener: str) -> bool:
    with Wire(sock) as wire:
        greeted = listener == "mx" or wire.reply().startswith("220")
        return greeted and wire.command("EHLO client.test").startswith("250")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("offers", OFFERS, ids=lambda offers: ",".join(offers)[:20].strip("\x01"))
@pytest.mark.parametrize("listener", LISTENERS)
def test_a_client_that_offers_protocols_by_alpn_is_served_as_one_that_offers_none(
    daemon: Daemon, listener: str, offers: list[str], version: ssl.TLSVersion
) -> None:
    context = context_of(version)
    if offers:
        context.set_alpn_protocols(offers)
    sock = opened(daemon, listener, context)
    assert sock.selected_alpn_protocol() is None
    assert is_served(sock, listener)


@pytest.mark.parametrize("offer", ["smtp", "h2,http/1.1", "é", "a,b,c,d"])
@pytest.mark.parametrize("listener", LISTENERS)
def test_openssl_s_client_with_alpn_is_served(daemon: Daemon, listener: str, offer: str) -> None:
    done = subprocess.run(
        [
            "openssl",
            "s_client",
            "-connect",
            f"127.0.0.1:{daemon.port_of(listener)}",
            "-alpn",
            offer,
            *(["-starttls", "smtp"] if listener == "mx" else []),
        ],
        input=b"QUIT\r\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"No ALPN negotiated" in done.stdout, done.stderr
    assert b"alert" not in done.stderr


def test_a_session_is_resumed_by_a_client_that_offers_protocols(daemon: Daemon) -> None:
    context = context_of(ssl.TLSVersion.TLSv1_2)
    context.set_alpn_protocols(["h2"])
    session = None
    for _ in range(2):
        plain = daemon.socket("implicit")
        with context.wrap_socket(plain, session=session) as sock:
            session = sock.session
            assert sock.recv(3) == b"220"


def offered_by_the_daemon(daemon: Daemon, ciphers: str) -> str | None:
    context = context_of(ssl.TLSVersion.TLSv1_2)
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    try:
        sock = opened(daemon, "implicit", context)
    except ssl.SSLError as error:
        if "HANDSHAKE_FAILURE" not in str(error.reason):
            raise
        return None
    with sock:
        chosen = sock.cipher()
        return chosen[0] if chosen else None


@pytest.mark.parametrize(
    "ciphers",
    ["kRSA", "kRSA+AESGCM", "AES256-SHA", "ECDHE+AES+SHA1", "ECDHE+SHA256:ECDHE+SHA384", "CAMELLIA"],
)
def test_without_forward_secrecy_or_aead_there_is_no_handshake(daemon: Daemon, ciphers: str) -> None:
    assert offered_by_the_daemon(daemon, ciphers) is None


@pytest.mark.parametrize("ciphers", ["ECDHE+AESGCM", "ECDHE+CHACHA20", "DEFAULT"])
def test_with_both_there_is_one(daemon: Daemon, ciphers: str) -> None:
    chosen = offered_by_the_daemon(daemon, ciphers)
    assert chosen is not None
    assert re.fullmatch("ECDHE-.*(GCM|POLY1305).*", chosen)


@pytest.mark.parametrize("ciphers", ["AES256-SHA", "ECDHE-RSA-AES128-SHA:!aNULL"])
def test_a_list_of_the_operator_holds_instead(tmp_path: Path, ciphers: str) -> None:
    implicit = '[[listener]]\nname = "implicit"\nendpoint = "tcp:0:interface=127.0.0.1"\ntls = "implicit"\n'
    table = make_certificate(tmp_path, with_rsa=True).table
    daemon = Daemon(tmp_path / "node", f'{implicit}{table}ciphers = "{ciphers}"\n')
    try:
        daemon.start()
        assert offered_by_the_daemon(daemon, "ALL") == ciphers.partition(":")[0]
        assert offered_by_the_daemon(daemon, "ECDHE+AESGCM") is None
    finally:
        daemon.kill()


@pytest.mark.parametrize(
    ("ciphers", "problem"),
    [
        ("nonsense", 'has no cipher in its part "nonsense"'),
        ("ECDHE+AESGCM:ECDHE+AESGMC", 'has no cipher in its part "ECDHE+AESGMC"'),
        ("ECDHE+AESGCM:!ECDHE", "leaves no cipher"),
        ("HIGH:@SECLEVEL=a", "leaves no cipher, or has a word that OpenSSL does not know"),
        ("TLS_AES_128_GCM_SHA256:HIGH", "a cipher of TLS 1.3"),
        ("é", "must be an OpenSSL cipher list in ASCII"),
        (":", "has no cipher"),
    ],
)
def test_a_bad_list_is_a_fault_with_file_and_key(tmp_path: Path, ciphers: str, problem: str) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text(f'[tls]\nciphers = "{ciphers}"\n')
    with pytest.raises(ConfigError) as raised:
        load(str(config), {})
    assert f"{config}: tls.ciphers" in str(raised.value)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    "ciphers",
    ["", "DEFAULT", "HIGH:!aNULL:!EXPORT:!RC4:!LOW", "ECDHE+AESGCM ECDHE+CHACHA20", "ALL,@STRENGTH"],
)
def test_a_list_that_openssl_takes_is_taken(tmp_path: Path, ciphers: str) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text(f'[tls]\nciphers = "{ciphers}"\n')
    assert load(str(config), {}).tls.ciphers == ciphers
