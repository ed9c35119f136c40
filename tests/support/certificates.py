"""Self-signed certificates, made for a test, and clients that take them."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class CertificateFiles:
    """Where certificate and key lie, and the ``[tls]`` table that names them."""

    certificate: Path
    key: Path

    @property
    def table(self) -> str:
        return f'[tls]\ncertificate = "{self.certificate}"\nprivate_key = "{self.key}"\n'


def make_certificate(
    directory: Path, *names: str, with_rsa: bool = False, days: float = 90, stem: str = ""
) -> CertificateFiles:
    """A certificate for ``names``, valid for some days; overwrites what is there.

    ``stem`` is the beginning of the names of its files.
    """
    names = names or ("mx.example.test",)
    name = names[0]
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = (
        rsa.generate_private_key(65537, 2048) if with_rsa else ec.generate_private_key(ec.SECP256R1())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=400))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = CertificateFiles(directory / f"{stem}certificate.pem", directory / f"{stem}key.pem")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


def unproved_tls() -> ssl.SSLContext:
    """TLS of a client that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
