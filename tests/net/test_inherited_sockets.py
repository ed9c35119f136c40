"""Which listener takes which of the sockets that systemd opened: by address, whatever their order."""

from __future__ import annotations

import itertools
import socket

import pytest

from elemta.config.endpoint import systemd_index, tcp_endpoint
from elemta.net.inherited_sockets import InheritedSocket, sockets_for

V4, V6 = socket.AF_INET, socket.AF_INET6
MX4 = InheritedSocket(0, 3, V4, "0.0.0.0", 25)
MX6 = InheritedSocket(1, 4, V6, "::", 25)
SUBMISSION = InheritedSocket(2, 5, V6, "::", 587)
SUBMISSIONS = InheritedSocket(3, 6, V6, "::", 465)
ONE = InheritedSocket(4, 7, V4, "192.0.2.1", 25)
ONE6 = InheritedSocket(5, 8, V6, "2001:db8::1", 25)


@pytest.mark.parametrize(
    ("endpoints", "inherited", "taken"),
    [
        (["tcp:25"], [MX4, MX6], [[MX4, MX6]]),
        (["tcp:25", "tcp6:25"], [MX4, MX6], [[MX4], [MX6]]),
        (["tcp6:25", "tcp:25"], [MX4, MX6], [[MX6], [MX4]]),
        (["tcp6:25"], [MX4, MX6], [[MX6]]),
        (
            ["tcp:587", "tcp:465", "tcp:25"],
            [MX4, MX6, SUBMISSION, SUBMISSIONS],
            [[SUBMISSION], [SUBMISSIONS], [MX4, MX6]],
        ),
        (["tcp:2525", "tcp:25"], [SUBMISSION], [[], []]),
        (["tcp:25:interface=192.0.2.1"], [MX4, MX6, ONE], [[ONE]]),
        (["tcp:25:interface=192.0.2.2"], [MX4, MX6, ONE], [[]]),
        (["tcp:25"], [ONE, ONE6], [[]]),
        ([r"tcp6:25:interface=2001\:db8\:\:1"], [MX6, ONE6], [[ONE6]]),
        ([r"tcp:25:interface=2001\:DB8\:0\:\:1"], [MX6, ONE6], [[ONE6]]),
        (["unix:/run/x", "tcp:port=25:backlog=5"], [MX4], [[], [MX4]]),
    ],
)
def test_a_listener_takes_the_sockets_at_its_address(
    endpoints: list[str], inherited: list[InheritedSocket], taken: list[list[InheritedSocket]]
) -> None:
    wanted = [tcp_endpoint(text) for text in endpoints]
    for order in itertools.permutations(inherited):
        found = sockets_for(wanted, order)
        assert [sorted(each, key=lambda one: one.index) for each in found] == taken


def test_endpoints_are_read() -> None:
    assert tcp_endpoint("tcp:25") == ("tcp", "", 25)
    assert tcp_endpoint("tcp:25:127.0.0.1") == ("tcp", "127.0.0.1", 25)
    assert tcp_endpoint("systemd:domain=INET:index=0") is None
    assert systemd_index("systemd:domain=INET:index=3") == 3
    assert systemd_index("systemd:INET:2") == 2
    assert systemd_index("systemd:domain=INET:name=smtp") is None
    assert systemd_index("tcp:25") is None
