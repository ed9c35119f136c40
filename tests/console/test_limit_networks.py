"""The identities of a limit by network: each level has all of them, and leads to the next."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Network, ip_network
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from elemta.console.limit_networks import LEVELS, groups_by_network, percent_full, wider_networks


def entry(
    identity: str, used: int = 1, limit: int = 10, *, share: int | None = None, wait: float = 0.0
) -> Any:
    bound = {"used": used, "limit": limit, "window": 60.0, "share": share}
    return {"identity": identity, "bounds": [bound], "retry_after": wait}


addresses = st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number)))
networks = st.integers(0, 2**64 - 1).map(lambda number: str(IPv6Network((number << 64, 64))))


@given(st.lists(addresses | networks, unique=True, max_size=60))
def test_every_identity_is_reached_by_going_down(identities: list[str]) -> None:
    entries = [entry(each) for each in identities]
    found: list[str] = []
    todo: list[Any] = [None]
    for within in todo:
        for group in groups_by_network(entries, within):
            if group.last:
                assert group.identities == 1
                found.append(group.network)
            else:
                todo.append(ip_network(group.network))
    assert sorted(found) == sorted(identities)
    assert len(todo) < 1 + 4 * max(1, len(identities))


def test_a_level_has_the_sums_of_what_is_in_it_and_what_is_refused_first() -> None:
    entries = [
        entry("10.0.0.1", 3),
        entry("10.9.0.1", 10, wait=30.0),
        entry("192.0.2.1", 9),
        entry("a@b.test", 9),
    ]
    wide = groups_by_network(entries, None)
    assert [(each.network, each.identities, each.used, each.percent, each.refused) for each in wide] == [
        ("10.0.0.0/8", 2, 13, 100, 1),
        ("192.0.0.0/8", 1, 9, 90, 0),
    ]
    assert [each.network for each in groups_by_network(entries, ip_network("10.0.0.0/8"))] == [
        "10.9.0.0/16",
        "10.0.0.0/16",
    ]


def test_networks_of_the_other_family_are_in_none() -> None:
    assert groups_by_network([entry("2001:db8::/64")], ip_network("10.0.0.0/8")) == []
    assert groups_by_network([entry("10.0.0.1")], ip_network("2001:db8::/32")) == []


def test_a_path_leads_back() -> None:
    assert list(wider_networks(ip_network("198.51.100.0/24"))) == ["198.0.0.0/8", "198.51.0.0/16"]
    assert list(wider_networks(ip_network("2001:db8:1::/48"))) == ["2001:db8::/32"]
    assert LEVELS[6][-1] == 64


def test_a_share_is_what_is_filled_while_it_holds() -> None:
    assert percent_full(entry("x", 5, 30, share=10)) == 50
    assert percent_full(entry("x", 5, 30)) == 17
