"""Our TLS clients offer no protocol by ALPN, so no server can refuse what they offer."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, cast

import pytest
from OpenSSL import SSL

from elemta.delivery.outbound_tls import OutboundTLS
from elemta.valkey.tls import TLS
from tests.support.certificates import make_certificate


def server(directory: Path, asked: list[list[bytes]]) -> SSL.Connection:
    """A server that refuses a client that offers any protocol."""
    files = make_certificate(directory)
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate_chain_file(str(files.certificate))
    context.use_privatekey_file(str(files.key))

    def refuse(_: SSL.Connection, offered: list[bytes]) -> bytes:
        asked.append(offered)
        return b""

    context.set_alpn_select_callback(refuse)
    connection = SSL.Connection(context, None)
    connection.set_accept_state()
    return connection


def shake_hands(one: SSL.Connection, other: SSL.Connection) -> None:
    for _ in range(10):
        for here, there in ((one, other), (other, one)):
            with contextlib.suppress(SSL.WantReadError):
                here.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                there.bio_write(here.bio_read(65536))


@pytest.mark.parametrize("kind", ["a next hop", "a next hop, verified", "Valkey"])
def test_our_clients_offer_no_protocol(tmp_path: Path, kind: str) -> None:
    asked: list[list[bytes]] = []
    accepting = server(tmp_path, asked)
    ca = str(tmp_path / "certificate.pem")
    handshake: Any = (
        TLS(ca=ca).handshake("mx.example.test")
        if kind == "Valkey"
        else OutboundTLS(ca).handshake("mx.example.test", verified="verified" in kind)
    )
    client = cast(SSL.Connection, handshake.clientConnectionForTLS(None))
    client.set_connect_state()
    shake_hands(client, accepting)
    handshake.check(client)
    assert asked == []
    assert client.get_alpn_proto_negotiated() == b""
