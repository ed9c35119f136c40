"""The header of the PROXY protocol, versions 1 and 2, read as it comes (HAProxy: proxy-protocol.txt)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from elemta.errors import ProxyHeaderError
from elemta.ip import IPAddress, unmapped

_V1_START = b"PROXY "
# The specification's §2.1: the longest header of version 1, CRLF included
_V1_LIMIT = 107
# The specification's §2.2
_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V2_FIXED = 16
# Addresses take 216 octets at most; the rest is space for a certificate's names and whatever comes
_V2_LIMIT = 4096
_V2_LOCAL, _V2_PROXY = 0x20, 0x21
_V2_TCP4, _V2_TCP6 = 0x11, 0x21
_V2_FAMILIES = frozenset({0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32})
_V2_ADDRESS_SIZES = {0: 0, 1: 12, 2: 36, 3: 216}
_PP2_TYPE_AUTHORITY = 0x02
_PP2_TYPE_SSL = 0x20
_PP2_CLIENT_SSL = 0x01

_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")


@dataclass(frozen=True, slots=True)
class ProxyResult:
    """What a header said.

    ``local``: the proxy speaks for itself (a health check), and there is no ``source``. ``source`` is the
    client's address and port, IPv4-mapped addresses as IPv4; None as well where the proxy does not know
    it (UNKNOWN, a Unix socket). ``destination`` is where the client connected, known where ``source`` is.
    ``tls_server_name`` is the server name that the client asked the proxy for,
    ``tls`` whether the client's connection to the proxy had TLS. ``rest`` are octets behind the header.
    """

    local: bool
    source: tuple[IPAddress, int] | None
    tls_server_name: str | None
    tls: bool
    rest: bytes
    destination: tuple[IPAddress, int] | None = None


class ProxyHeader:
    """Takes octets until the header is whole; keeps no more than the header can have."""

    __slots__ = ("_buffer", "_done")

    def __init__(self) -> None:
        self._buffer = b""
        self._done = False

    @property
    def memory(self) -> int:
        """The octets of memory that the beginning of the header takes."""
        return self._buffer.__sizeof__()

    def feed(self, data: bytes) -> ProxyResult | None:
        """The result once the header is whole, None until then; ProxyHeaderError when it is none."""
        if self._done:
            raise ProxyHeaderError("the header is over")
        self._buffer += data
        result = self._parse()
        if result is not None:
            self._done = True
            self._buffer = b""
        return result

    def _parse(self) -> ProxyResult | None:
        head = self._buffer[: len(_V2_SIGNATURE)]
        if head[:1] == b"P":
            if not _V1_START.startswith(head[: len(_V1_START)]):
                raise ProxyHeaderError("not a PROXY header")
            return self._parse_v1()
        if not _V2_SIGNATURE.startswith(head):
            raise ProxyHeaderError("not a PROXY header")
        return self._parse_v2()

    def _parse_v1(self) -> ProxyResult | None:
        end = self._buffer.find(b"\r\n", 0, _V1_LIMIT)
        if end < 0:
            if len(self._buffer) >= _V1_LIMIT:
                raise ProxyHeaderError("a version 1 header is too long")
            return None
        words = self._buffer[:end].split(b" ")
        rest = self._buffer[end + 2 :]
        # The specification's §2.1: whatever is behind UNKNOWN is ignored
        if words[1] == b"UNKNOWN":
            return ProxyResult(local=False, source=None, tls_server_name=None, tls=False, rest=rest)
        source, destination = _v1_addresses(words)
        return ProxyResult(False, source, None, False, rest, destination)

    def _parse_v2(self) -> ProxyResult | None:
        buffer = self._buffer
        if len(buffer) > 12:
            _check_v2_start(buffer)
        if len(buffer) < _V2_FIXED:
            return None
        size = int.from_bytes(buffer[14:16], "big")
        if size > _V2_LIMIT:
            raise ProxyHeaderError("a version 2 header is too long")
        if len(buffer) < _V2_FIXED + size:
            return None
        body, rest = buffer[_V2_FIXED : _V2_FIXED + size], buffer[_V2_FIXED + size :]
        # The specification's §2.2: of LOCAL everything but the length is ignored
        if buffer[12] == _V2_LOCAL:
            return ProxyResult(local=True, source=None, tls_server_name=None, tls=False, rest=rest)
        family = buffer[13]
        taken = _V2_ADDRESS_SIZES[family >> 4]
        if size < taken:
            raise ProxyHeaderError("a version 2 header is too short for its addresses")
        server_name, tls = _read_tlvs(body[taken:])
        source, destination = _v2_addresses(family, body)
        return ProxyResult(False, source, server_name, tls, rest, destination)


def _v1_addresses(words: list[bytes]) -> tuple[tuple[IPAddress, int], tuple[IPAddress, int]]:
    if len(words) != 6:
        raise ProxyHeaderError("a version 1 header has six words")
    family: type[IPv4Address] | type[IPv6Address]
    if words[1] == b"TCP4":
        family = IPv4Address
    elif words[1] == b"TCP6":
        family = IPv6Address
    else:
        raise ProxyHeaderError("an unknown protocol in a version 1 header")
    if not all(_PORT.fullmatch(port) and int(port) <= 65535 for port in words[4:]):
        raise ProxyHeaderError("a bad port in a version 1 header")
    try:
        source, destination = (family(word.decode("ascii")) for word in words[2:4])
    except ValueError as error:
        raise ProxyHeaderError("a bad address in a version 1 header") from error
    if "%" in str(source):
        raise ProxyHeaderError("a bad address in a version 1 header")
    return (unmapped(source), int(words[4])), (unmapped(destination), int(words[5]))


def _check_v2_start(buffer: bytes) -> None:
    if buffer[12] not in (_V2_LOCAL, _V2_PROXY):
        raise ProxyHeaderError("an unknown version or command")
    if len(buffer) > 13 and buffer[12] == _V2_PROXY and buffer[13] not in _V2_FAMILIES:
        raise ProxyHeaderError("an unknown address family")


def _v2_addresses(
    family: int, body: bytes
) -> tuple[tuple[IPAddress, int] | None, tuple[IPAddress, int] | None]:
    if family == _V2_TCP4:
        four, ports = (IPv4Address(body[0:4]), IPv4Address(body[4:8])), (body[8:10], body[10:12])
        return (four[0], int.from_bytes(ports[0], "big")), (four[1], int.from_bytes(ports[1], "big"))
    if family == _V2_TCP6:
        six, ports = (IPv6Address(body[0:16]), IPv6Address(body[16:32])), (body[32:34], body[34:36])
        source = unmapped(six[0]), int.from_bytes(ports[0], "big")
        return source, (unmapped(six[1]), int.from_bytes(ports[1], "big"))
    # UNSPEC, datagrams and Unix sockets: the client is not known
    return None, None


def _read_tlvs(octets: bytes) -> tuple[str | None, bool]:
    """The authority and whether the client's own connection had TLS; what else there is, is skipped."""
    server_name, tls = None, False
    position = 0
    while position < len(octets):
        end = position + 3 + int.from_bytes(octets[position + 1 : position + 3], "big")
        if position + 3 > len(octets) or end > len(octets):
            raise ProxyHeaderError("a field of a version 2 header goes beyond its end")
        value = octets[position + 3 : end]
        if octets[position] == _PP2_TYPE_AUTHORITY:
            server_name = value.decode("utf-8", "replace")
        elif octets[position] == _PP2_TYPE_SSL and value:
            tls = bool(value[0] & _PP2_CLIENT_SSL)
        position = end
    return server_name, tls
