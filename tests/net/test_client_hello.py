"""What is read from a client's first octets for the log: any octets, whole or in part, and never an error."""

from __future__ import annotations

import random
import ssl
import struct

import pytest

from elemta.net.client_hello import LONGEST_HELLO, ClientHello, read_client_hello

BOTH = ("TLSv1.3", "TLSv1.2")


def hello_of(name: str | None, alpn: list[str], version: ssl.TLSVersion | None = None) -> bytes:
    """The ClientHello of Python's OpenSSL."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def made_hello(extensions: bytes, version: int = 0x0303) -> bytes:
    body = struct.pack("!H", version) + bytes(32) + b"\0" + b"\0\2\x13\x01" + b"\1\0"
    body += struct.pack("!H", len(extensions)) + extensions
    handshake = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\3\1" + struct.pack("!H", len(handshake)) + handshake


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack("!HH", kind, len(content)) + content


def vector(size: int, content: bytes) -> bytes:
    return len(content).to_bytes(size, "big") + content


@pytest.mark.parametrize(
    ("name", "alpn", "version", "expected"),
    [
        (
            "mx.example.test",
            ["smtp"],
            None,
            ClientHello(True, "mx.example.test", ("TLSv1.3", "TLSv1.2"), ("smtp",)),
        ),
        (None, [], None, ClientHello(True, "", ("TLSv1.3", "TLSv1.2"), ())),
        (None, ["h2", "x"], ssl.TLSVersion.TLSv1_2, ClientHello(True, "", ("TLSv1.2",), ("h2", "x"))),
        ("a.test", [], ssl.TLSVersion.TLSv1_3, ClientHello(True, "a.test", ("TLSv1.3",), ())),
    ],
)
def test_what_openssl_offers_is_read(
    name: str | None, alpn: list[str], version: ssl.TLSVersion | None, expected: ClientHello
) -> None:
    hello = hello_of(name, alpn, version)
    assert read_client_hello(hello) == expected
    assert read_client_hello(hello + b"more records") == expected


def test_a_hello_in_many_records_is_read() -> None:
    hello = hello_of("mx.example.test", ["smtp"])
    content = hello[5:]
    for size in (1, 7, 100):
        cut = [content[at : at + size] for at in range(0, len(content), size)]
        records = b"".join(b"\x16\3\1" + struct.pack("!H", len(each)) + each for each in cut)
        assert read_client_hello(records) == read_client_hello(hello)


def test_each_beginning_of_a_hello_gives_a_part_of_it_and_no_error() -> None:
    hello = hello_of("mx.example.test", ["smtp", "h2"])
    whole = read_client_hello(hello)
    for size in range(len(hello)):
        part = read_client_hello(hello[:size])
        assert part.server_name in ("", whole.server_name)
        assert part.alpn in ((), whole.alpn)
        assert part.found == (size >= 11)


def test_any_octets_give_no_error() -> None:
    source = random.Random(11)
    hello = hello_of("mx.example.test", ["smtp", "h2"])
    for _ in range(5000):
        changed = bytearray(hello)
        for _ in range(source.randrange(1, 6)):
            changed[source.randrange(len(changed))] = source.randrange(256)
        read_client_hello(bytes(changed))
        read_client_hello(source.randbytes(source.randrange(300)))
    read_client_hello(b"\x16\3\1\xff\xff" + bytes(LONGEST_HELLO))


@pytest.mark.parametrize(
    "octets",
    [b"", b"EHLO client.test\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x80\x2e\1\0\2", b"\x15\3\1\0\2\2\0"],
)
def test_what_is_no_hello_is_none(octets: bytes) -> None:
    assert read_client_hello(octets) == ClientHello()


def test_hostile_values_are_escaped_and_bounded() -> None:
    name = b'x"\r\n{}\x00\xff' + b"n" * 500
    names = extension(0, vector(2, b"\0" + vector(2, name)))
    alpn = extension(16, vector(2, b"".join(vector(1, b"\r\n" + b"p" * 200) for _ in range(100))))
    versions = extension(43, vector(1, bytes.fromhex("0a0a0304030303020301030000027f1c") + b"\x99\x99" * 50))
    hello = read_client_hello(made_hello(names + alpn + versions))
    assert hello.server_name.startswith('x"\\r\\n{}\\x00\\xff')
    assert len(hello.server_name) < 300
    assert len(hello.alpn) == 12
    assert all(each.isprintable() and len(each) < 80 for each in hello.alpn)
    assert hello.versions[:7] == ("TLSv1.3", "TLSv1.2", "TLSv1.1", "TLSv1.0", "SSLv3", "SSLv2", "0x7f1c")
    assert len(hello.versions) == 12


def test_an_old_client_without_the_extension_offers_its_version() -> None:
    assert read_client_hello(made_hello(b"", 0x0301)).versions == ("TLSv1.0",)
    assert read_client_hello(made_hello(b"", 0x0300)).versions == ("SSLv3",)
