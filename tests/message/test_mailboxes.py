"""The addresses in From and Sender: read in every spelling that RFC 5322 has, or not at all."""

from __future__ import annotations

from email.utils import getaddresses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.errors import AddressSyntaxError
from elemta.message.mailboxes import read_mailboxes


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        (b" anna@example.com\r\n", ["anna@example.com"]),
        (b"<anna@example.com>", ["anna@example.com"]),
        (b'"Anna B." <anna@example.com>', ["anna@example.com"]),
        (b"Anna B. C. <anna@example.com>", ["anna@example.com"]),
        (b"=?utf-8?q?boss=40corp=2Eexample?= <anna@example.com>", ["anna@example.com"]),
        (b'"boss@corp.example" <anna@example.com>', ["anna@example.com"]),
        (b"anna@example.com (boss@corp.example)", ["anna@example.com"]),
        (b"(a (nested \\) ) one) anna (x) @ (y) example . (z) com", ["anna@example.com"]),
        (b"anna@example.com, boss@corp.example", ["anna@example.com", "boss@corp.example"]),
        (b",, anna@example.com , ,<b@c.example>,", ["anna@example.com", "b@c.example"]),
        (b"Us: anna@example.com, Bo <b@c.example>;", ["anna@example.com", "b@c.example"]),
        (b"Us:;, anna@example.com", ["anna@example.com"]),
        (b"Us:;", []),
        (b"", []),
        (b"Anna\r\n\t<anna@\r\n example.com>\r\n", ["anna@example.com"]),
        (b'"an\\na"@example.com', ["anna@example.com"]),
        (b'"anna"."b"@example.com', ["anna.b@example.com"]),
        (b'"an na"@example.com', ['"an na"@example.com']),
        (b'"anna@example.com"@corp.example', ['"anna@example.com"@corp.example']),
        (b"<@one.example,@two.example:anna@example.com>", ["anna@example.com"]),
        (b"<@one.example:boss@corp.example>", ["boss@corp.example"]),
        (b"anna@EXAMPLE.com.", ["anna@example.com"]),
        (b"anna@[192.0.2.1]", ["anna@[192.0.2.1]"]),
        (b"a..b.@example.com", ['"a..b."@example.com']),
        ("Zoë <zoë@bücher.example>".encode(), ["zoë@bücher.example"]),
        ("Zoë <zoe@example.com>".encode("latin-1"), ["zoe@example.com"]),
        # What some readers show as the sender
        (b"anna@example.com <anna@example.com>", ["anna@example.com", "anna@example.com"]),
        (b"boss@corp.example <anna@example.com>", ["boss@corp.example", "anna@example.com"]),
        (b"The boss@corp.example really <anna@example.com>", ["boss@corp.example", "anna@example.com"]),
        (b"boss@corp.example: anna@example.com;", ["boss@corp.example", "anna@example.com"]),
    ],
)
def test_every_address_of_a_field_is_found(value: bytes, addresses: list[str]) -> None:
    assert list(map(str, read_mailboxes(value))) == addresses


@pytest.mark.parametrize(
    "value",
    [
        b"anna",
        b"Anna B",
        b"=?utf-8?q?boss=40corp=2Eexample?=",
        b"anna@",
        b"@example.com",
        b"anna@example.com@corp.example",
        b"anna@example.com boss@corp.example",
        b"<anna@example.com> <boss@corp.example>",
        b"<anna@example.com> boss@corp.example",
        b"Anna <>",
        b"<>",
        b"Anna <anna@example.com",
        b"anna@example.com>",
        b"Anna <<anna@example.com>>",
        b"anna@example.com; boss@corp.example",
        b"Us: anna@example.com",
        b"A: B: anna@example.com;;",
        b": anna@example.com;",
        b"Smith, Anna <anna@example.com>",
        b"two words@example.com",
        b"anna@exa mple.com",
        b"anna@example..com",
        b'anna@"example".com',
        b"anna@[192.0.2.1",
        b'"Anna <anna@example.com>',
        b"(no end anna@example.com",
        b"(" * 60 + b")" * 60 + b"anna@example.com",
        b"anna@example.com)",
        b"anna\\@example.com",
        b"anna@example.com\r\nboss",
        b"anna@example.com\x00",
        b"an\x1bna@example.com",
        b"anna\xff@example.com",
        "anna\u2028@example.com".encode(),
    ],
)
def test_what_is_no_list_of_addresses_is_not_read(value: bytes) -> None:
    with pytest.raises(AddressSyntaxError):
        read_mailboxes(value)


PARTS = st.sampled_from(
    [
        *(
            b"anna@example.com",
            b"boss@corp.example",
            b"anna",
            b"boss",
            b"@",
            b"example.com",
            b"<",
            b">",
            b",",
            b";",
        ),
        *(
            b":",
            b".",
            b" ",
            b"\t",
            b"\r\n ",
            b"(",
            b")",
            b'"',
            b"\\",
            b"[",
            b"]",
            b"=?utf-8?q?a=40b?=",
            b"\xff",
        ),
    ]
)


@given(st.lists(PARTS, max_size=14).map(b"".join) | st.binary(max_size=60))
def test_any_octets_are_read_or_refused_and_no_address_that_others_find_is_missed(value: bytes) -> None:
    try:
        found = {str(address).lower() for address in read_mailboxes(value)}
    except AddressSyntaxError:
        return
    text = value.replace(b"\r\n", b"").decode("latin-1")
    for _, address in getaddresses([text]):
        # Python's reader gives what it can't read, too; here only addresses count.
        if address.count("@") == 1 and address.isascii() and not set(address) & set('"\\[]<>(), \t:;'):
            assert address.lower().rstrip(".") in {each.replace('"', "") for each in found}, (value, address)


@given(st.integers(0, 5000))
def test_nothing_recurses(depth: int) -> None:
    for opened in (b"(", b"<", b"a:", b'"', b"[", b"@a,"):
        try:
            read_mailboxes(opened * depth + b"anna@example.com")
        except AddressSyntaxError:
            continue
