"""Finding the hosts for a domain: the order, which are left out, and what it means when none is left."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from elemta.address import Address
from elemta.config import DEFAULT_REFUSED_NETWORKS
from elemta.delivery.mx import (
    MOST_ADDRESSES,
    MOST_LOOKED_AT,
    MOST_TRIED,
    Exchanger,
    Exchangers,
    find_exchangers,
    is_of_this_machine,
)
from elemta.dns import MailExchanger
from elemta.dns.resolver import DnsResolver
from elemta.envelope import Recipient
from elemta.errors import NoSuchDomain, ResolverTrouble
from elemta.outcome import Attempt, Outcome, Status
from elemta.runtime import Runtime
from tests.support.nameservers import Nsd

FAILED, DEFERRED = Status.FAILED, Status.DEFERRED
IPAddress = IPv4Address | IPv6Address

_ZONE = """
@ MX 20 backup
@ MX 10 main
main A 192.0.2.10
main AAAA 2001:db8::10
main AAAA ::ffff:192.0.2.10
backup A 192.0.2.20
equal MX 10 main
equal MX 10 backup
equal MX 10 six
six AAAA 2001:db8::6
only-six MX 10 six
null MX 0 .
implicit A 192.0.2.30
implicit-alias CNAME implicit
no-way TXT "neither"
some-lost MX 10 nowhere
some-lost MX 15 no-way
some-lost MX 20 backup
all-lost MX 10 nowhere
all-lost MX 20 no-way
half-lost MX 10 nowhere
half-lost MX 20 host.broken.test.
broken-first MX 10 host.broken.test.
broken-first MX 20 backup
by-alias MX 10 main-alias
main-alias CNAME main
me A 127.0.0.1
backed-by-me MX 10 main
backed-by-me MX 20 me
backed-by-me MX 20 six
backed-by-me MX 30 backup
mine MX 10 me
mine MX 20 main
lost-but-me MX 10 nowhere
lost-but-me MX 20 me
broken-but-me MX 10 host.broken.test.
broken-but-me MX 20 me
unusable MX 10 nothing
nothing A 0.0.0.0
nothing A 224.0.0.1
nothing A 255.255.255.255
nothing AAAA ::
nothing AAAA fe80::1
nothing AAAA ff02::1
xn--mller-kva MX 10 main
"""


@pytest.fixture(scope="module")
def nsd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nsd]:
    server = Nsd(tmp_path_factory.mktemp("nsd"), {"example.test": _ZONE}, broken=("broken.test",)).start()
    yield server
    server.stop()


@pytest_twisted.async_yield_fixture
async def resolver(nsd: Nsd) -> AsyncIterator[DnsResolver]:
    resolver = DnsResolver(Runtime.of(reactor), nameservers=[nsd.address])  # type: ignore[arg-type]
    resolver.start()
    yield resolver
    await resolver.stop()


def unshuffled(items: list[Any]) -> None:
    """A chance that changes nothing."""


async def find(
    resolver: Any,
    domain: str,
    *,
    names: tuple[str, ...] = ("mx.here.test",),
    addresses: tuple[tuple[str, int], ...] = (),
    shuffle: Any = unshuffled,
) -> Exchangers | tuple[Outcome, ...]:
    own = [(ip_address(address), port) for address, port in addresses]
    return await find_exchangers(
        resolver, domain, own_names=names, own_addresses=own, shuffle=shuffle, **described(domain)
    )


def described(domain: str) -> dict[str, Any]:
    """What the outcomes are made of; their route is the domain."""
    return {"attempt": Attempt(route=domain), "recipients": (Recipient(Address("bob", domain)),)}


def hosts(found: Exchangers | tuple[Outcome, ...]) -> list[str]:
    assert isinstance(found, Exchangers), found
    return [host.host.removesuffix(".example.test") for host in found.hosts]


def verdict(found: Exchangers | tuple[Outcome, ...]) -> tuple[Status, str]:
    assert isinstance(found, tuple), found
    (outcome,) = found
    assert outcome.route in outcome.text or "looking up" in outcome.text
    return outcome.status, outcome.enhanced


# With a real name server


@pytest.mark.servers
@ensureDeferred
async def test_the_preferred_exchanger_comes_first_and_ipv6_before_ipv4(resolver: DnsResolver) -> None:
    assert await find(resolver, "example.test") == Exchangers(
        "example.test",
        (
            Exchanger("main.example.test", (ip_address("2001:db8::10"), ip_address("192.0.2.10")), 10),
            Exchanger("backup.example.test", (ip_address("192.0.2.20"),), 20),
        ),
    )


@pytest.mark.servers
@ensureDeferred
async def test_equal_exchangers_come_in_random_order(resolver: DnsResolver) -> None:
    """RFC 5321 §5.1."""
    firsts = {hosts(await find(resolver, "equal.example.test", shuffle=rotate(turn)))[0] for turn in range(3)}
    assert firsts == {"main", "backup", "six"}


@pytest.mark.servers
@ensureDeferred
@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("only-six", ["six"]),
        ("implicit", ["implicit"]),
        ("implicit-alias", ["implicit-alias"]),
        ("by-alias", ["main-alias"]),
        ("some-lost", ["backup"]),
        ("broken-first", ["backup"]),
        ("müller", ["main"]),
    ],
)
async def test_who_is_found(resolver: DnsResolver, domain: str, expected: list[str]) -> None:
    assert hosts(await find(resolver, f"{domain}.example.test")) == expected


@pytest.mark.servers
@ensureDeferred
@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("null.example.test", (FAILED, "5.1.10")),
        ("nowhere.example.test", (FAILED, "5.1.2")),
        ("two..dots.test", (FAILED, "5.1.2")),
        ("no-way.example.test", (FAILED, "5.4.4")),
        ("all-lost.example.test", (FAILED, "5.4.4")),
        ("unusable.example.test", (FAILED, "5.4.4")),
        ("broken.test", (DEFERRED, "4.4.3")),
        ("refused.test", (DEFERRED, "4.4.3")),
        ("half-lost.example.test", (DEFERRED, "4.4.3")),
    ],
)
async def test_what_it_means_that_nobody_is_found(
    resolver: DnsResolver, domain: str, expected: tuple[Status, str]
) -> None:
    """RFC 7505 §3, RFC 5321 §5.1."""
    assert verdict(await find(resolver, domain)) == expected


# This host itself


@pytest.mark.servers
@ensureDeferred
@pytest.mark.parametrize(
    "own",
    [
        {"names": ("ME.example.test.",)},
        {"addresses": (("127.0.0.1", 25),)},
        {"addresses": (("0.0.0.0", 25),)},
        {"addresses": (("::", 25), ("192.0.2.99", 2525))},
        {"addresses": (("::ffff:127.0.0.1", 25),)},
    ],
)
async def test_this_host_and_who_is_no_better_are_left_out(resolver: DnsResolver, own: Any) -> None:
    """RFC 5321 §5.1: mail may only come nearer to its domain."""
    assert hosts(await find(resolver, "backed-by-me.example.test", **own)) == ["main"]
    assert verdict(await find(resolver, "mine.example.test", **own)) == (FAILED, "5.4.6")
    assert verdict(await find(resolver, "me.example.test", **own)) == (FAILED, "5.4.6")
    assert verdict(await find(resolver, "lost-but-me.example.test", **own)) == (FAILED, "5.4.6")
    # A better host could not be looked up, and may take it later.
    assert verdict(await find(resolver, "broken-but-me.example.test", **own)) == (DEFERRED, "4.4.3")


@pytest.mark.servers
@ensureDeferred
async def test_another_server_on_this_machine_is_not_this_one(resolver: DnsResolver) -> None:
    elsewhere = (("127.0.0.1", 2525), ("192.0.2.10", 2525))
    assert hosts(await find(resolver, "mine.example.test", addresses=elsewhere)) == ["me", "main"]


# Address literals


@ensureDeferred
@pytest.mark.parametrize(
    ("literal", "address"),
    [
        ("[192.0.2.1]", "192.0.2.1"),
        ("[IPv6:2001:db8::1]", "2001:db8::1"),
        ("[ipv6:2001:DB8::1]", "2001:db8::1"),
        ("[IPv6:::ffff:192.0.2.1]", "192.0.2.1"),
    ],
)
async def test_an_address_literal_is_its_own_exchanger(literal: str, address: str) -> None:
    """RFC 5321 §4.1.3."""
    found = await find(None, literal)
    assert found == Exchangers(literal, (Exchanger(literal, (ip_address(address),)),))


@ensureDeferred
@pytest.mark.parametrize(
    ("literal", "code"),
    [
        ("[192.0.2.300]", "5.1.2"),
        ("[IPv6:192.0.2.1]", "5.1.2"),
        ("[2001:db8::1]", "5.1.2"),
        ("[x400:something]", "5.1.2"),
        ("[", "5.1.2"),
        ("[]", "5.1.2"),
        ("[0.0.0.0]", "5.4.4"),
        ("[224.0.0.1]", "5.4.4"),
        ("[IPv6:fe80::1]", "5.4.4"),
        ("[127.0.0.1]", "5.4.6"),
        ("[IPv6:::ffff:127.0.0.1]", "5.4.6"),
    ],
)
async def test_an_address_literal_of_no_other_host_fails(literal: str, code: str) -> None:
    assert verdict(await find(None, literal, addresses=(("127.0.0.1", 25),))) == (FAILED, code)


# Bounds and order, without DNS


class Book:
    """What DNS would say, written down; ``asked`` are the hosts whose addresses were wanted."""

    def __init__(self, records: list[tuple[int, str]], addresses: dict[str, Any]) -> None:
        self._records = tuple(MailExchanger(preference, host) for preference, host in records)
        self._addresses = addresses
        self.asked: list[str] = []

    async def mail_exchangers(self, domain: str) -> tuple[MailExchanger, ...]:
        return self._records

    async def addresses(self, host: str) -> tuple[IPAddress, ...]:
        self.asked.append(host)
        said = self._addresses[host]
        if isinstance(said, Exception):
            raise said
        return tuple(ip_address(address) for address in said)


def rotate(turns: int) -> Any:
    def shuffle(items: list[Any]) -> None:
        items[:] = items[turns % max(1, len(items)) :] + items[: turns % max(1, len(items))]

    return shuffle


def done(coroutine: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    (result,) = results
    return result


def test_only_so_many_hosts_and_addresses_are_tried() -> None:
    many = [f"192.0.2.{n}" for n in range(1, 50)] + [f"2001:db8::{n}" for n in range(1, 50)]
    book = Book([(n, f"h{n}") for n in range(100)], {f"h{n}": many for n in range(100)})
    found = done(find(book, "d.test"))
    assert hosts(found) == [f"h{n}" for n in range(MOST_TRIED)]
    assert book.asked == [f"h{n}" for n in range(MOST_TRIED)]
    for host in found.hosts:
        assert [address.version for address in host.addresses] == [6] * MOST_ADDRESSES + [4] * MOST_ADDRESSES


def test_only_so_many_records_are_looked_at() -> None:
    book = Book([(n, f"h{n}") for n in range(100)], {f"h{n}": NoSuchDomain("gone") for n in range(100)})
    assert verdict(done(find(book, "d.test"))) == (FAILED, "5.4.4")
    assert len(book.asked) == MOST_LOOKED_AT


def test_this_host_among_many_equal_ones_leaves_out_all_of_them() -> None:
    addresses = {f"h{n}": [f"192.0.2.{n}"] for n in range(1, 12)}
    book = Book([(10, f"h{n}") for n in range(1, 12)], addresses)
    found = done(find(book, "d.test", addresses=(("192.0.2.11", 25),)))
    assert verdict(found) == (FAILED, "5.4.6")


def test_the_addresses_of_a_host_are_shuffled_within_their_kind() -> None:
    book = Book([(10, "h")], {"h": ["2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2"]})
    found = done(find(book, "d.test", shuffle=lambda items: items.reverse()))
    assert [str(a) for a in found.hosts[0].addresses] == [
        "2001:db8::2",
        "2001:db8::1",
        "192.0.2.2",
        "192.0.2.1",
    ]


_OWN = "192.0.2.200"
_said = st.sampled_from(
    [["192.0.2.1"], ["2001:db8::1", "192.0.2.2"], [_OWN], [], NoSuchDomain("gone"), ResolverTrouble("slow")]
)


@given(st.lists(st.tuples(st.integers(0, 3), _said), min_size=1, max_size=12), st.randoms())
def test_no_order_or_mixture_lets_mail_go_back_or_be_failed_in_doubt(
    entries: list[tuple[int, Any]], random: Any
) -> None:
    book = Book(
        [(preference, f"h{n}") for n, (preference, _) in enumerate(entries)],
        {f"h{n}": said for n, (_, said) in enumerate(entries)},
    )
    found = done(find(book, "d.test", addresses=((_OWN, 25),), shuffle=random.shuffle))
    limit = min((preference for preference, said in entries if said == [_OWN]), default=99)
    better = [(preference, said) for preference, said in entries if preference < limit]
    usable = sorted(preference for preference, said in better if isinstance(said, list) and said)
    if usable:
        assert [host.preference for host in found.hosts] == usable[:MOST_TRIED]
    elif any(isinstance(said, ResolverTrouble) for _, said in better):
        assert (found[0].status, found[0].enhanced) == (DEFERRED, "4.4.3")
    else:
        assert (found[0].status, found[0].enhanced) == (FAILED, "5.4.4" if limit == 99 else "5.4.6")


# Which addresses are this machine's


def test_this_machine_knows_its_own_addresses() -> None:
    assert is_of_this_machine(ip_address("127.0.0.1"))
    assert is_of_this_machine(ip_address("127.9.9.9"))
    assert is_of_this_machine(ip_address("::1"))
    for foreign in ("192.0.2.1", "198.51.100.7", "2001:db8::1"):
        assert not is_of_this_machine(ip_address(foreign))
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 25))
        except OSError:
            return  # no network at all
        assert is_of_this_machine(ip_address(sock.getsockname()[0]))


# Addresses that are refused


class Described:
    """A resolver that answers from tables."""

    def __init__(self, exchangers: dict[str, int], addresses: dict[str, list[str]]) -> None:
        self._exchangers = exchangers
        self._addresses = addresses

    async def mail_exchangers(self, domain: str) -> tuple[MailExchanger, ...]:
        return tuple(MailExchanger(preference, host) for host, preference in self._exchangers.items())

    async def addresses(self, host: str) -> tuple[IPAddress, ...]:
        return tuple(ip_address(text) for text in self._addresses[host])


async def find_refusing(resolver: Any, domain: str = "example.com") -> Exchangers | tuple[Outcome, ...]:
    return await find_exchangers(
        resolver,
        domain,
        own_names=(),
        own_addresses=(),
        refuse_networks=DEFAULT_REFUSED_NETWORKS,
        shuffle=unshuffled,
        **described(domain),
    )


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["0.0.0.0"],
        ["169.254.169.254", "fe80::1"],
        ["100.64.0.1"],
        ["127.1.2.3", "::1", "64:ff9b:1::7f00:1"],
    ],
)
@ensureDeferred
async def test_a_domain_whose_hosts_are_all_refused_fails_with_words(addresses: list[str]) -> None:
    found = await find_refusing(Described({"mx.example.com": 10}, {"mx.example.com": addresses}))
    assert isinstance(found, tuple)
    assert (found[0].status, found[0].enhanced) == (FAILED, "5.4.4")


@ensureDeferred
async def test_the_words_name_the_host_its_address_and_the_network() -> None:
    found = await find_refusing(Described({"mx.example.com": 10}, {"mx.example.com": ["127.0.0.5"]}))
    assert isinstance(found, tuple)
    assert "mx.example.com has the address 127.0.0.5, which is in 127.0.0.0/8" in found[0].text


@ensureDeferred
async def test_beside_a_refused_address_and_a_refused_host_the_others_are_used() -> None:
    resolver = Described(
        {"a.example.com": 10, "b.example.com": 20},
        {"a.example.com": ["127.0.0.1"], "b.example.com": ["::1", "192.0.2.1", "::ffff:127.0.0.1"]},
    )
    found = await find_refusing(resolver)
    assert isinstance(found, Exchangers)
    assert found.hosts == (Exchanger("b.example.com", (ip_address("192.0.2.1"),), 20),)


@pytest.mark.parametrize(
    "literal", ["[127.0.0.1]", "[IPv6:::1]", "[IPv6:::ffff:127.0.0.1]", "[IPv6:64:ff9b::7f00:1]"]
)
@ensureDeferred
async def test_a_literal_of_a_refused_address_fails(literal: str) -> None:
    found = await find_refusing(Described({}, {}), literal)
    assert isinstance(found, tuple)
    assert found[0].status is FAILED
