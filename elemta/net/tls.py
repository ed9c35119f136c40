"""TLS of the server: contexts of all certificates, chosen by name, swapped while the daemon runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from elemta.certificates import Certificate, read_certificates
from elemta.config import CertificateConfig, TLSConfig
from elemta.config.ciphers import DEFAULT_CIPHERS
from elemta.errors import ConfigError, Fault
from elemta.net.client_hello import LONGEST_HELLO
from elemta.smtp.session_info import TLSInfo

_VERSIONS = {
    "TLSv1.2": TLSVersion.TLSv1_2,
    "TLSv1.3": TLSVersion.TLSv1_3,
}


class TLSContexts:
    """One generation of contexts, which a reload replaces as a whole.

    A client that asks for a name gets the certificates that have it, else those that have a wildcard for it,
    else the default. Where a name has certificates of two kinds, OpenSSL chooses by what the client offers.
    """

    def __init__(self, certificates: Sequence[Certificate], config: TLSConfig) -> None:
        self.certificates = tuple(certificates)
        by_name: dict[str, tuple[Certificate, ...]] = {}
        for certificate in certificates:
            for name in certificate.names:
                by_name[name] = (*by_name.get(name, ()), certificate)
        made: dict[tuple[str, ...], SSL.Context] = {}
        self._by_name = {name: _context_once(made, group, config) for name, group in by_name.items()}
        self.default = _context_once(made, _of_default(certificates), config)
        if len(made) > 1:
            self.default.set_tlsext_servername_callback(self._choose)

    def find(self, name: str) -> SSL.Context:
        """The context for a client that asks for this name; "" where it asks for none."""
        name = name.lower().removesuffix(".")
        found = self._by_name.get(name)
        if found is None:
            # RFC 6125 §6.4.3: a wildcard stands for one label.
            _, _, rest = name.partition(".")
            found = self._by_name.get(f"*.{rest}", self.default)
        return found

    def _choose(self, connection: SSL.Connection) -> None:
        """Called by OpenSSL within a handshake; it must not raise."""
        asked = connection.get_servername()
        chosen = self.find(asked.decode("ascii", "replace")) if asked else self.default
        if chosen is not self.default:
            connection.set_context(chosen)


def load_context(config: TLSConfig, more: Sequence[CertificateConfig] = ()) -> TLSContexts | None:
    """Read all certificates and build contexts from them; None when no certificate is configured.

    Raises :class:`~elemta.errors.ConfigError` with every fault of the files.
    """
    certificates = read_certificates(config, more)
    if not certificates:
        return None
    try:
        return TLSContexts(certificates, config)
    except Exception as error:  # pyOpenSSL raises many kinds, all meaning "unusable"
        problem = f"certificate and key can't be used together: {error or type(error).__name__}"
        raise ConfigError([Fault(config.certificate, "tls", problem)]) from error


def _of_default(certificates: Sequence[Certificate]) -> tuple[Certificate, ...]:
    """The certificate of [tls], and those of other kinds that have all its names."""
    first, *more = certificates
    chosen = {first.kind: first}
    for certificate in more:
        if first.names and set(first.names) <= set(certificate.names):
            chosen.setdefault(certificate.kind, certificate)
    return tuple(chosen.values())


def _context_once(
    made: dict[tuple[str, ...], SSL.Context], group: tuple[Certificate, ...], config: TLSConfig
) -> SSL.Context:
    keys = tuple(certificate.key for certificate in group)
    if keys not in made:
        made[keys] = _context(group, config)
    return made[keys]


def _context(group: tuple[Certificate, ...], config: TLSConfig) -> SSL.Context:
    first, *more = group
    with warnings.catch_warnings():
        # Twisted gives pyOpenSSL the kind of certificate that newer ones will not take for ever; where
        # warnings are errors that would look like a bad certificate.
        warnings.simplefilter("ignore", DeprecationWarning)
        options = CertificateOptions(
            privateKey=_private_key(first),
            certificate=_x509(first.chain[0]),
            extraCertChain=[] if more else [_x509(pem) for pem in first.chain[1:]],
            insecurelyLowerMinimumTo=_VERSIONS[config.minimum],
        )
        context = options.getContext()
        if more:
            for certificate in group:
                _add(context, certificate)
    context.set_cipher_list((config.ciphers or DEFAULT_CIPHERS).encode("ascii"))
    context.set_alpn_select_callback(_ignore_alpn)
    return context


def _add(context: SSL.Context, certificate: Certificate) -> None:
    """Put a certificate with a chain of its own beside those of other kinds.

    pyOpenSSL can do that only from a file, and the operator's may have changed since it was read.
    """
    with os.fdopen(os.memfd_create("certificate"), "wb") as file:
        file.write(b"\n".join(certificate.chain) + b"\n")
        file.flush()
        context.use_certificate_chain_file(f"/proc/self/fd/{file.fileno()}")
    context.use_privatekey(_private_key(certificate))
    context.check_privatekey()


def _x509(pem: bytes) -> crypto.X509:
    return crypto.load_certificate(crypto.FILETYPE_PEM, pem)


def _private_key(certificate: Certificate) -> crypto.PKey:
    return crypto.load_privatekey(crypto.FILETYPE_PEM, certificate.private_key)


def _ignore_alpn(_connection: SSL.Connection, _offered: list[bytes]) -> Any:
    """Answer as a server without ALPN does: SMTP has no name in its registry (RFC 7301 §6).

    The callback of Twisted 26.4 and later ends every handshake that offers a protocol.
    """
    return SSL.NO_OVERLAPPING_PROTOCOLS


class ServerCertificate:
    """Gives every new TLS connection the contexts of the moment; :meth:`replace` is what a reload calls."""

    def __init__(self, contexts: TLSContexts) -> None:
        self._contexts = contexts

    def replace(self, contexts: TLSContexts) -> None:
        self._contexts = contexts

    def handshake(self, client_closed: Callable[[], None] = lambda: None) -> ServerHandshake:
        """One handshake, for ``startTLS``; ``client_closed`` is called at the client's close_notify."""
        return ServerHandshake(self._contexts.default, client_closed)


@implementer(IOpenSSLServerConnectionCreator)
class ServerHandshake:
    """One handshake, and the beginning of what its client sent."""

    def __init__(self, context: SSL.Context, client_closed: Callable[[], None]) -> None:
        self._context = context
        self._client_closed = client_closed
        self._connection: _ServerConnection | None = None

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:  # noqa: ARG002
        self._connection = _ServerConnection(self._context, self._client_closed)
        return self._connection

    @property
    def heard(self) -> bytes:
        """What the client sent first, bounded."""
        return bytes(self._connection.heard or b"") if self._connection is not None else b""

    def completed(self) -> None:
        """What the client sent is of no more use."""
        if self._connection is not None:
            self._connection.heard = None


class _ServerConnection(SSL.Connection):
    """Keeps the beginning of what the client sends, and lets our half stay open when the client closes its.

    Twisted would answer a close_notify with its own at once, and the answer to the client's last command
    would be lost. It closes one direction only (RFC 8446 §6.1).
    """

    def __init__(self, context: SSL.Context, client_closed: Callable[[], None]) -> None:
        self.heard: bytearray | None = bytearray()
        self._client_closed: Callable[[], None] | None = client_closed
        super().__init__(context, None)

    def bio_write(self, buf: bytes | bytearray | memoryview) -> int:
        if self._client_closed is None:
            # RFC 8446 §6.1: what comes behind a close_notify is ignored. OpenSSL would keep all of it.
            return len(buf)
        heard = self.heard
        if heard is not None and len(heard) < LONGEST_HELLO:
            heard += buf[: LONGEST_HELLO - len(heard)]
        return super().bio_write(buf)

    def recv(self, bufsiz: int, flags: int | None = None) -> bytes:
        try:
            return super().recv(bufsiz, flags)
        except SSL.ZeroReturnError:
            if self.get_shutdown() & SSL.SENT_SHUTDOWN:
                # We have closed our half, too: Twisted ends the connection.
                raise
            client_closed, self._client_closed = self._client_closed, None
            if client_closed is not None:
                client_closed()
            # There is no more to read; what is written goes on.
            raise SSL.WantReadError from None


def describe(connection: SSL.Connection) -> TLSInfo:
    """What the handshake on ``connection`` came to."""
    name = connection.get_servername()
    return TLSInfo(
        version=connection.get_protocol_version_name(),
        cipher=connection.get_cipher_name() or "",
        server_name=name.decode("ascii", "replace") if name else None,
    )
