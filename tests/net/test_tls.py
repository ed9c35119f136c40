"""Certificates as an operator gives them, good and bad."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL
from twisted.protocols.tls import TLSMemoryBIOProtocol

from elemta.config import TLSConfig
from elemta.errors import ConfigError
from elemta.net.tls import ServerCertificate, load_context
from tests.support.certificates import CertificateFiles, make_certificate


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return make_certificate(tmp_path)


def fault_of(certificate: Path, key: Path | None) -> str:
    with pytest.raises(ConfigError) as raised:
        load_context(TLSConfig(str(certificate), str(key) if key else ""))
    return str(raised.value)


def test_without_a_certificate_there_is_no_tls() -> None:
    assert load_context(TLSConfig()) is None


def test_a_certificate_is_good_also_where_warnings_are_errors(files: CertificateFiles) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_context(TLSConfig(str(files.certificate), str(files.key))) is not None


def test_the_key_may_be_in_the_file_of_the_certificate(files: CertificateFiles) -> None:
    files.certificate.write_bytes(files.certificate.read_bytes() + files.key.read_bytes())
    assert load_context(TLSConfig(str(files.certificate))) is not None


def test_a_chain_of_several_certificates_is_taken(files: CertificateFiles, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_certificate(tmp_path / "other")
    files.certificate.write_bytes(files.certificate.read_bytes() + other.certificate.read_bytes())
    assert load_context(TLSConfig(str(files.certificate), str(files.key))) is not None


def test_a_key_of_another_certificate_is_a_fault(files: CertificateFiles, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_certificate(tmp_path / "other")
    assert "can't be used together" in fault_of(files.certificate, other.key)


def test_a_key_with_a_passphrase_is_a_fault_and_nobody_is_asked_for_it(files: CertificateFiles) -> None:
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert "needs a passphrase" in fault_of(files.certificate, files.key)


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"]
)
def test_what_is_no_certificate_is_a_fault(files: CertificateFiles, content: bytes) -> None:
    files.certificate.write_bytes(content)
    assert str(files.certificate) in fault_of(files.certificate, files.key)


def test_a_file_that_can_not_be_read_is_a_fault(files: CertificateFiles) -> None:
    files.key.unlink()
    assert "can't be read" in fault_of(files.certificate, files.key)


def exchange(one: SSL.Connection, other: SSL.Connection) -> bool:
    """Hand over what ``one`` has to say; whether that was anything."""
    try:
        return other.bio_write(one.bio_read(1 << 16)) > 0
    except SSL.WantReadError:
        return False


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_what_comes_behind_a_close_notify_takes_no_memory(files: CertificateFiles, version: int) -> None:
    contexts = load_context(TLSConfig(str(files.certificate), str(files.key)))
    assert contexts is not None
    closed: list[None] = []
    handshake = ServerCertificate(contexts).handshake(lambda: closed.append(None))
    server = handshake.serverConnectionForTLS(TLSMemoryBIOProtocol(None, None))
    server.set_accept_state()
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(version)
    client = SSL.Connection(context, None)
    client.set_connect_state()
    moved = True
    while moved:
        for side in (client, server):
            with contextlib.suppress(SSL.WantReadError):
                side.do_handshake()
        moved = exchange(client, server) | exchange(server, client)
    client.send(b"QUIT\r\n")
    client.shutdown()
    exchange(client, server)
    assert server.recv(100) == b"QUIT\r\n"
    with pytest.raises(SSL.WantReadError):
        server.recv(100)
    assert len(closed) == 1

    before = resident_octets()
    for _ in range(512):
        assert server.bio_write(b"x" * 65536) == 65536
        with pytest.raises(SSL.WantReadError):
            server.recv(100)
    assert resident_octets() - before < 8 << 20, "of 32 MiB"

    server.send(b"221 bye\r\n")
    exchange(server, client)
    assert client.recv(100) == b"221 bye\r\n"
    assert server.shutdown(), "the client's close_notify is known"
    assert len(closed) == 1


def resident_octets() -> int:
    """The memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
