"""A record in the log for each TLS handshake that failed, at a bounded rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.bounded_map import BoundedMap
from elemta.limits.identity import ip_identity
from elemta.net.client_hello import read_client_hello
from elemta.smtp.session_info import SessionInfo

_log = Logger()

_CLIENTS = 1024


@dataclass(slots=True)
class _Allowance:
    """So many records at once, and so many a second after that."""

    most: float
    per_second: float
    left: float
    since: float

    def has_one(self, now: float) -> bool:
        self.left = min(self.most, self.left + (now - self.since) * self.per_second)
        self.since = now
        return self.left >= 1


class HandshakeLog:
    """Logs failed handshakes: up to 10 of one client at once and then 10 a minute, and 5 a second of all.

    A client is an IPv4 address or an IPv6 /64. A record that follows others that were left out says how many
    these were.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._all = _Allowance(100.0, 5.0, 100.0, seconds())
        self._clients: BoundedMap[str, _Allowance] = BoundedMap(_CLIENTS)
        self._left_out = 0

    def failed(self, session: SessionInfo, heard: bytes, why: Failure) -> None:
        """Log that the handshake of this session failed; ``heard`` is what its client sent first."""
        if not self._may_log(ip_identity(session.client_ip)):
            self._left_out += 1
            return
        hello = read_client_hello(heard)
        left_out, self._left_out = self._left_out, 0
        _log.info(
            "a TLS handshake failed",
            event="tls.handshake_failed",
            session_id=session.id,
            client_ip=str(session.client_ip),
            client_port=session.client_port,
            listener=session.listener,
            server_name=hello.server_name,
            versions=list(hello.versions),
            alpn=list(hello.alpn),
            reason=reason_of(why) if hello.found or heard else f"{reason_of(why)}, without a ClientHello",
            **({"left_out": left_out} if left_out else {}),
        )

    def _may_log(self, client: str) -> bool:
        now = self._seconds()
        own = self._clients.get(client) or _Allowance(10.0, 1 / 6, 10.0, now)
        self._clients.keep(client, own)
        if not (own.has_one(now) and self._all.has_one(now)):
            return False
        own.left -= 1
        self._all.left -= 1
        return True


def reason_of(failure: Failure) -> str:
    """Why a handshake failed: OpenSSL's own words, or the side that ended it."""
    from elemta.openssl import openssl_words  # noqa: PLC0415 - OpenSSL is loaded: there was a handshake

    error = failure.value
    words = openssl_words(error)
    if words:
        return words
    if isinstance(error, ConnectionAborted):
        return "this server ended the connection: no handshake in time, or it stops"
    if isinstance(error, (ConnectionDone, ConnectionLost)):
        return "the client closed the connection"
    return failure.getErrorMessage() or type(error).__name__
