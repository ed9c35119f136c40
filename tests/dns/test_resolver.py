"""The resolver against a real authoritative server, NSD."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor

from elemta.dns import NULL_MX, MailExchanger
from elemta.dns.resolver import DnsResolver
from elemta.errors import NoSuchDomain, ResolverTrouble
from elemta.runtime import Runtime
from tests.support.nameservers import Nsd

pytestmark = pytest.mark.servers

_MANY = "\n".join(f"many MX {number} a-long-name-of-host-number-{number:04}" for number in range(200))

_ZONE = f"""
@ MX 20 second
@ MX 10 First
@ MX 20 another
null MX 0 .
half-null MX 0 .
half-null MX 10 first
nameless MX 10 not\\032a\\032host
bare A 192.0.2.9
first A 192.0.2.1
first A 192.0.2.2
first AAAA 2001:db8::1
six AAAA 2001:db8::6
alias CNAME chained
chained CNAME first
alias-away CNAME host.other.test.
alias-nowhere CNAME nowhere
alias-to-text CNAME txt
loop CNAME pool
pool CNAME loop
txt TXT "v=spf1 " "-all"
txt TXT "gr\\195\\188n"
1.2.0.192.in-addr A 192.0.2.1
xn--mller-kva MX 10 first
broken-away CNAME host.broken.test.
{_MANY}
"""

_REVERSE = """
1 PTR First.example.test.
2 PTR not\\032a\\032host.
2 PTR second.example.test.
"""


@pytest.fixture(scope="module")
def nsd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nsd]:
    zones = {
        "example.test": _ZONE,
        "other.test": "host A 192.0.2.77",
        "2.0.192.in-addr.arpa": _REVERSE,
        "8.b.d.0.1.0.0.2.ip6.arpa": f"{'1' + '.0' * 23} PTR six.example.test.",
    }
    server = Nsd(tmp_path_factory.mktemp("nsd"), zones, broken=("broken.test",)).start()
    yield server
    server.stop()


@pytest_twisted.async_yield_fixture
async def resolver(nsd: Nsd) -> AsyncIterator[DnsResolver]:
    resolver = DnsResolver(Runtime.of(reactor), nameservers=[nsd.address])  # type: ignore[arg-type]
    resolver.start()
    yield resolver
    await resolver.stop()


@ensureDeferred
async def test_mail_exchangers_come_with_the_preferred_first(resolver: DnsResolver) -> None:
    assert await resolver.mail_exchangers("example.test") == (
        MailExchanger(10, "first.example.test"),
        MailExchanger(20, "another.example.test"),
        MailExchanger(20, "second.example.test"),
    )


@ensureDeferred
async def test_a_domain_without_mx_records_has_none_and_exists(resolver: DnsResolver) -> None:
    assert await resolver.mail_exchangers("bare.example.test") == ()


@ensureDeferred
async def test_a_null_mx_is_a_value_of_its_own(resolver: DnsResolver) -> None:
    """RFC 7505 §3."""
    assert await resolver.mail_exchangers("null.example.test") == (NULL_MX,)


@ensureDeferred
async def test_a_null_mx_beside_others_is_passed_over(resolver: DnsResolver) -> None:
    found = await resolver.mail_exchangers("half-null.example.test")
    assert found == (MailExchanger(10, "first.example.test"),)


@ensureDeferred
async def test_a_domain_whose_mx_names_no_possible_host_is_not_its_own_exchanger(
    resolver: DnsResolver,
) -> None:
    with pytest.raises(NoSuchDomain, match="name no possible host"):
        await resolver.mail_exchangers("nameless.example.test")


@ensureDeferred
async def test_a_name_that_does_not_exist_is_told_from_one_without_such_records(
    resolver: DnsResolver,
) -> None:
    for ask in (resolver.mail_exchangers, resolver.addresses, resolver.text):
        with pytest.raises(NoSuchDomain, match=r"nowhere\.example\.test does not exist"):
            await ask("nowhere.example.test")
    assert await resolver.addresses("txt.example.test") == ()
    assert await resolver.text("first.example.test") == ()


@ensureDeferred
async def test_addresses_have_ipv6_first(resolver: DnsResolver) -> None:
    found = await resolver.addresses("first.example.test")
    assert found[0] == ip_address("2001:db8::1")
    assert set(found[1:]) == {ip_address("192.0.2.1"), ip_address("192.0.2.2")}
    assert await resolver.addresses("six.example.test") == (ip_address("2001:db8::6"),)
    assert await resolver.addresses("bare.example.test") == (ip_address("192.0.2.9"),)


@ensureDeferred
async def test_aliases_are_followed_within_an_answer_and_beyond_it(resolver: DnsResolver) -> None:
    assert ip_address("192.0.2.1") in await resolver.addresses("alias.example.test")
    assert await resolver.addresses("alias-away.example.test") == (ip_address("192.0.2.77"),)
    assert await resolver.text("alias-to-text.example.test") == await resolver.text("txt.example.test")


@ensureDeferred
async def test_an_alias_of_what_does_not_exist_does_not_exist(resolver: DnsResolver) -> None:
    """RFC 5321 §5.1: the name that a CNAME leads to is taken as if it were the first."""
    with pytest.raises(NoSuchDomain):
        await resolver.mail_exchangers("alias-nowhere.example.test")


@ensureDeferred
@pytest.mark.parametrize("name", ["loop.example.test", "broken-away.example.test"])
async def test_an_alias_that_leads_to_nothing_usable_is_trouble(resolver: DnsResolver, name: str) -> None:
    with pytest.raises(ResolverTrouble):
        await resolver.addresses(name)


@ensureDeferred
async def test_servfail_is_trouble_and_names_the_server(resolver: DnsResolver, nsd: Nsd) -> None:
    with pytest.raises(ResolverTrouble) as raised:
        await resolver.mail_exchangers("broken.test")
    assert str(raised.value) == f"looking up MX of broken.test: 127.0.0.1:{nsd.port}: SERVFAIL"


@ensureDeferred
async def test_a_server_that_refuses_is_trouble(resolver: DnsResolver) -> None:
    with pytest.raises(ResolverTrouble, match="REFUSED"):
        await resolver.addresses("elsewhere.test")


@ensureDeferred
async def test_an_answer_too_long_for_udp_comes_over_tcp(resolver: DnsResolver) -> None:
    found = await resolver.mail_exchangers("many.example.test")
    assert [exchanger.preference for exchanger in found] == list(range(200))


@ensureDeferred
async def test_the_strings_of_a_text_are_put_together(resolver: DnsResolver) -> None:
    assert set(await resolver.text("txt.example.test")) == {"v=spf1 -all", "grün"}


@ensureDeferred
async def test_an_address_has_the_names_that_its_owner_gives_it(resolver: DnsResolver) -> None:
    assert await resolver.reverse("192.0.2.1") == ("first.example.test",)
    assert await resolver.reverse("::ffff:192.0.2.1") == ("first.example.test",)
    assert await resolver.reverse(ip_address("192.0.2.2")) == ("second.example.test",)
    assert await resolver.reverse("2001:db8::1") == ("six.example.test",)
    with pytest.raises(NoSuchDomain):
        await resolver.reverse("192.0.2.3")
    with pytest.raises(ValueError, match="192"):
        await resolver.reverse("192.0.2.300")


@ensureDeferred
@pytest.mark.parametrize(
    "spelling", ["müller.example.test", "MÜLLER.Example.TEST.", "xn--mller-kva.example.test"]
)
async def test_every_spelling_of_a_domain_is_the_same_name(resolver: DnsResolver, spelling: str) -> None:
    """RFC 5890 §2.3.2.1."""
    assert await resolver.mail_exchangers(spelling) == (MailExchanger(10, "first.example.test"),)


@ensureDeferred
async def test_the_server_of_the_system_is_asked_without_any_other(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    # There is no listener, so that it says so at once.
    conf.write_text("search example.test\nnameserver 127.255.255.254\n")
    resolver = DnsResolver(Runtime.of(reactor), resolv_conf=str(conf))  # type: ignore[arg-type]
    resolver.start()
    with pytest.raises(ResolverTrouble, match=r"A of host: 127\.255\.255\.254: connection refused"):
        await resolver.addresses("host")
    await resolver.stop()
