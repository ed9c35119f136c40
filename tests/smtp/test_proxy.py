"""The PROXY protocol's header, whole and byte by byte."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.errors import ProxyHeaderError
from elemta.smtp.proxy import ProxyHeader, ProxyResult

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes([command, family]) + len(body).to_bytes(2, "big") + body


def addresses(source: str, destination: str, source_port: int = 40000, port: int = 25) -> bytes:
    ports = source_port.to_bytes(2, "big") + port.to_bytes(2, "big")
    return ip_address(source).packed + ip_address(destination).packed + ports


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def read(data: bytes, behind: bytes = b"EHLO x\r\n") -> ProxyResult:
    """The result, which is the same for the header in one piece and byte by byte."""
    whole = ProxyHeader().feed(data + behind)
    assert whole is not None
    assert whole.rest == behind
    header, result = ProxyHeader(), None
    for at in range(len(data)):
        assert result is None
        result = header.feed(data[at : at + 1])
    assert result is not None
    assert (result.local, result.source, result.tls_server_name, result.tls) == (
        whole.local,
        whole.source,
        whole.tls_server_name,
        whole.tls,
    )
    assert result.destination == whole.destination
    assert (result.destination is None) == (result.source is None)
    with pytest.raises(ProxyHeaderError):
        header.feed(b"x")
    return whole


V4 = addresses("192.0.2.1", "198.51.100.1")
V6 = addresses("2001:db8::1", "2001:db8::2")


@pytest.mark.parametrize(
    ("header", "source"),
    [
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 25\r\n", (IPv4Address("192.0.2.1"), 40000)),
        (
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            (IPv4Address("255.255.255.255"), 65535),
        ),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 40000 25\r\n", (IPv6Address("2001:db8::1"), 40000)),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 25\r\n", (IPv4Address("192.0.2.1"), 1)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff:f...f:ffff whatever 65535\r\n", None),
        (v2(0x21, 0x11, V4), (IPv4Address("192.0.2.1"), 40000)),
        (v2(0x21, 0x21, V6), (IPv6Address("2001:db8::1"), 40000)),
        (v2(0x21, 0x21, addresses("::ffff:192.0.2.1", "::1")), (IPv4Address("192.0.2.1"), 40000)),
        (v2(0x21, 0x31, bytes(216)), None),
        (v2(0x21, 0x00, b""), None),
        (v2(0x21, 0x12, V4), None),
    ],
)
def test_whom_a_header_names(header: bytes, source) -> None:
    result = read(header)
    assert result.source == source
    assert result.local is False


@pytest.mark.parametrize("header", [v2(0x20, 0x00, b""), v2(0x20, 0x11, V4), v2(0x20, 0xFF, b"\xff" * 30)])
def test_local_is_the_proxy_itself(header: bytes) -> None:
    result = read(header)
    assert result.local is True
    assert result.source is None


def test_fields_are_read_or_skipped() -> None:
    fields = tlv(0x04, b"padding") + tlv(0x02, b"mx.test") + tlv(0xE0, b"") + tlv(0x20, b"\x01\0\0\0\0")
    result = read(v2(0x21, 0x11, V4 + fields))
    assert (result.tls_server_name, result.tls) == ("mx.test", True)
    assert read(v2(0x21, 0x11, V4)).tls is False


def test_a_version_2_header_may_have_4096_octets_and_not_one_more() -> None:
    space = 4096 - len(V4) - 3
    assert read(v2(0x21, 0x11, V4 + tlv(0x04, bytes(space)))).source is not None
    with pytest.raises(ProxyHeaderError):
        ProxyHeader().feed(v2(0x21, 0x11, V4 + tlv(0x04, bytes(space + 1)))[:16])


def test_a_version_1_header_may_have_107_octets_and_not_one_more() -> None:
    line = b"PROXY UNKNOWN ".ljust(105, b"x")
    assert read(line + b"\r\n").source is None
    with pytest.raises(ProxyHeaderError):
        ProxyHeader().feed(line + b"x\r\n")
    header = ProxyHeader()
    assert header.feed(line + b"\r") is None
    with pytest.raises(ProxyHeaderError):
        header.feed(b"x")


@pytest.mark.parametrize(
    "header",
    [
        b"EHLO x\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"PROXI TCP4 192.0.2.1 198.51.100.1 40000 25\r\n",
        b"proxy TCP4 192.0.2.1 198.51.100.1 40000 25\r\n",
        b"PROXY\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 40000\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 25 26\r\n",
        b"PROXY  TCP4 192.0.2.1 198.51.100.1 40000 25\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 25 \r\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.1 40000 25\r\n",
        b"PROXY TCP4 192.0.2.01 198.51.100.1 40000 25\r\n",
        b"PROXY TCP4 192.0.2.1 nonsense 40000 25\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 40000 25\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.1 40000 25\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 40000 25\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 25\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 -1 25\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 040 25\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 x\r\n",
        b"PROXY TCP4 \xff 198.51.100.1 40000 25\r\n",
        b"PROXY UDP4 192.0.2.1 198.51.100.1 40000 25\r\n",
        SIGNATURE[:-1] + b"X",
        v2(0x11, 0x11, V4),
        v2(0x22, 0x11, V4),
        v2(0x21, 0x13, V4),
        v2(0x21, 0x41, V4),
        v2(0x21, 0x11, V4[:-1]),
        v2(0x21, 0x21, V4),
        v2(0x21, 0x31, bytes(215)),
        v2(0x21, 0x11, V4 + b"\x04"),
        v2(0x21, 0x11, V4 + b"\x04\x00\x05abcd"),
    ],
)
def test_a_malformed_header_is_an_error(header: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        ProxyHeader().feed(header)
    with pytest.raises(ProxyHeaderError):
        feed_byte_by_byte(header)


def feed_byte_by_byte(header: bytes) -> None:
    bytewise = ProxyHeader()
    for at in range(len(header)):
        bytewise.feed(header[at : at + 1])


def test_a_stranger_is_recognised_by_its_first_octet() -> None:
    with pytest.raises(ProxyHeaderError):
        ProxyHeader().feed(b"E")


@given(
    st.one_of(
        st.binary(max_size=64),
        st.binary(max_size=64).map(lambda data: SIGNATURE + data),
        st.binary(max_size=64).map(lambda data: b"PROXY " + data),
    )
)
def test_any_octets_are_a_header_an_error_or_not_enough(data: bytes) -> None:
    try:
        whole = ProxyHeader().feed(data)
    except ProxyHeaderError:
        whole = None
    header = ProxyHeader()
    try:
        for at in range(len(data)):
            result = header.feed(data[at : at + 1])
            if result is not None:
                assert whole is not None
                assert result.source == whole.source
                assert data[at + 1 :] == whole.rest
                return
    except ProxyHeaderError:
        pass
    assert whole is None


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_source_travels(address, port: int) -> None:
    other = "::1" if address.version == 6 else "192.0.2.1"
    expected = getattr(address, "ipv4_mapped", None) or address
    text = f"PROXY TCP{address.version} {address} {other} {port} 25\r\n".encode()
    assert read(text).source == (expected, port)
    assert read(text).destination == (ip_address(other), 25)
    family = 0x21 if address.version == 6 else 0x11
    assert read(v2(0x21, family, addresses(str(address), other, port))).source == (expected, port)
    # The other way round it is where the client connected.
    assert read(v2(0x21, family, addresses(other, str(address), 25, port))).destination == (expected, port)
