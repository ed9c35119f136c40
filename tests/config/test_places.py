"""Endpoints, targets of routes and URLs of Valkey: what is taken, and what is said about the rest."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import endpoints
from twisted.internet.testing import MemoryReactorClock

from elemta.config import RouteTarget, TargetKind, Unacceptable, parse_target
from elemta.config.endpoint import check_listener_endpoint
from elemta.config.names import check_domain
from elemta.config.target import TARGET_WORDS
from elemta.config.valkey_url import check_valkey_url


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp:25",
        "tcp:0",
        "tcp:port=25",
        "tcp:2525:interface=127.0.0.1",
        "tcp:25:192.0.2.1",
        "tcp:25:backlog=512:interface=192.0.2.1",
        r"tcp:25:interface=\:\:1",
        r"tcp6:25:interface=2001\:db8\:\:1",
        "unix:/run/elemta/smtp.sock",
        "unix:/run/elemta/smtp.sock:mode=660",
        "unix:address=/run/a:lockfile=0",
        "unix:/" + "x" * 106,
        r"unix:/run/with\:colon",
        "systemd:domain=INET:index=0",
        "systemd:INET6:1",
        "systemd:domain=UNIX:name=smtp",
    ],
)
def test_an_endpoint_that_twisted_takes_is_taken(endpoint: str) -> None:
    check_listener_endpoint(endpoint)
    if not endpoint.startswith("systemd:"):
        assert endpoints.serverFromString(MemoryReactorClock(), endpoint)


def test_an_endpoint_of_a_kind_that_another_package_brings_is_left_to_the_start() -> None:
    check_listener_endpoint("onion:25:controlPort=9051")


@pytest.mark.parametrize(
    ("endpoint", "problem", "hint"),
    [
        ("", 'must be an endpoint such as "tcp:25"', ""),
        ("tcp", 'must have one port from 0 to 65535, as in "tcp:25"', ""),
        ("tcp:", 'must have one port from 0 to 65535, as in "tcp:25"', ""),
        ("tcp:smtp", 'must have one port from 0 to 65535, as in "tcp:25"', ""),
        ("tcp:65536", 'must have one port from 0 to 65535, as in "tcp:25"', ""),
        ("tcp:٢٥", 'must have one port from 0 to 65535, as in "tcp:25"', ""),
        ("tcp:25:port=26", 'must have one port from 0 to 65535, as in "tcp:25"', ""),
        ("tcp:25:iface=::1", 'has the unknown argument "iface"', 'did you mean "interface"?'),
        (
            "tcp6:25:interface=::1",
            'must have an IP address as its interface, as in "tcp:25:interface=192.0.2.1"',
            r"the colons of an IPv6 address are escaped: interface=2001\:db8\:\:1",
        ),
        (
            "tcp:25:interface=localhost",
            'must have an IP address as its interface, as in "tcp:25:interface=192.0.2.1"',
            r"the colons of an IPv6 address are escaped: interface=2001\:db8\:\:1",
        ),
        ("unix:smtp.sock", 'must have an absolute path, as in "unix:/run/elemta/smtp.sock"', ""),
        ("unix:/" + "x" * 107, "must have a path of at most 107 octets", ""),
        ("unix:/" + "é" * 54, "must have a path of at most 107 octets", ""),
        (
            "unix:/run/a:mode=rw",
            'must have an octal mode, as in "unix:/run/elemta/smtp.sock:mode=660"',
            "",
        ),
        (
            "systemd:domain=INET",
            'must be like "systemd:domain=INET:index=0" or "systemd:domain=INET:name=smtp"',
            "",
        ),
        ("systemd:domain=INET:index=first", "must have a number as its index", ""),
        ("ssl:465", "must be the endpoint without TLS", 'write "tcp:…" and tls = "implicit"'),
        ("haproxy:tcp:25", "must be the endpoint itself", "name the load balancers in proxy_protocol_from"),
        (
            "tpc:25",
            'must be a Twisted server endpoint such as "tcp:25:interface=192.0.2.1"',
            'did you mean "tcp:25"?',
        ),
        (
            ":25",
            'must be a Twisted server endpoint such as "tcp:25:interface=192.0.2.1"',
            'did you mean "tcp:25"?',
        ),
        (
            "2525",
            'must be a Twisted server endpoint such as "tcp:25:interface=192.0.2.1"',
            'did you mean "tcp:2525"?',
        ),
        (
            "127.0.0.1:2525",
            'must be a Twisted server endpoint such as "tcp:25:interface=192.0.2.1"',
            'did you mean "tcp:2525:interface=127.0.0.1"?',
        ),
        (
            "inet:127.0.0.1:10031",
            'must be a Twisted server endpoint such as "tcp:25:interface=192.0.2.1"',
            'did you mean "tcp:10031:interface=127.0.0.1"?',
        ),
        (
            "inet:10031",
            'must be a Twisted server endpoint such as "tcp:25:interface=192.0.2.1"',
            'did you mean "tcp:10031"?',
        ),
        (
            "[::1]:25",
            'must be a Twisted server endpoint such as "tcp:25:interface=192.0.2.1"',
            r'did you mean "tcp:25:interface=\:\:1"?',
        ),
        ("tcp:25\\", "ends in a backslash, which must stand before a character", ""),
    ],
)
def test_an_endpoint_that_can_be_seen_to_be_wrong_is_refused(endpoint: str, problem: str, hint: str) -> None:
    with pytest.raises(Unacceptable) as caught:
        check_listener_endpoint(endpoint)
    assert (caught.value.problem, caught.value.hint) == (problem, hint)


@given(st.text(alphabet="tcp6unix:=\\/.25interface[]*", max_size=40) | st.text(max_size=20))
def test_no_text_makes_the_checks_fail_in_another_way(text: str) -> None:
    for check in (check_listener_endpoint, parse_target, check_valkey_url, check_domain):
        with contextlib.suppress(Unacceptable):
            check(text)
    for scheme in ("smtp://", "lmtp+unix://", "maildir:", "valkey://", "valkey+cluster://"):
        with contextlib.suppress(Unacceptable):
            parse_target(scheme + text)
        with contextlib.suppress(Unacceptable):
            check_valkey_url(scheme + text)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("smtp://relay.example:587", RouteTarget(TargetKind.SMTP, host="relay.example", port=587)),
        ("smtp://relay.example", RouteTarget(TargetKind.SMTP, host="relay.example", port=25)),
        ("smtp://mail_store:25/", RouteTarget(TargetKind.SMTP, host="mail_store", port=25)),
        ("smtp://[2001:db8::1]:25", RouteTarget(TargetKind.SMTP, host="2001:db8::1", port=25)),
        ("lmtp://127.0.0.1:24", RouteTarget(TargetKind.LMTP, host="127.0.0.1", port=24)),
        ("lmtp://[::1]", RouteTarget(TargetKind.LMTP, host="::1", port=24)),
        ("lmtp+unix:///run/dovecot/lmtp", RouteTarget(TargetKind.LMTP_UNIX, path="/run/dovecot/lmtp")),
        ("mx:", RouteTarget(TargetKind.MX)),
        ("hold:", RouteTarget(TargetKind.HOLD)),
        (
            "maildir:/var/mail/{domain}/{local}",
            RouteTarget(TargetKind.MAILDIR, path="/var/mail/{domain}/{local}"),
        ),
        ("maildir:/var/mail/all", RouteTarget(TargetKind.MAILDIR, path="/var/mail/all")),
    ],
)
def test_a_target_is_taken_apart(text: str, target: RouteTarget) -> None:
    assert parse_target(text) == target


FORMS = f"must be one of {TARGET_WORDS}"


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("", FORMS, ""),
        ("relay.example", FORMS, ""),
        ("relay.example:25", FORMS, 'did you mean "smtp://relay.example:25"?'),
        ("/var/mail", FORMS, 'did you mean "maildir:/var/mail"?'),
        ("http://relay.example", FORMS, ""),
        (
            "smtps://relay.example:465",
            FORMS,
            'did you mean "smtp://relay.example:465"? TLS is chosen with tls',
        ),
        ("unix:/run/lmtp", FORMS, 'did you mean "lmtp+unix:///run/lmtp"?'),
        ("smtp:relay.example:25", "must be like smtp://HOST:PORT", 'did you mean "smtp://relay.example:25"?'),
        ("lmtp:unix:/run/lmtp", "must be like lmtp://HOST:PORT", 'did you mean "lmtp+unix:///run/lmtp"?'),
        (
            "smtp://",
            "must be like smtp://HOST:PORT, with a host name or an address and a port from 1 to 65535",
            "",
        ),
        (
            "smtp://a b:25",
            "must be like smtp://HOST:PORT, with a host name or an address and a port from 1 to 65535",
            "",
        ),
        (
            "smtp://relay.example:0",
            "must be like smtp://HOST:PORT, with a host name or an address and a port from 1 to 65535",
            "",
        ),
        ("smtp://relay.example:99999", "must be like smtp://HOST:PORT, with a port from 1 to 65535", ""),
        ("smtp://me:pw@relay.example", "must be like smtp://HOST:PORT, without a user or password", ""),
        ("smtp://relay.example:25/x", "must be like smtp://HOST:PORT, with nothing after the port", ""),
        ("lmtp+unix://run/lmtp", "must be like lmtp+unix:///run/dovecot/lmtp", "three slashes and a path"),
        ("lmtp+unix:///", "must be like lmtp+unix:///run/dovecot/lmtp", "three slashes and a path"),
        ("mx", 'must be "mx:" and nothing more', 'did you mean "mx:"?'),
        ("hold:later", 'must be "hold:" and nothing more', 'did you mean "hold:"?'),
        (
            "maildir:mail/{local}",
            "must have an absolute path, such as maildir:/var/mail/{domain}/{local}",
            "",
        ),
        ("maildir:/var/{user}", "has {user}; only {domain} and {local} are replaced", ""),
        ("maildir:/var/{}", "has {}; only {domain} and {local} are replaced", ""),
        ("maildir:/var/{local!r}", "has {local}; only {domain} and {local} are replaced", ""),
        ("maildir:/var/{local.x}", "has {local.x}; only {domain} and {local} are replaced", ""),
        ("maildir:/var/{local", "has a brace that isn't closed; only {domain} and {local} are replaced", ""),
        ("maildir:/var/../{local}", "must have a path without ..", ""),
    ],
)
def test_a_target_that_is_none_is_refused(text: str, problem: str, hint: str) -> None:
    with pytest.raises(Unacceptable) as caught:
        parse_target(text)
    assert (caught.value.problem, caught.value.hint) == (problem, hint)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "valkey://127.0.0.1",
        "valkey://user:pass@db.example:6379/3",
        "valkeys://:pass@db.example",
        "redis://valkey_1:6379/",
        "rediss://[2001:db8::1]:6380/0",
        "unix:///run/valkey/valkey.sock",
        "unix://:pass@/run/valkey/valkey.sock",
        "valkey+sentinel://s1.example:26379,s2.example:26379/mymaster/0",
        "redis+cluster://n1.example:7000,n2.example:7000",
        "valkeys+cluster://:p@n1.example:7000/0",
    ],
)
def test_a_url_of_valkey_is_taken(url: str) -> None:
    check_valkey_url(url)


SCHEMES = (
    "must begin with valkey://, valkeys://, unix://, valkey+sentinel:// or valkey+cluster:// (redis… too)"
)


@pytest.mark.parametrize(
    ("url", "problem", "hint"),
    [
        ("127.0.0.1:6379", SCHEMES, ""),
        ("valky://db.example", SCHEMES, 'did you mean "valkey://"?'),
        ("http://db.example", SCHEMES, ""),
        ("valkey:db.example", SCHEMES, ""),
        ("valkey://", "must name a host, as in valkey://127.0.0.1:6379/0", ""),
        ("valkey://a b", "must name a host, as in valkey://127.0.0.1:6379/0", ""),
        ("valkey://[zz]", "must be a URL such as valkey://127.0.0.1:6379/0", ""),
        ("valkey://db.example:0", "must have a port from 1 to 65535", ""),
        ("valkey://db.example:70000", "must have a port from 1 to 65535", ""),
        ("valkey://db.example/first", "must have the number of a database after the slash, or nothing", ""),
        (
            "valkey://a.example,b.example",
            "must name one host",
            "several are for valkey+sentinel:// and valkey+cluster://",
        ),
        ("valkey+cluster://a.example/3", "must have no database: Valkey Cluster has only 0", ""),
        ("unix://run/valkey.sock", "must be like unix:///run/valkey/valkey.sock", "three slashes and a path"),
    ],
)
def test_a_url_that_no_valkey_can_have_is_refused(url: str, problem: str, hint: str) -> None:
    with pytest.raises(Unacceptable) as caught:
        check_valkey_url(url)
    assert (caught.value.problem, caught.value.hint) == (problem, hint)


@pytest.mark.parametrize(
    "domain",
    [
        "example.com",
        "Example.COM.",
        "localhost",
        "bücher.example",
        "xn--bcher-kva.example",
        "a_b.example",
        "[192.0.2.1]",
        "[IPv6:2001:db8::1]",
    ],
)
def test_a_mail_domain_is_taken(domain: str) -> None:
    check_domain(domain)


@pytest.mark.parametrize(
    "domain",
    [
        "",
        ".",
        "a..b",
        ".a",
        "-a.b",
        "a b",
        "a/b",
        "ü ü.example",
        "a" * 64,
        "a." * 200,
        "[1.2.3]",
        "[::1]",
        "[x]",
    ],
)
def test_what_is_no_mail_domain_is_refused(domain: str) -> None:
    with pytest.raises(Unacceptable):
        check_domain(domain)
