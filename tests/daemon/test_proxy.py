"""The PROXY protocol on a real listener: which peers may speak it, what it changes, and what it costs."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.support.daemon import Daemon
from tests.support.wire import Wire

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(source: str, port: int = 4321, *, local: bool = False) -> bytes:
    if local:
        return SIGNATURE + b"\x20\x00\x00\x00"
    packed = socket.inet_aton(source) + socket.inet_aton("198.51.100.1") + struct.pack("!HH", port, 25)
    return SIGNATURE + b"\x21\x11" + struct.pack("!H", len(packed)) + packed


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(
        tmp_path_factory.mktemp("proxy") / "node",
        listener='proxy_protocol_from = ["127.0.0.0/8"]\n',
        tables='[[listener]]\nname = "direct"\nendpoint = "tcp:0:interface=127.0.0.1"\n'
        'proxy_protocol_from = ["192.0.2.0/24"]\n'
        '[[limit]]\nname = "two-a-minute"\nper = ["ip"]\ncounts = "connections"\nrates = ["2/1m"]\n',
    )
    yield daemon.start()
    daemon.kill()


def test_the_client_is_who_the_header_says(node: Daemon) -> None:
    for header, address in (
        (b"PROXY TCP4 203.0.113.5 198.51.100.1 1111 25\r\n", "203.0.113.5"),
        (b"PROXY TCP6 2001:db8::5 2001:db8::1 1111 25\r\n", "2001:db8::5"),
        (v2("203.0.113.6"), "203.0.113.6"),
    ):
        with Wire(node.socket()) as wire:
            wire.send(header)
            assert wire.reply().startswith("220")
            wire.command("EHLO client.test")
            wire.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<proxied@example.test>\r\nDATA\r\n")
            for _ in range(3):
                wire.reply()
            wire.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
            assert "queued as" in wire.reply()
        node.wait_for("message.accepted", client_ip=address)


@pytest.mark.parametrize("size", [1, 3, 15])
def test_a_header_may_come_in_pieces(node: Daemon, size: int) -> None:
    header = v2(f"203.0.113.{100 + size}")
    with Wire(node.socket()) as wire:
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(header), size):
            wire.send(header[start : start + size])
            time.sleep(0.005)
        assert wire.reply().startswith("220")


def test_limits_count_the_client_and_not_the_balancer(node: Daemon) -> None:
    def greeting(address: str) -> str:
        with Wire(node.socket()) as wire:
            wire.send(v2(address))
            return wire.reply()

    assert [greeting("203.0.113.50")[:3] for _ in range(3)] == ["220", "220", "421"]
    assert "two-a-minute" in greeting("203.0.113.50")
    assert greeting("203.0.113.51").startswith("220")


def test_health_checks_of_the_balancer_cost_no_limit_and_carry_no_mail(node: Daemon) -> None:
    for _ in range(6):
        with Wire(node.socket()) as wire:
            wire.send(v2("", local=True))
            assert wire.reply().startswith("220")
            assert wire.command("EHLO haproxy.check.invalid").startswith("250")
            assert wire.command("QUIT").startswith("221")
    with Wire(node.socket()) as wire:
        wire.send(v2("", local=True))
        wire.reply()
        wire.command("EHLO haproxy.check.invalid")
        assert wire.command("MAIL FROM:<a@client.test>").startswith("4")


def test_without_a_header_a_trusted_peer_gets_no_greeting(node: Daemon) -> None:
    with Wire(node.socket()) as wire:
        wire.send(b"EHLO client.test\r\n")
        assert wire.reply() == ""


def test_a_trusted_peer_that_says_nothing_is_closed_after_seconds(node: Daemon) -> None:
    began = time.monotonic()
    with Wire(node.socket()) as wire:
        assert wire.reply() == ""
    assert 4 < time.monotonic() - began < 20


def test_a_header_from_a_stranger_is_refused(node: Daemon) -> None:
    with Wire(node.socket("direct")) as wire:
        wire.send(v2("203.0.113.99"))
        replies = [wire.reply(), wire.reply()]
        assert not any("203.0.113.99" in reply for reply in replies)
        assert any(reply.startswith("5") for reply in replies)


def test_a_malformed_header_closes_without_a_greeting(node: Daemon) -> None:
    for header in (
        b"PROXY TCP4 999.0.0.1 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 \xff\r\n",
        SIGNATURE + b"\xff\xff\xff\xff",
    ):
        with Wire(node.socket()) as wire:
            wire.send(header)
            assert wire.reply() == ""
