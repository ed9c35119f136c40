"""Which servers are asked, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from elemta.dns.servers import Nameserver, Nameservers


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return tmp_path / "resolv.conf"


def test_the_servers_of_the_system_are_read_in_order(conf: Path) -> None:
    conf.write_bytes(
        b"# a comment\nsearch example.test\nnameserver 192.0.2.53 # ours\n\tnameserver\t2001:db8::53\n"
        b"nameserver not-an-address\nnameserver\noptions edns0 timeout:1\nnameserver fe80::1%eth0\n"
        b";nameserver 192.0.2.54\nnameserver 192.0.2.53\n\xff\xfe\n"
    )
    assert Nameservers((), Clock().seconds, str(conf)).in_order() == (
        Nameserver("192.0.2.53"),
        Nameserver("2001:db8::53"),
        Nameserver("fe80::1%eth0"),
    )


def test_without_any_there_is_one_on_this_host(conf: Path) -> None:
    clock = Clock()
    servers = Nameservers((), clock.seconds, str(conf))
    local = (Nameserver("127.0.0.1"),)
    assert servers.in_order() == local
    conf.write_text("search example.test\n")
    clock.advance(5)
    assert servers.in_order() == local


def test_a_change_of_the_file_is_seen(conf: Path) -> None:
    clock = Clock()
    conf.write_text("nameserver 192.0.2.1\n")
    servers = Nameservers((), clock.seconds, str(conf))
    assert servers.in_order() == (Nameserver("192.0.2.1"),)
    # As the programs that write it do it.
    (conf.parent / "new").write_text("nameserver 192.0.2.2\n")
    os.replace(conf.parent / "new", conf)
    clock.advance(5)
    assert servers.in_order() == (Nameserver("192.0.2.2"),)


def test_a_silent_server_comes_last_for_a_while() -> None:
    clock = Clock()
    one, two, three = (Nameserver("127.0.0.1", port) for port in (1, 2, 3))
    servers = Nameservers((one, two, three), clock.seconds)
    servers.was_silent(one)
    servers.was_silent(two)
    assert servers.in_order() == (three, one, two)
    servers.answered(two)
    assert servers.in_order() == (two, three, one)
    clock.advance(30)
    assert servers.in_order() == (one, two, three)


def test_a_server_reads_as_an_operator_writes_it() -> None:
    assert str(Nameserver("192.0.2.1")) == "192.0.2.1"
    assert str(Nameserver("192.0.2.1", 5353)) == "192.0.2.1:5353"
    assert str(Nameserver("2001:db8::1")) == "2001:db8::1"
    assert str(Nameserver("2001:db8::1", 5353)) == "[2001:db8::1]:5353"
