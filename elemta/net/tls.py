"""The server's certificate: loaded and checked as a whole, swapped while the daemon runs."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import Certificate, CertificateOptions, PrivateCertificate, TLSVersion
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from elemta.config import TLSConfig
from elemta.config.ciphers import DEFAULT_CIPHERS
from elemta.errors import ConfigError, Fault
from elemta.smtp.session_info import TLSInfo

_PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

_VERSIONS = {
    "TLSv1.2": TLSVersion.TLSv1_2,
    "TLSv1.3": TLSVersion.TLSv1_3,
}


def load_context(config: TLSConfig) -> SSL.Context | None:
    """Read certificate chain and key and build a context from them; None when no certificate is configured.

    Raises :class:`~elemta.errors.ConfigError` when a file can't be read or used, or when the key is
    not the certificate's.
    """
    if not config.certificate:
        return None
    chain = _read(config.certificate, "tls.certificate")
    key = _read(config.private_key, "tls.private_key") if config.private_key else chain
    certificates = _PEM_CERTIFICATE.findall(chain)
    if not certificates:
        raise ConfigError([Fault(config.certificate, "tls.certificate", "holds no PEM certificate")])
    if b"ENCRYPTED" in key:
        # OpenSSL would ask for the passphrase at the terminal, and the reactor would wait with it.
        fault = Fault(config.private_key or config.certificate, "tls.private_key", "needs a passphrase")
        raise ConfigError([fault])
    try:
        return _context(certificates, key, config)
    except Exception as error:  # pyOpenSSL and cryptography raise many kinds, all meaning "unusable"
        problem = f"certificate and key can't be used together: {error or type(error).__name__}"
        raise ConfigError([Fault(config.certificate, "tls", problem)]) from error


def _context(certificates: list[bytes], key: bytes, config: TLSConfig) -> SSL.Context:
    with warnings.catch_warnings():
        # Twisted gives pyOpenSSL the kind of certificate that newer ones will not take for ever; where
        # warnings are errors that would look like a bad certificate.
        warnings.simplefilter("ignore", DeprecationWarning)
        own = PrivateCertificate.loadPEM(certificates[0] + b"\n" + key)
        options = CertificateOptions(
            privateKey=own.privateKey.original,
            certificate=own.original,
            extraCertChain=[Certificate.loadPEM(pem).original for pem in certificates[1:]],
            insecurelyLowerMinimumTo=_VERSIONS[config.minimum],
        )
        context = options.getContext()
    context.set_cipher_list((config.ciphers or DEFAULT_CIPHERS).encode("ascii"))
    context.set_alpn_select_callback(_ignore_alpn)
    return context


def _ignore_alpn(_connection: SSL.Connection, _offered: list[bytes]) -> Any:
    """Answer as a server without ALPN does: SMTP has no name in its registry (RFC 7301 §6).

    The callback of Twisted 26.4 and later ends every handshake that offers a protocol.
    """
    return SSL.NO_OVERLAPPING_PROTOCOLS


def _read(path: str, key: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError([Fault(path, key, f"can't be read: {error.strerror}")]) from error


@implementer(IOpenSSLServerConnectionCreator)
class ServerCertificate:
    """Gives every new TLS connection the context of the moment; :meth:`replace` is what a reload calls."""

    def __init__(self, context: SSL.Context) -> None:
        self._context = context

    def replace(self, context: SSL.Context) -> None:
        self._context = context

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:  # noqa: ARG002
        return SSL.Connection(self._context, None)


def describe(connection: SSL.Connection) -> TLSInfo:
    """What the handshake on ``connection`` came to."""
    name = connection.get_servername()
    return TLSInfo(
        version=connection.get_protocol_version_name(),
        cipher=connection.get_cipher_name() or "",
        server_name=name.decode("ascii", "replace") if name else None,
    )
