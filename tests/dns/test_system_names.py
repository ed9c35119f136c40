"""A host by the name that an operator gave it: the hosts file, then DNS with the search list."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elemta.delivery.happy_eyeballs import NextHopUnreachableError, look_up
from elemta.dns.resolver import DnsResolver
from elemta.dns.system_names import SearchList, SystemNames, addresses_in
from elemta.domains import canonical_domain
from elemta.errors import NoSuchDomain, ResolverTrouble
from elemta.runtime import Runtime
from tests.support.nameservers import Nsd

FOUR, SIX = ip_address("192.0.2.1"), ip_address("2001:db8::1")
HOSTS = (
    "# 192.0.2.99 hub",
    "192.0.2.1  Hub.Example.test hub  # the hub",
    "2001:db8::1\thub",
    "192.0.2.1 hub",
    "nonsense   hub",
    "fe80::1%eth0 hub2",
    "192.0.2.7",
    "",
)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("hub", (FOUR, SIX)),
        ("HUB", (FOUR, SIX)),
        ("hub.", (FOUR, SIX)),
        ("hub.example.test", (FOUR,)),
        ("192.0.2.7", ()),
        ("the", ()),
        ("example.test", ()),
    ],
)
def test_what_a_hosts_file_says_of_a_name(name: str, found: tuple[Any, ...]) -> None:
    assert addresses_in(HOSTS).get(canonical_domain(name), ()) == found


@pytest.mark.parametrize(
    ("lines", "host", "names"),
    [
        ((), "hub", ("hub",)),
        (("search a.test b.test.",), "hub", ("hub.a.test", "hub.b.test", "hub")),
        (("search a.test",), "hub.x", ("hub.x", "hub.x.a.test")),
        (("search a.test",), "hub.x.", ("hub.x.",)),
        (("search a.test", "options ndots:5 timeout:1"), "hub.x", ("hub.x.a.test", "hub.x")),
        (("search a.test", "domain b.test"), "hub", ("hub.b.test", "hub")),
        (("search a.test", "options ndots:many"), "hub.x", ("hub.x", "hub.x.a.test")),
        (
            ("search " + " ".join(f"d{n}.test" for n in range(9)),),
            "h",
            (*(f"h.d{n}.test" for n in range(6)), "h"),
        ),
    ],
)
def test_which_names_a_search_list_makes(lines: tuple[str, ...], host: str, names: tuple[str, ...]) -> None:
    assert SearchList.of(lines).names(host) == names


class Zone:
    """Answers from a table; counts what it was asked."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.known = known
        self.asked: list[str] = []

    async def addresses(self, host: str) -> tuple[Any, ...]:
        self.asked.append(host)
        found = self.known.get(host, NoSuchDomain(f"{host} does not exist"))
        if isinstance(found, Exception):
            raise found
        if found is None:
            await Deferred()
        return tuple(found)


class Place:
    """Files of a system, and what is found there."""

    def __init__(self, directory: Path, known: Mapping[str, Any] | None = None) -> None:
        self.clock = Clock()
        self.hosts = directory / "hosts"
        self.resolv_conf = directory / "resolv.conf"
        self.zone = Zone(known or {})
        self.names = SystemNames(
            self.zone, self.clock.seconds, hosts=str(self.hosts), resolv_conf=str(self.resolv_conf)
        )


@ensureDeferred
async def test_a_name_in_the_hosts_file_is_never_asked_for_and_a_change_is_seen(tmp_path: Path) -> None:
    place = Place(tmp_path, {"hub": [SIX]})
    place.hosts.write_text("192.0.2.1 hub\n")
    assert await place.names.addresses("hub") == (FOUR,)
    assert place.zone.asked == []
    place.hosts.unlink()
    place.clock.advance(5)
    assert await place.names.addresses("hub") == (SIX,)


@ensureDeferred
async def test_localhost_is_this_host_whatever_dns_says(tmp_path: Path) -> None:
    place = Place(tmp_path, {"localhost": [FOUR]})
    assert [str(each) for each in await place.names.addresses("localhost")] == ["::1", "127.0.0.1"]
    assert place.zone.asked == []


@ensureDeferred
async def test_a_short_name_is_looked_for_along_the_search_list(tmp_path: Path) -> None:
    place = Place(tmp_path, {"hub.b.test": [FOUR], "hub.a.test": []})
    place.resolv_conf.write_text("search a.test b.test\n")
    assert await place.names.addresses("hub") == (FOUR,)
    assert place.zone.asked == ["hub.a.test", "hub.b.test"]


@ensureDeferred
async def test_trouble_is_no_reason_to_take_another_name(tmp_path: Path) -> None:
    place = Place(tmp_path, {"hub.a.test": ResolverTrouble("no answer"), "hub": [FOUR]})
    place.resolv_conf.write_text("search a.test\n")
    with pytest.raises(NextHopUnreachableError, match="no answer"):
        await look_up(reactor, place.names, "hub", 5)


@ensureDeferred
async def test_a_lookup_that_does_not_end_is_given_up_and_literals_need_none(tmp_path: Path) -> None:
    place = Place(tmp_path, {"hub": None})
    assert await look_up(reactor, place.names, "2001:db8::1", 5) == [SIX]
    with pytest.raises(NextHopUnreachableError, match=r"within 0\.05 s"):
        await look_up(reactor, place.names, "hub", 0.05)


@ensureDeferred
async def test_a_name_that_is_nowhere_says_so(tmp_path: Path) -> None:
    place = Place(tmp_path, {"barren": []})
    with pytest.raises(NextHopUnreachableError, match="hub does not exist"):
        await look_up(reactor, place.names, "hub", 5)
    with pytest.raises(NextHopUnreachableError, match="no address"):
        await look_up(reactor, place.names, "barren", 5)


@pytest_twisted.async_yield_fixture
async def resolver(tmp_path: Path) -> AsyncIterator[DnsResolver]:
    zone = {"example.test": "hub A 192.0.2.1\nhub AAAA 2001:db8::1\n"}
    nsd = Nsd(tmp_path / "nsd", zone).start()
    resolver = DnsResolver(Runtime.of(reactor), nameservers=[nsd.address])  # type: ignore[arg-type]
    resolver.start()
    yield resolver
    await resolver.stop()
    nsd.stop()


@pytest.mark.servers
@ensureDeferred
async def test_named_next_hops_are_looked_up_with_the_capacity_of_deliveries_and_without_a_thread(
    tmp_path: Path, resolver: DnsResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_: Any, **__: Any) -> None:
        raise AssertionError("a thread was asked")

    monkeypatch.setattr(reactor, "callInThread", no_thread)
    monkeypatch.setattr(type(reactor.nameResolver), "resolveHostName", no_thread, raising=False)
    names = SystemNames(
        resolver.deliveries,
        reactor.seconds,
        hosts=str(tmp_path / "hosts"),
        resolv_conf=str(tmp_path / "resolv.conf"),
    )
    assert set(await look_up(reactor, names, "hub.example.test", 5)) == {FOUR, SIX}
    with pytest.raises(NextHopUnreachableError, match="does not exist"):
        await look_up(reactor, names, "nobody.example.test", 5)
