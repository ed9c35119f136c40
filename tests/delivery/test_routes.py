"""Which route a recipient's mail takes."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from elemta.address import Address
from elemta.config import DEFAULT_REFUSED_NETWORKS, AddressFamily, RouteConfig, RouteTLS, load
from elemta.delivery.maildir import maildir_path
from elemta.delivery.routes import (
    HoldRoute,
    MaildirRoute,
    MxRoute,
    NextHopRoute,
    RouteTable,
    route_of,
    routes_from_config,
)
from elemta.domains import Domains
from elemta.envelope import Recipient
from elemta.errors import ConfigError
from elemta.smtp.sasl import Credentials

CONFIG = """
[server]
hostname = "mx.example.com"
[domains]
local = ["example.com"]
[spool]
directory = "/var/spool/elemta"
"""


def table(tmp_path: Path, routes: str = "") -> RouteTable:
    path = tmp_path / "elemta.toml"
    path.write_text(CONFIG + routes)
    config = load(str(path), {})
    return RouteTable(routes_from_config(config, Domains.from_config(config.domains)))


def config_of(to: str, **more: object) -> RouteConfig:
    return RouteConfig(domains=("*",), to=to, **more)  # type: ignore[arg-type]


def test_without_routes_local_mail_goes_to_a_maildir_below_the_spool_and_other_mail_by_mx(
    tmp_path: Path,
) -> None:
    routes = table(tmp_path)
    local = routes.route(Address("Bob", "Example.COM"))
    assert isinstance(local, MaildirRoute)
    assert local.target == "maildir:/var/spool/elemta/mail/{domain}/{local}"
    assert (
        maildir_path(local.template, Address("Bob", "Example.COM"))
        == "/var/spool/elemta/mail/example.com/bob"
    )
    assert isinstance(routes.route(Address("x", "elsewhere.example")), MxRoute)


def test_the_first_route_that_matches_wins(tmp_path: Path) -> None:
    routes = table(
        tmp_path,
        """
[[route]]
domains = ["a.example", "b.example"]
to = "hold:"
[[route]]
domains = ["b.example", "c.example"]
to = "lmtp://127.0.0.1:24"
max_connections = 7
[[route]]
domains = ["*"]
to = "smtp://[2001:db8::1]:2525"
""",
    )
    assert isinstance(routes.route(Address("x", "b.example")), HoldRoute)
    lmtp = routes.route(Address("x", "C.EXAMPLE"))
    assert isinstance(lmtp, NextHopRoute)
    assert (lmtp.lmtp, lmtp.host, lmtp.port, lmtp.max_connections, lmtp.next_hop) == (
        True,
        "127.0.0.1",
        24,
        7,
        "127.0.0.1:24",
    )
    smtp = routes.route(Address("x", "example.com"))
    assert isinstance(smtp, NextHopRoute)
    assert (smtp.lmtp, smtp.next_hop, smtp.target) == (
        False,
        "[2001:db8::1]:2525",
        "smtp://[2001:db8::1]:2525",
    )


@pytest.mark.parametrize("domain", ["MÜNCHEN.example", "xn--mnchen-3ya.example", "münchen.example."])
def test_a_domain_matches_in_every_spelling(tmp_path: Path, domain: str) -> None:
    routes = table(tmp_path, '[[route]]\ndomains = ["münchen.example"]\nto = "hold:"\n')
    assert isinstance(routes.route(Address("x", domain)), HoldRoute)


def test_a_unix_socket_is_a_next_hop() -> None:
    route = route_of(config_of("lmtp+unix:///run/dovecot/lmtp"))
    assert isinstance(route, NextHopRoute)
    assert (route.path, route.lmtp, route.next_hop) == ("/run/dovecot/lmtp", True, "/run/dovecot/lmtp")


def test_a_route_says_whether_it_needs_tls_and_who_logs_in(tmp_path: Path) -> None:
    file = tmp_path / "smarthost"
    file.write_text("me@example.com:pa:ss\n")
    routes = table(
        tmp_path,
        f'''
[[route]]
domains = ["a.example"]
to = "smtp://mail.example:587"
tls = "require"
credentials = "{file}"
[[route]]
domains = ["b.example"]
to = "mx:"
tls = "require"
''',
    )
    route = routes.route(Address("x", "a.example"))
    assert isinstance(route, NextHopRoute)
    assert (route.tls, route.credentials) == (RouteTLS.REQUIRE, Credentials("me@example.com", b"pa:ss"))
    assert "pa:ss" not in repr(route)
    by_mx = routes.route(Address("x", "b.example"))
    assert isinstance(by_mx, MxRoute)
    assert by_mx.tls is RouteTLS.REQUIRE


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "can't be read: No such file or directory"),
        (b"", "must hold one line user:password"),
        (b"only-a-name\n", "must hold one line user:password"),
        (b":secret\n", "must hold one line user:password"),
        (b"me:\n", "must hold one line user:password"),
        (b"me:secret\nyou:secret\n", "without a second line"),
        (b"me:sec\0ret\n", "without control characters"),
        (b"m\xff:secret\n", "has a user name that is not UTF-8"),
        (b"me:" + b"secret" * 1000, "is longer than 4096 octets"),
    ],
)
def test_a_file_of_credentials_that_cannot_be_used_is_a_fault_that_does_not_tell_them(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    file = tmp_path / "smarthost"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        table(tmp_path, f'[[route]]\ndomains = ["*"]\nto = "smtp://mail.example"\ncredentials = "{file}"\n')
    (fault,) = caught.value.faults
    assert (fault.place, fault.key) == (str(file), "route[1].credentials")
    assert problem in fault.problem
    assert "secret" not in str(fault)


def test_a_template_keeps_its_literal_braces() -> None:
    route = route_of(config_of("maildir:/m/{{x}}/{domain}/{local}/Maildir"))
    assert isinstance(route, MaildirRoute)
    assert maildir_path(route.template, Address("b", "e.example")) == "/m/{x}/e.example/b/Maildir"


def test_many_domains_do_not_grow_the_memory_of_the_table(tmp_path: Path) -> None:
    routes = table(tmp_path)
    for i in range(10_000):
        routes.route(Address("x", f"d{i}.example"))
    assert len(routes._found) <= 4096


def test_a_message_is_held_from_the_start_only_when_every_route_says_hold(tmp_path: Path) -> None:
    routes = table(tmp_path, '[[route]]\ndomains = ["kept.example"]\nto = "hold:"\n')

    def reason(*domains: str) -> str | None:
        return routes.hold_reason([Recipient(Address("x", domain)) for domain in domains])

    assert reason("kept.example") == reason("kept.example", "KEPT.example") == "the route says hold:"
    assert reason("kept.example", "example.com") is None
    # This waits for a version that can deliver it: the delivery says so, as a warning.
    assert reason("elsewhere.example") is None


def test_mx_refuses_inner_networks_unless_the_route_says_otherwise(tmp_path: Path) -> None:
    elsewhere = Address("x", "elsewhere.example")
    for routes, refused in (
        ("", DEFAULT_REFUSED_NETWORKS),
        ('[[route]]\ndomains = ["*"]\nto = "mx:"\n', DEFAULT_REFUSED_NETWORKS),
        ('[[route]]\ndomains = ["*"]\nto = "mx:"\nrefuse_networks = []\n', ()),
        (
            '[[route]]\ndomains = ["*"]\nto = "mx:"\nrefuse_networks = ["10.0.0.0/8"]\n',
            (ip_network("10.0.0.0/8"),),
        ),
    ):
        route = table(tmp_path, routes).route(elsewhere)
        assert isinstance(route, MxRoute)
        assert route.refuse_networks == refused


def test_a_maildir_is_made_for_names_that_are_known_unless_the_route_says_otherwise(tmp_path: Path) -> None:
    recipients = tmp_path / "recipients"
    recipients.write_text("bob@example.com\n@whole.example\n")
    domains = f'[domains]\nlocal = ["example.com", "whole.example"]\nrecipients = "{recipients}"\n'
    text = CONFIG.replace('[domains]\nlocal = ["example.com"]\n', domains)
    path = tmp_path / "elemta.toml"
    names = {"bob@example.com": True, "Bob@Example.COM": True, "carl@example.com": False}
    names |= {"postmaster@example.com": True, "any@whole.example": True, "postmaster@foreign.example": False}
    route = '[[route]]\ndomains = ["*"]\nto = "maildir:/m/{domain}/{local}"\n'
    for more, makes_all in (("", False), (route, False), (f"{route}create_mailboxes = true\n", True)):
        path.write_text(text + more)
        config = load(str(path), {})
        found = RouteTable(routes_from_config(config, Domains.from_config(config.domains)))
        for name, makes in names.items():
            local, _, domain = name.partition("@")
            address = Address(local, domain)
            way = found.route(address)
            assert not isinstance(way, MaildirRoute) or way.makes(address) is (makes or makes_all), name


def test_a_maildir_may_be_below_the_spool_directory_whatever_that_is(tmp_path: Path) -> None:
    routes = table(tmp_path, '[[route]]\ndomains = ["*"]\nto = "maildir:{spool}/mail/{domain}/{local}"\n')
    route = routes.route(Address("bob", "example.com"))
    assert isinstance(route, MaildirRoute)
    path = maildir_path(route.template, Address("bob", "example.com"))
    assert path == "/var/spool/elemta/mail/example.com/bob"
    strange = route_of(config_of("maildir:{spool}/{local}"), spool="/a{b}/c")
    assert isinstance(strange, MaildirRoute)
    assert maildir_path(strange.template, Address("bob", "example.com")) == "/a{b}/c/bob"


@pytest.mark.parametrize(
    ("to", "tls", "port"),
    [
        ("smtp://mail.example", "implicit", 465),
        ("smtp://mail.example:4650", "implicit", 4650),
        ("smtp://mail.example:25", "implicit", 25),
        ("smtp://mail.example", "require", 25),
        ("lmtp://mail.example", "implicit", 24),
    ],
)
def test_tls_from_the_first_byte_has_a_port_of_its_own(tmp_path: Path, to: str, tls: str, port: int) -> None:
    routes = table(tmp_path, f'[[route]]\ndomains = ["*"]\nto = "{to}"\ntls = "{tls}"\n')
    route = routes.route(Address("x", "a.example"))
    assert isinstance(route, NextHopRoute)
    assert (route.port, route.tls.is_verified) == (port, True)


def test_a_route_says_how_its_connections_are_made(tmp_path: Path) -> None:
    text = '[[route]]\ndomains = ["*"]\nto = "{to}"\naddress_family = "prefer_ipv4"\n'
    text += 'source = ["192.0.2.7", "2001:db8::7"]\nignore_offers = ["chunking", "Size"]\n'
    for to in ("mx:", "smtp://mail.example:25"):
        route = table(tmp_path, text.format(to=to)).route(Address("x", "a.example"))
        assert isinstance(route, NextHopRoute | MxRoute)
        assert route.terms.ignored == {"CHUNKING", "SIZE"}
        assert route.terms.source_for(ip_address("198.51.100.1")) == ("192.0.2.7", 0)
        assert route.terms.source_for(ip_address("2001:db8::1")) == ("2001:db8::7", 0)
        assert route.terms.family is AddressFamily.PREFER_IPV4


def test_authorities_that_cannot_be_used_are_a_fault_of_the_configuration(tmp_path: Path) -> None:
    text = '[[route]]\ndomains = ["*"]\nto = "mx:"\ntls = "require"\nca = "/nowhere/ca.pem"\n'
    with pytest.raises(ConfigError, match=r"route\[1\]\.ca.*No such file"):
        table(tmp_path, text)
