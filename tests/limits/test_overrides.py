"""Overrides on a limiter over a store in memory: what they change, for which identities, and for how long."""

from __future__ import annotations

from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from elemta.config import Counts, Identity, ResourcesConfig
from elemta.config.values import Unacceptable
from elemta.limits.limiter import Limiter
from elemta.limits.memory import LocalStore
from elemta.limits.overrides import Override, Overrides, check_rates, client_of
from elemta.limits.rules import rules_from_config
from elemta.limits.store import Request
from elemta.stage import Stage
from tests.limits.test_limiter import limit

DAY = 86400.0


def session_of(client: str) -> Any:
    return SimpleNamespace(client_ip=ip_address(client), listener="mx", helo="client.example", user=None)


class Node:
    """A limiter with overrides, and the time."""

    def __init__(self, *limits: Any, **resources: Any) -> None:
        self.clock = Clock()
        self.overrides = Overrides(self.clock.seconds)
        defaults = {"max_requests_per_window": 0, "max_connections_per_ip": 0}
        rules = rules_from_config(ResourcesConfig(**{**defaults, **resources}), limits)
        self.limiter = Limiter(rules, LocalStore(self.clock), overrides=self.overrides)

    def override(self, limit: str, identity: str, *rates: str, seconds: float = DAY) -> None:
        until = self.clock.seconds() + seconds
        self.overrides.replace([*self.overrides.in_force(), Override(limit, identity, rates, until)])

    def admitted(self, client: str, attempts: int) -> int:
        session = session_of(client)
        charges = [self.limiter.charge(Stage.CONNECT, session) for _ in range(attempts)]
        return sum(charge.refusal is None for charge in charges)  # type: ignore[union-attr]


def test_an_identity_with_other_rates_has_them_and_no_other_identity() -> None:
    node = Node(max_requests_per_window=3)
    node.override("ip", "192.0.2.1", "5/1m")
    node.override("ip", "192.0.2.2", "1/1m")
    assert [node.admitted(f"192.0.2.{n}", 10) for n in (1, 2, 3)] == [5, 1, 3]


def test_an_exempt_identity_is_not_counted() -> None:
    node = Node(max_requests_per_window=3)
    node.override("ip", "192.0.2.1", seconds=60)
    assert node.admitted("192.0.2.1", 10) == 10
    node.clock.advance(60)
    assert node.admitted("192.0.2.1", 10) == 3


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
        ("10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:11.1.2.3"),
        ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
        ("0.0.0.0/0", "203.0.113.1", "2001:db8::1"),
        ("::ffff:10.0.0.0/104", "10.255.0.1", "11.0.0.1"),
    ],
)
def test_a_network_is_each_of_its_addresses(network: str, inside: str, outside: str) -> None:
    node = Node(max_requests_per_window=2)
    node.override("ip", network, "4/1m")
    assert node.admitted(inside, 9) == 4
    assert node.admitted(outside, 9) == 2


def test_the_identity_goes_before_a_network_and_a_small_network_before_a_large_one() -> None:
    node = Node(max_requests_per_window=1)
    node.override("ip", "10.0.0.0/8", "2/1m")
    node.override("ip", "10.1.0.0/16", "3/1m")
    node.override("ip", "10.1.1.1", "4/1m")
    assert [node.admitted(ip, 9) for ip in ("10.2.0.1", "10.1.0.1", "10.1.1.1")] == [2, 3, 4]


@pytest.mark.parametrize(
    ("per", "identity", "holds"),
    [
        ((Identity.IP,), "192.0.2.7", True),
        ((Identity.NETWORK,), "192.0.2.0/24", True),
        ((Identity.USER, Identity.IP), "anna|192.0.2.7", True),
        ((Identity.NETWORK, Identity.LISTENER, Identity.IP), "192.0.2.0/24|mx|192.0.2.7", True),
        ((Identity.USER, Identity.IP), "anna|198.51.100.7", False),
        ((Identity.USER,), "anna", False),
        ((Identity.USER,), "192.0.2.0/25", True),
        ((Identity.USER,), "192.0.2.0/26", False),
        ((Identity.HELO,), "192.0.2.7", False),
        ((), "*", False),
    ],
)
def test_a_network_holds_where_clients_are_counted_and_is_found_by_the_identity(
    per: tuple[Identity, ...], identity: str, holds: bool
) -> None:
    rule = rules_from_config(ResourcesConfig(), [limit("few", Counts.CONNECTIONS, *per)])[-1]
    overrides = Overrides(Clock().seconds)
    overrides.replace([Override("few", "192.0.2.0/25", (), DAY)])
    asked = overrides.applied(rule, [Request(rule.spec, identity)], client_of(rule, identity))
    assert (overrides.of(rule, identity, client_of(rule, identity)) is not None) is holds
    assert (asked == []) is holds
    if not holds and Identity.IP not in per:
        assert overrides.of(rule, identity, ip_address("192.0.2.7")) is None


def test_what_was_refused_passes_as_soon_as_an_override_allows_it_and_is_refused_when_that_ends() -> None:
    node = Node(max_requests_per_window=2)
    assert node.admitted("192.0.2.1", 5) == 2
    assert len(node.limiter.refused()) == 1
    node.override("ip", "192.0.2.1", "5/1m", seconds=30)
    assert node.limiter.refused() == ()
    assert node.admitted("192.0.2.1", 9) == 3
    node.clock.advance(31)
    node.overrides.drop_ended()
    # The five still count: it is one count.
    assert node.admitted("192.0.2.1", 5) == 0
    node.clock.advance(30)
    assert node.admitted("192.0.2.1", 5) == 2


def test_a_refusal_under_an_override_is_not_remembered_beyond_it() -> None:
    node = Node(max_requests_per_window=5)
    node.override("ip", "192.0.2.1", "1/1h", seconds=10)
    assert node.admitted("192.0.2.1", 3) == 1
    node.clock.advance(10)
    node.overrides.drop_ended()
    assert node.admitted("192.0.2.1", 9) == 4


def test_a_refusal_names_the_rates_of_the_override() -> None:
    node = Node(max_requests_per_window=5)
    node.override("ip", "192.0.2.1", "1/1h")
    session = session_of("192.0.2.1")
    charges: list[Any] = [node.limiter.charge(Stage.CONNECT, session) for _ in range(2)]
    assert [str(rate) for rate in charges[1].refusal.rates] == ["1/1h"]


def test_open_connections_take_a_plain_number() -> None:
    node = Node(max_connections_per_ip=2)
    node.override("connections-per-ip", "192.0.2.1", "4")
    assert node.admitted("192.0.2.1", 9) == 4
    assert node.admitted("192.0.2.2", 9) == 2


def test_a_short_window_of_one_identity_forgets_nothing_of_another() -> None:
    node = Node(max_requests_per_window=3)
    assert node.admitted("192.0.2.1", 3) == 3
    node.override("ip", "192.0.2.2", "100/1s")
    node.clock.advance(30)
    # New identities are what makes the store look for old ones.
    for each in range(50):
        node.admitted(f"198.51.100.{each}", 1)
        node.admitted("192.0.2.2", 1)
    assert node.admitted("192.0.2.1", 3) == 0


def test_an_override_that_no_longer_fits_its_limit_leaves_it_as_it_is() -> None:
    node = Node(limit("mine", Counts.CONNECTIONS, Identity.IP, rates=["3/1m"]))
    node.override("mine", "192.0.2.1", "7")
    assert node.admitted("192.0.2.1", 9) == 3


@pytest.mark.parametrize(
    ("counts", "rate", "fits"),
    [
        (Counts.CONNECTIONS, "5/1m", True),
        (Counts.CONNECTIONS, "5", False),
        (Counts.CONNECTIONS, "5MiB/1m", False),
        (Counts.CONNECTIONS, "0/1m", False),
        (Counts.CONNECTIONS, "many", False),
        (Counts.BYTES, "5MiB/1m", True),
        (Counts.OPEN_CONNECTIONS, "5", True),
        (Counts.OPEN_CONNECTIONS, "5/1m", False),
    ],
)
def test_rates_are_those_of_what_the_limit_counts(counts: Counts, rate: str, fits: bool) -> None:
    rates = ["1"] if counts is Counts.OPEN_CONNECTIONS else ["1/1m"]
    (rule,) = Node(limit("mine", counts, Identity.IP, rates=rates)).limiter.rules
    if fits:
        check_rates(rule, [rate])
    else:
        with pytest.raises(Unacceptable):
            check_rates(rule, [rate])


@given(
    st.builds(
        Override,
        st.text(max_size=20),
        st.text(max_size=40),
        st.lists(st.sampled_from(["1/1m", "20", "5MiB/1h"]), max_size=3).map(tuple),
        st.floats(0, 2**40),
        st.text(max_size=20),
        st.text(max_size=50),
        st.floats(0, 2**40),
    )
)
def test_what_is_kept_is_read_as_it_was(override: Override) -> None:
    assert Override.of_json(override.to_json()) == override


@given(st.text(max_size=60) | st.sampled_from(["{}", "[]", "null", '{"rates": 3}', '{"rates": ["x"]}']))
def test_what_another_version_writes_is_no_override(text: str) -> None:
    assert Override.of_json(text) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([None, 1, 2, 4, 6]), st.integers(0, 40)), max_size=25
    )
)
def test_no_window_admits_more_than_the_largest_rate_in_force_in_it(
    history: list[tuple[int, int | None, int]],
) -> None:
    node = Node(max_requests_per_window=3)
    admitted: list[float] = []
    force: list[tuple[float, int]] = [(0.0, 3)]
    for attempts, rate, pause in history:
        node.clock.advance(pause)
        now = node.clock.seconds()
        if rate is None:
            node.overrides.replace([])
        else:
            node.overrides.replace([Override("ip", "192.0.2.1", (f"{rate}/1m",), now + DAY)])
        force.append((now, rate or 3))
        admitted += [now] * node.admitted("192.0.2.1", attempts)
    for end in admitted:
        inside = [at for at in admitted if end - 60 < at <= end]
        # The one that held when the window began, and all that came into force in it.
        before = [rate for at, rate in force if at <= end - 60][-1:]
        allowed = max([*before, *(rate for at, rate in force if end - 60 < at <= end)])
        assert len(inside) <= allowed
