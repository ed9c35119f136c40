"""What a TLS client offers, read from the octets of its ClientHello (RFC 8446 §4.1.2).

OpenSSL does not say what a client offered whose handshake failed. This reader serves the log only: it takes
any octets, never raises, and gives as much as could be read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LONGEST_HELLO = 16 * 1024 + 5 * 8
"""Octets of a connection that are looked at: OpenSSL takes no longer ClientHello."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_ALPN = 16
_SUPPORTED_VERSIONS = 43
_VERSIONS = {
    0x0002: "SSLv2",
    0x0300: "SSLv3",
    0x0301: "TLSv1.0",
    0x0302: "TLSv1.1",
    0x0303: "TLSv1.2",
    0x0304: "TLSv1.3",
}
_MOST_VALUES = 12
_LONGEST_VALUE = 64


@dataclass(frozen=True, slots=True)
class ClientHello:
    """The server name, the versions and the protocols that a client offers; client octets are escaped.

    ``found`` is False where the octets are no ClientHello.
    """

    found: bool = False
    server_name: str = ""
    versions: tuple[str, ...] = ()
    alpn: tuple[str, ...] = ()


class _CutShort(Exception):
    """The octets end before what they announce."""


class _Reader:
    """Takes numbers and vectors from the beginning of octets."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._octets)

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._octets):
            raise _CutShort
        found, self._at = self._octets[self._at : end], end
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int, *, whole: bool = True) -> _Reader:
        """A vector behind its length of ``size`` octets (RFC 8446 §3.4); else what of it is there."""
        length = self.number(size)
        return _Reader(self.take(length if whole else min(length, len(self._octets) - self._at)))

    def rest(self) -> bytes:
        return self.take(len(self._octets) - self._at)


def read_client_hello(octets: bytes) -> ClientHello:
    """What the beginning of a connection offers; what of it is there, where the client sent a part only."""
    handshake = _Reader(_handshake_octets(octets))
    hello = ClientHello()
    try:
        if handshake.number(1) != _CLIENT_HELLO:
            return hello
        handshake.number(3)
        hello = replace(hello, found=True, versions=(_version(handshake.number(2)),))
        # The random, the session id, the cipher suites, the methods of compression
        handshake.take(32)
        for size in (1, 2, 1):
            handshake.vector(size)
        extensions = handshake.vector(2, whole=False)
        while extensions:
            hello = _with_extension(hello, extensions.number(2), extensions.vector(2))
    except _CutShort:
        pass
    return hello


def _with_extension(hello: ClientHello, kind: int, content: _Reader) -> ClientHello:
    if kind == _SERVER_NAME:
        return replace(hello, server_name=_server_name(content))
    if kind == _ALPN:
        return replace(hello, alpn=_alpn(content))
    if kind == _SUPPORTED_VERSIONS:
        return replace(hello, versions=_versions(content))
    return hello


def _handshake_octets(octets: bytes) -> bytes:
    """The content of the first handshake records: a ClientHello may be cut into several (RFC 8446 §5.1)."""
    records, content = _Reader(octets), b""
    try:
        while records and records.number(1) == _HANDSHAKE:
            records.number(2)
            content += records.vector(2, whole=False).rest()
    except _CutShort:
        pass
    return content


def _server_name(content: _Reader) -> str:
    names = content.vector(2)
    kind, name = names.number(1), names.vector(2).rest()
    return _escaped(name, 255) if kind == 0 else ""


def _alpn(content: _Reader) -> tuple[str, ...]:
    protocols = content.vector(2)
    found: list[str] = []
    while protocols and len(found) < _MOST_VALUES:
        found.append(_escaped(protocols.vector(1).rest(), _LONGEST_VALUE))
    return tuple(found)


def _versions(content: _Reader) -> tuple[str, ...]:
    versions = content.vector(1)
    found: list[str] = []
    while versions and len(found) < _MOST_VALUES:
        number = versions.number(2)
        # RFC 8701: a value that stands for nothing
        if number & 0x0F0F != 0x0A0A:
            found.append(_version(number))
    return tuple(found)


def _version(number: int) -> str:
    return _VERSIONS.get(number, f"0x{number:04x}")


def _escaped(octets: bytes, longest: int) -> str:
    cut = octets[:longest].decode("latin-1").encode("unicode_escape").decode("ascii")
    return cut if len(octets) <= longest else f"{cut}..."
