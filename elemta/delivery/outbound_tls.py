"""TLS towards next hops: opportunistic, without a proof of the host's identity, or verified by name."""

from __future__ import annotations

from collections.abc import MutableMapping
from weakref import WeakKeyDictionary

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from elemta.delivery.connection_terms import load_authorities
from elemta.domains import canonical_domain
from elemta.ip import is_ip_address
from elemta.openssl import has_certificate_of, openssl_words
from elemta.smtp.session_info import TLSInfo

# What OpenSSL says about a chain that does not hold, by its number (X509_V_ERR_...).
_CHAIN = {
    9: "it is not valid yet",
    10: "it has expired",
    18: "it is self-signed",
    19: "its chain ends in a certificate that is not trusted here",
    20: "its issuer is not known here",
    21: "it comes without the certificate of its issuer",
    23: "it was revoked",
}


class OutboundTLSRefused(Exception):
    """The handshake is done, and its certificate is not good enough. The text says why."""


class OutboundTLS:
    """Makes the handshakes of all connections.

    ``authorities`` is a PEM file of the authorities to trust; empty: those that this system trusts.
    """

    def __init__(self, authorities: str = "") -> None:
        self._authorities = authorities
        self._under_way: WeakKeyDictionary[SSL.Connection, OutboundHandshake] = WeakKeyDictionary()
        self._contexts: dict[tuple[bool, str], SSL.Context] = {}

    def handshake(self, host: str, *, verified: bool, authorities: str = "") -> OutboundHandshake:
        """A handshake with ``host``, a name or an address; ``verified``: only with a certificate of it.

        ``authorities`` are certificates in PEM to trust in place of the others.
        """
        key = (verified, authorities if verified else "")
        if key not in self._contexts:
            self._contexts[key] = self._context(*key)
        return OutboundHandshake(self._contexts[key], self._under_way, host, verified=verified)

    def forget(self) -> None:
        """Read what is trusted anew for the next handshake."""
        self._contexts.clear()

    def _context(self, verified: bool, authorities: str) -> SSL.Context:
        context = SSL.Context(SSL.TLS_METHOD)
        # RFC 8996 §2: nothing older than TLS 1.2, also where the other choice is no TLS at all
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(SSL.OP_NO_COMPRESSION)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        if not verified:
            context.set_verify(SSL.VERIFY_NONE)
            return context
        if authorities:
            load_authorities(context.get_cert_store(), authorities)
        elif self._authorities:
            context.load_verify_locations(self._authorities)
        else:
            context.set_default_verify_paths()
        context.set_verify(SSL.VERIFY_PEER, self._note_chain)
        return context

    def _note_chain(self, connection: SSL.Connection, _: object, error: int, __: int, good: int) -> bool:
        handshake = self._under_way.get(connection)
        if not good and handshake is not None:
            handshake.chain_error = error
        return bool(good)


@implementer(IOpenSSLClientConnectionCreator)
class OutboundHandshake:
    """One handshake: what it is made with, and whether what it came to is good enough."""

    def __init__(
        self,
        context: SSL.Context,
        under_way: MutableMapping[SSL.Connection, OutboundHandshake],
        host: str,
        *,
        verified: bool,
    ) -> None:
        self._context = context
        self._under_way = under_way
        self._verified = verified
        self._host = canonical_domain(host)
        self._is_address = is_ip_address(self._host)
        self.chain_error = 0

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:  # noqa: ARG002
        connection = SSL.Connection(self._context, None)
        self._under_way[connection] = self
        name = self._host.encode("ascii", "ignore")
        # RFC 6066 §3: an address is no server name
        if name and not self._is_address:
            connection.set_tlsext_host_name(name)
        return connection

    def check(self, connection: SSL.Connection) -> TLSInfo:
        """What was negotiated; :class:`OutboundTLSRefused` where the certificate is not the host's and has
        to be."""
        if self._verified and not has_certificate_of(connection, self._host):
            raise OutboundTLSRefused(f"its certificate is not one of {self._host}")
        return TLSInfo(
            version=connection.get_protocol_version_name(),
            cipher=connection.get_cipher_name() or "",
            server_name=None if self._is_address else self._host,
        )

    def reason(self, failure: Failure) -> str:
        """Why the handshake failed, in words."""
        if self.chain_error:
            why = _CHAIN.get(self.chain_error, f"OpenSSL calls it error {self.chain_error}")
            return f"its certificate can't be trusted: {why}"
        error = failure.value
        return openssl_words(error) or str(failure.getErrorMessage()) or type(error).__name__
