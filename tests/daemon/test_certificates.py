"""Several certificates: chosen by the name that a client asks for, reread as a whole, their expiry shown."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.daemon.test_life import MakeDaemon, run_twistd
from tests.support.certificates import CertificateFiles, make_certificate
from tests.support.daemon import Daemon
from tests.support.wire import Wire

IMPLICIT = '[[listener]]\nname = "implicit"\nendpoint = "tcp:0:interface=127.0.0.1"\ntls = "implicit"\n'


def more(files: CertificateFiles) -> str:
    return files.table.replace("[tls]", "[[certificate]]")


def context_of(*, ciphers: str = "", old: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if old:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if ciphers:
        context.set_ciphers(ciphers)
    return context


def served(
    daemon: Daemon, name: str | None, listener: str = "implicit", context: ssl.SSLContext | None = None
) -> x509.Certificate:
    """The certificate that a client gets that asks for this name."""
    sock = daemon.socket(listener)
    if listener == "mx":
        wire = Wire(sock)
        wire.reply()
        wire.command("EHLO client.test")
        assert wire.command("STARTTLS").startswith("220")
    with (context or context_of()).wrap_socket(sock, server_hostname=name) as tls:
        found = tls.getpeercert(binary_form=True)
        assert found is not None
        return x509.load_der_x509_certificate(found)


def name_of(certificate: x509.Certificate) -> str:
    return str(next(iter(certificate.subject)).value)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("certificates")
    tables = make_certificate(directory, "mx.example.test", with_rsa=True, stem="default-").table
    for stem, names, with_rsa in (
        ("other-", ("other.example.test", "Second.Example.Test"), False),
        ("wild-", ("*.wild.test",), True),
        ("exact-", ("exact.wild.test",), True),
        ("both-rsa-", ("both.test",), True),
        ("both-ecdsa-", ("both.test",), False),
        ("default-ecdsa-", ("mx.example.test",), False),
    ):
        tables += more(make_certificate(directory, *names, with_rsa=with_rsa, stem=stem))
    started = Daemon(directory / "node", IMPLICIT + tables)
    try:
        yield started.start()
    finally:
        started.kill()


@pytest.mark.parametrize("listener", ["implicit", "mx"])
@pytest.mark.parametrize(
    ("asked", "subject"),
    [
        ("mx.example.test", "mx.example.test"),
        (None, "mx.example.test"),
        ("unknown.test", "mx.example.test"),
        ("other.example.test", "other.example.test"),
        ("OTHER.example.TEST", "other.example.test"),
        ("second.example.test", "other.example.test"),
        ("a.wild.test", "*.wild.test"),
        ("exact.wild.test", "exact.wild.test"),
        ("a.b.wild.test", "mx.example.test"),
        ("wild.test", "mx.example.test"),
        ("xn--bcher-kva.wild.test", "*.wild.test"),
        ("n" * 63 + ".wild.test", "*.wild.test"),
    ],
)
def test_the_certificate_is_that_of_the_name_that_is_asked_for(
    daemon: Daemon, listener: str, asked: str | None, subject: str
) -> None:
    assert name_of(served(daemon, asked, listener)) == subject


@pytest.mark.parametrize("name", ["both.test", "mx.example.test", None])
@pytest.mark.parametrize("kind", ["RSA", "ECDSA"])
def test_a_name_with_an_rsa_and_an_ecdsa_certificate_serves_clients_of_either(
    daemon: Daemon, name: str | None, kind: str
) -> None:
    context = context_of(ciphers=f"ECDHE+AESGCM+a{kind}", old=True)
    found = served(daemon, name, context=context)
    assert ("RSA" in type(found.public_key()).__name__) == (kind == "RSA")
    assert name_of(found) == (name or "mx.example.test")


def test_status_and_metrics_have_the_expiry_of_each(daemon: Daemon) -> None:
    status = json.loads(daemon.ctl("--json", "status").stdout)
    certificates = status["certificates"]
    assert len(certificates) == 7
    assert certificates[0]["names"] == ["mx.example.test"]
    assert certificates[1]["names"] == ["other.example.test", "second.example.test"]
    assert {each["kind"] for each in certificates} == {"RSA", "ECDSA"}
    assert {each["days_left"] for each in certificates} <= {89, 90}
    for each in certificates:
        pattern = f'elemta_certificate_not_after_seconds{{file="{each["file"]}"'
        assert daemon.metric(pattern) == each["not_after"]
    shown = daemon.ctl("status").stdout
    assert "DAYS LEFT" in shown
    assert "*.wild.test" in shown


def test_a_failed_handshake_is_one_record_with_what_the_client_offered(daemon: Daemon) -> None:
    context = context_of(ciphers="ECDHE+SHA256:ECDHE+SHA384:@SECLEVEL=0", old=True)
    context.set_alpn_protocols(["smtp", "h2\n"])
    with pytest.raises(ssl.SSLError):
        served(daemon, "other.example.test", context=context)
    record = daemon.wait_for("tls.handshake_failed", server_name="other.example.test")
    assert record["level"] == "info"
    assert record["reason"] == "no shared cipher"
    assert record["versions"] == ["TLSv1.2"]
    assert record["alpn"] == ["smtp", "h2\\n"]
    assert record["client_ip"] == "127.0.0.1"
    assert record["listener"] == "implicit"
    assert (
        len([r for r in daemon.records("tls.handshake_failed") if r["session_id"] == record["session_id"]])
        == 1
    )


def test_plain_text_and_silence_in_place_of_a_handshake_are_records_too(daemon: Daemon) -> None:
    with daemon.socket("implicit") as sock:
        sock.sendall(b"EHLO client.test\r\n")
        sock.settimeout(30)
        while sock.recv(100):
            pass
        own = sock.getsockname()[1]
    assert daemon.wait_for("tls.handshake_failed", client_port=own)["versions"] == []
    with socket.create_connection(("127.0.0.1", daemon.port_of("implicit"))) as sock:
        own = sock.getsockname()[1]
    record = daemon.wait_for("tls.handshake_failed", client_port=own)
    assert record["reason"] == "the client closed the connection, without a ClientHello"


def test_the_page_has_the_reasons_that_clients_without_a_usable_protocol_have(daemon: Daemon) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tls.md").read_text(encoding="utf-8")
    # A ClientHello whose newest version is TLS 1.1, as OpenSSL itself sends none any more.
    old = client_hello_of_tls_1_1()
    for sent, reason in [
        (b"EHLO client.test\r\n", "wrong version number"),
        (b"GET / HTTP/1.1\r\n\r\n", "http request"),
        (old, "unsupported protocol"),
    ]:
        with daemon.socket("implicit") as sock:
            own = sock.getsockname()[1]
            sock.sendall(sent)
            sock.settimeout(30)
            while sock.recv(100):
                pass
        record = daemon.wait_for("tls.handshake_failed", client_port=own)
        assert reason in record["reason"]
        assert f"`{reason}`" in page


def client_hello_of_tls_1_1() -> bytes:
    suites = b"\xc0\x13\xc0\x14\x00\x2f"
    body = b"\x03\x02" + bytes(32) + b"\x00" + struct.pack("!H", len(suites)) + suites + b"\x01\x00"
    return (
        b"\x16\x03\x01" + struct.pack("!H", len(body) + 4) + b"\x01\x00" + struct.pack("!H", len(body)) + body
    )


def test_a_client_that_does_not_trust_the_certificate_is_a_record_with_its_alert(daemon: Daemon) -> None:
    for old in (True, False):
        context = ssl.create_default_context()
        if old:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        sock = daemon.socket("implicit")
        own = sock.getsockname()[1]
        with pytest.raises(ssl.SSLCertVerificationError), sock:
            context.wrap_socket(sock, server_hostname="both.test")
        record = daemon.wait_for("tls.handshake_failed", client_port=own)
        assert "alert" in record["reason"]
        assert "ca" in record["reason"].lower()


def test_a_reload_replaces_all_certificates_or_none(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    first = make_certificate(tmp_path, "mx.example.test", stem="a-")
    second = make_certificate(tmp_path, "other.test", stem="b-")
    daemon = make_daemon(IMPLICIT + first.table + more(second)).start()
    before = {name: served(daemon, name) for name in ("mx.example.test", "other.test")}
    make_certificate(tmp_path, "mx.example.test", stem="a-", days=200)
    second.key.write_text("nonsense")
    answer = daemon.ctl("reload", check=False)
    assert answer.returncode == 78
    assert str(second.key) in answer.stderr + answer.stdout
    assert "certificate[1].private_key" in answer.stderr + answer.stdout
    assert {name: served(daemon, name) for name in before} == before
    make_certificate(tmp_path, "other.test", "third.test", stem="b-")
    daemon.ctl("reload")
    after = {name: served(daemon, name) for name in before}
    assert all(after[name] != before[name] for name in before)
    assert served(daemon, "third.test") == after["other.test"]
    status = json.loads(daemon.ctl("--json", "status").stdout)
    assert [each["days_left"] for each in status["certificates"]] in ([199, 89], [200, 90])


@pytest.mark.parametrize("command", ["--check", "config check"])
def test_every_fault_of_the_files_is_named_in_one_round(
    make_daemon: MakeDaemon, tmp_path: Path, command: str
) -> None:
    ours = make_certificate(tmp_path, "mx.example.test", stem="a-")
    other = make_certificate(tmp_path, "b.test", stem="b-")
    twice = make_certificate(tmp_path, "c.test", "MX.example.test", stem="c-")
    tables = ours.table + more(CertificateFiles(other.certificate, ours.key)) + more(twice)
    tables += more(CertificateFiles(tmp_path / "absent.pem", ours.key))
    daemon = make_daemon(tables)
    if command == "--check":
        done = run_twistd("--config", str(daemon.config), "--check", cwd=daemon.directory)
    else:
        done = daemon.ctl("config", "check", check=False)
    assert done.returncode == 78
    for words in (
        f"{other.certificate}: certificate[1]: certificate and key can't be used together",
        f'{twice.certificate}: certificate[2].certificate: has the name "mx.example.test"',
        f"{tmp_path}/absent.pem: certificate[3].certificate: can't be read",
    ):
        assert words in done.stderr, done.stderr


@pytest.mark.parametrize("command", ["--check", "config check"])
@pytest.mark.parametrize(
    ("days", "words"),
    [(-3, "has expired on"), (0.5, "in 0 days"), (1.5, "in 1 day"), (29.5, "in 29 days"), (31, None)],
)
def test_a_certificate_that_expires_soon_is_a_caution(
    make_daemon: MakeDaemon, tmp_path: Path, days: float, words: str | None, command: str
) -> None:
    files = make_certificate(tmp_path, days=days)
    daemon = make_daemon(files.table)
    if command == "--check":
        done = run_twistd("--config", str(daemon.config), "--check", cwd=daemon.directory)
    else:
        done = daemon.ctl("config", "check")
    assert done.returncode == 0
    lines = [line for line in done.stdout.splitlines() if str(files.certificate) in line]
    if words is None:
        assert lines == []
    else:
        assert words in lines[0]
        assert "tls.certificate" in lines[0]


def test_more_certificates_have_no_effect_without_a_default(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    done = make_daemon(more(make_certificate(tmp_path))).ctl("config", "check")
    assert "certificate[1].certificate: has no effect: there is no TLS, as [tls] has no" in done.stdout
