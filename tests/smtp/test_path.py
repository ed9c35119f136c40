"""Addresses are what the grammar says, at every edge.

RFC 5321 §4.1.2, RFC 5321 §4.1.3, RFC 5321 §4.5.3.1.1, RFC 5321 §4.5.3.1.2, RFC 5321 §4.5.3.1.3, RFC 5321 §C,
RFC 5321 §4.5.5, RFC 6531 §3.3, RFC 5890 §2.3.2.1.
"""

from __future__ import annotations

import re
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from elemta.address import NULL, Address
from elemta.errors import AddressSyntaxError
from elemta.smtp import path as paths
from elemta.smtp.path import parse_address, parse_domain, parse_forward_path, parse_reverse_path


@pytest.mark.parametrize(
    ("text", "local", "domain"),
    [
        ("a@b.c", "a", "b.c"),
        ("a.b+c@B.C", "a.b+c", "b.c"),
        ("A@b", "A", "b"),
        ("!#$%&'*+-/=?^_`{|}~@b", "!#$%&'*+-/=?^_`{|}~", "b"),
        ('"a b"@c', "a b", "c"),
        ('"a\\"b\\\\c"@d', 'a"b\\c', "d"),
        ('"abc"@d', "abc", "d"),
        ('"<a>"@d', "<a>", "d"),
        ("a@[192.0.2.1]", "a", "[192.0.2.1]"),
        ("a@[IPv6:2001:DB8:0::1]", "a", "[IPv6:2001:db8::1]"),
        ("a@[ipv6:::ffff:192.0.2.1]", "a", None),
        ("a@xn--bcher-kva.test", "a", "xn--bcher-kva.test"),
        ("a@BÜCHER.test", "a", "bücher.test"),
        ("用户@例子.测试", "用户", "例子.测试"),
        ("a@1.2.3.4", "a", "1.2.3.4"),
        ("a@b--c.d", "a", "b--c.d"),
    ],
)
def test_what_an_address_is(text: str, local: str, domain: str | None) -> None:
    address = parse_address(text)
    assert address.local == local
    if domain is not None:
        assert address.domain == domain


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("a%b@c", Address("a%b", "c")),
        ("a!b@c", Address("a!b", "c")),
        ("x!y%z@c", Address("x!y%z", "c")),
        ('"a@b"@c', Address("a@b", "c")),
        ('"a@b"@c.', Address("a@b", "c")),
        ("@x:a@b", Address("a", "b")),
        ("@x,@y.z:a@b", Address("a", "b")),
        ("@x,@[192.0.2.1],@[IPv6:::1]:a%c@b", Address("a%c", "b")),
        ("a@b.", Address("a", "b")),
        ("a@B.C.", Address("a", "b.c")),
    ],
)
def test_relay_address_forms_are_taken_for_what_they_are(path: str, address: Address) -> None:
    assert parse_forward_path(path, "home.test") == address
    assert parse_reverse_path(path) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "@b",
        "a@",
        "a@b@c",
        "a@.",
        "a@.b",
        "a@b..",
        "a@b..c",
        ".a@b",
        "a.@b",
        "a..b@c",
        "a b@c",
        "a@b c",
        "a@b_c",
        "a@-b",
        "a@b-",
        "a@b-.c",
        "a@b/c",
        "a@b:c",
        "a,b@c",
        "a:b@c",
        "a;b@c",
        "(a)@c",
        "<a@b>",
        'a"b@c',
        '"a@b',
        '"a"b@c',
        '"a"',
        '""@b',
        '"a"b"@c',
        '"a\\"@b',
        '"a\nb"@c',
        '"a\\\nb"@c',
        '"a\x00b"@c',
        "a\r\nb@c",
        "a\x00@c",
        "a@c\n",
        "a@c\x00",
        "a@[192.0.2.1",
        "a@[192.0.2.256]",
        "a@[192.0.2.01]",
        "a@[192.0.2]",
        "a@[]",
        "a@[IPv6:]",
        "a@[IPv6:1::2::3]",
        "a@[IPv6:fe80::1%eth0]",
        "a@[2001:db8::1]",
        "a@[x400:abc]",
        "a@[192.0.2.1].",
        "a@[192.0.2.1]b",
        "\u0085@b",
        "a\u202eb@c",
        "a\u2028b@c",
        "a\ud800@b",
        "a@\ud800",
        "a@b\u3002c",
        "a@b\uff0ec",
        "a@\uff42.c",
        "a@ü_b.c",
        "a@-ü.c",
        "a@ü..c",
        "a@ü b.c",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(AddressSyntaxError):
        parse_address(text)


@pytest.mark.parametrize(
    "path",
    [
        "@x",
        "@x:",
        "@:a@b",
        "@x,:a@b",
        "@x,y:a@b",
        "@x;a@b",
        "@x_y:a@b",
        "@x:@y:a@b",
        "@x: a@b",
        "@[x]:a@b",
        "x:a@b",
    ],
)
def test_what_is_no_source_route(path: str) -> None:
    with pytest.raises(AddressSyntaxError):
        parse_forward_path(path, "home.test")


def test_the_null_path_is_for_senders_only() -> None:
    assert parse_reverse_path("") == NULL
    with pytest.raises(AddressSyntaxError):
        parse_forward_path("", "home.test")


def test_a_bare_postmaster_is_for_recipients_only() -> None:
    assert parse_forward_path("POSTmaster", "home.test") == Address("postmaster", "home.test")
    for path in ("postmaster", "Postmaster"):
        with pytest.raises(AddressSyntaxError):
            parse_reverse_path(path)


def domain_of(octets: int) -> str:
    """A domain of this many octets in labels of at most 63."""
    full, rest = divmod(octets, 64)
    labels = ["x" * 63] * full
    return ".".join([*labels, "x" * rest]) if rest else ".".join(labels) + "y"


def accepted(text: str) -> bool:
    try:
        parse_address(text)
    except AddressSyntaxError:
        return False
    return True


def test_a_local_part_has_64_octets_and_not_one_more() -> None:
    for letter, octets in (("a", 1), ("é", 2), ("用", 3)):
        count = 64 // octets
        fits = letter * count + "a" * (64 - count * octets)
        assert accepted(fits + "@b")
        assert not accepted(fits + "a@b")
    assert accepted('"' + " " * 64 + '"@b')
    assert not accepted('"' + " " * 65 + '"@b')


def test_a_label_has_63_octets_and_not_one_more() -> None:
    assert accepted("a@" + "x" * 63 + ".test")
    assert not accepted("a@" + "x" * 64 + ".test")
    # What counts for a U-label is its A-label
    u_label = "ü" + "x" * 53
    assert len("xn--" + u_label.encode("punycode").decode()) < 63
    assert accepted(f"a@{u_label}.test")
    assert not accepted(f"a@{'ü' + 'x' * 63}.test")


def test_a_domain_has_255_octets_and_not_one_more() -> None:
    at_limit = ".".join(["x" * 63] * 3 + ["x" * 63])
    assert len(at_limit) == 255
    assert parse_domain(at_limit) == at_limit
    with pytest.raises(AddressSyntaxError):
        parse_domain(at_limit[:-1] + ".xx")


def test_a_path_has_254_octets_and_not_one_more() -> None:
    local = "a" * 10
    rest = 254 - len(local) - 1
    at_limit = ".".join(["x" * 60] * 3 + ["x" * (rest - 183)])
    assert len(f"{local}@{at_limit}") == 254
    assert accepted(f"{local}@{at_limit}")
    assert not accepted(f"{local}b@{at_limit}")
    routed = f"@{'x' * 60}:"
    address = f"{local}@" + ".".join(["x" * 60] * 2 + ["x" * (rest - 122 - len(routed))])
    assert len(routed + address) == 254
    assert parse_forward_path(routed + address, "h")
    with pytest.raises(AddressSyntaxError):
        parse_forward_path(routed + "b" + address, "h")


letters = st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Cf", "Cn", "Co", "Zl", "Zp", "Zs"])
ascii_locals = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=64)
locals_ = st.one_of(ascii_locals, st.text(letters, min_size=1, max_size=16))
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
domains = st.one_of(
    st.lists(labels, min_size=1, max_size=4).map(".".join),
    st.ip_addresses(v=4).map(lambda ip: f"[{ip}]"),
    st.ip_addresses(v=6).map(lambda ip: f"[IPv6:{ip}]"),
)


@given(locals_, domains)
def test_every_address_is_read_back_from_its_text(local: str, domain: str) -> None:
    address = Address(local, domain)
    assert parse_address(str(address)) == address


@given(st.text(alphabet='aZ9@@.-_+"é[] ', max_size=70))
@example("a@" + "b" * 64)
@example("a" * 65 + "@b")
@example("a@b--c.d")
@example("a@-b")
@example("a@b.")
def test_an_ordinary_address_is_read_as_any_other(text: str) -> None:
    with mock.patch.object(paths, "_ORDINARY", re.compile(r"(?!)")):
        try:
            expected = parse_address(text)
        except AddressSyntaxError:
            expected = None
    try:
        found = parse_address(text)
    except AddressSyntaxError:
        found = None
    assert found == expected


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_an_error_and_addresses_are_stable(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressSyntaxError:
        return
    again = str(address)
    assert parse_address(again) == address
    assert not any(char in again for char in "\r\n\0")
    assert len(again.encode()) <= 254


@given(st.text(alphabet='a@b.<>"\\%![]:,-é ', max_size=24))
def test_text_made_of_punctuation_is_an_address_or_an_error(text: str) -> None:
    for parse in (parse_address, parse_reverse_path, lambda t: parse_forward_path(t, "h")):
        try:
            address = parse(text)
        except AddressSyntaxError:
            continue
        assert not address or parse_address(str(address)) == address
