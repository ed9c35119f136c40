"""TLS to Valkey: always verified, by the chain and by the name."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from elemta.ip import is_ip_address
from elemta.openssl import has_certificate_of, openssl_words
from elemta.valkey.tls import TLS, ValkeyTLSRefused


@implementer(IOpenSSLClientConnectionCreator)
class ValkeyHandshake:
    """One handshake, and whether what it came to is good enough."""

    def __init__(self, context: SSL.Context, name: str) -> None:
        self._context = context
        self._name = name

    @classmethod
    def of(cls, tls: TLS, host: str) -> ValkeyHandshake:
        """See :meth:`TLS.handshake`."""
        try:
            states = [Path(name).stat() for name in (tls.ca, tls.certificate, tls.private_key) if name]
            context = _context(tls, tuple((each.st_mtime_ns, each.st_ino) for each in states))
        except OSError as error:
            raise ValkeyTLSRefused(str(error)) from error
        except SSL.Error as error:
            raise ValkeyTLSRefused(f"a file for TLS can't be used: {openssl_words(error)}") from error
        return cls(context, tls.server_name or host)

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:  # noqa: ARG002
        connection = SSL.Connection(self._context, None)
        # RFC 6066 §3: an address is no server name
        if not is_ip_address(self._name):
            connection.set_tlsext_host_name(self._name.encode("ascii"))
        return connection

    def check(self, connection: SSL.Connection) -> None:
        """ValkeyTLSRefused where the certificate, whose chain holds, is not one of the server's name."""
        if not has_certificate_of(connection, self._name):
            raise ValkeyTLSRefused(f"its certificate is not one of {self._name}")


@lru_cache(maxsize=16)
def _context(tls: TLS, _states: tuple[tuple[int, int], ...]) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    # RFC 8996 §2
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION)
    if tls.ca:
        context.load_verify_locations(tls.ca)
    else:
        context.set_default_verify_paths()
    if tls.certificate:
        if b"ENCRYPTED" in Path(tls.private_key).read_bytes():
            # OpenSSL would ask for the passphrase at the terminal, and the reactor would wait with it.
            raise ValkeyTLSRefused(f"{tls.private_key} needs a passphrase")
        context.use_certificate_chain_file(tls.certificate)
        context.use_privatekey_file(tls.private_key)
        context.check_privatekey()
    context.set_verify(SSL.VERIFY_PEER, lambda _connection, _certificate, _error, _depth, good: bool(good))
    return context
