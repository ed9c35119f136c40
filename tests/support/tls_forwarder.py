"""TLS in front of a server that has none."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.portforward import ProxyFactory, ProxyServer
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from tests.support.certificates import CertificateFiles


class _Forwarding(ProxyServer):
    def connectionMade(self) -> None:
        self.factory.open.append(self)  # type: ignore[attr-defined]
        super().connectionMade()


class _Factory(ProxyFactory):
    protocol = _Forwarding
    noisy = False

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.open: list[_Forwarding] = []


@implementer(IOpenSSLServerConnectionCreator)
class _Context:
    def __init__(self, files: CertificateFiles, authorities: CertificateFiles | None) -> None:
        self._context = SSL.Context(SSL.TLS_METHOD)
        self._context.use_certificate_chain_file(str(files.certificate))
        self._context.use_privatekey_file(str(files.key))
        if authorities is not None:
            wanted = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
            self._context.load_verify_locations(str(authorities.certificate))
            self._context.set_verify(wanted, lambda *result: bool(result[-1]))

    def serverConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        return SSL.Connection(self._context, None)


class TLSForwarder:
    """Listens with TLS on ``interface`` and forwards to a port on 127.0.0.1.

    ``authorities``: a client must show a certificate of these.
    """

    def __init__(
        self,
        files: CertificateFiles,
        to_port: int,
        *,
        port: int = 0,
        interface: str = "127.0.0.1",
        authorities: CertificateFiles | None = None,
    ) -> None:
        self._factory = _Factory("127.0.0.1", to_port)
        secured = TLSMemoryBIOFactory(_Context(files, authorities), False, self._factory)
        self._port: Any = reactor.listenTCP(port, secured, interface=interface)

    @property
    def port(self) -> int:
        return int(self._port.getHost().port)

    async def stop(self) -> None:
        await self._port.stopListening()
        for forwarding in self._factory.open:
            if forwarding.peer is not None:
                forwarding.peer.transport.loseConnection()
            if forwarding.transport.connected:
                forwarding.transport.abortConnection()
