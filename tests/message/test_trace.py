"""Trace fields: right by RFC 5321 §4.4, and nothing that a client says can break out of them."""

from __future__ import annotations

import email.header
import email.utils
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.address import NULL, Address
from elemta.envelope import Client
from elemta.message.headers import read_headers
from elemta.message.trace import added_field, protocol_name, received_field, return_path_field

AT = 1_763_862_000.9


def _received(client: Client, *, protocol: str = "ESMTP", recipient: str | None = None) -> bytes:
    return received_field(
        hostname="mx.example",
        client=client,
        protocol=protocol,
        queue_id="4A7",
        at=AT,
        only_recipient=recipient,
    )


def test_the_received_field_says_who_gave_what_to_whom_and_when() -> None:
    field = _received(
        Client(ip="192.0.2.1", helo="client.example", tls="TLSv1.3, TLS_AES_256_GCM_SHA384"),
        protocol="ESMTPSA",
        recipient="bob@example.com",
    )
    assert field == (
        b"Received: from client.example ([192.0.2.1])\r\n"
        b"\t(TLSv1.3, TLS_AES_256_GCM_SHA384)\r\n"
        b"\tby mx.example (Elemta) with ESMTPSA id 4A7\r\n"
        b"\tfor <bob@example.com>;\r\n"
        b"\tSun, 23 Nov 2025 01:40:00 +0000\r\n"
    )


def test_the_date_is_the_moment_in_utc() -> None:
    value = read_headers(_received(Client()) + b"\r\n").get("Received") or ""
    assert email.utils.parsedate_to_datetime(value.rsplit(";", 1)[1]).timestamp() == int(AT)


def test_without_a_single_recipient_nobody_is_named() -> None:
    assert b"for <" not in _received(Client(ip="192.0.2.1", helo="a"))


def test_an_ipv6_client_is_written_as_a_literal() -> None:
    assert b"([IPv6:2001:db8::1])" in _received(Client(ip="2001:db8::1", helo="a"))


def test_a_client_that_gave_no_name_is_called_unknown() -> None:
    assert _received(Client(ip="192.0.2.1")).startswith(b"Received: from unknown ([192.0.2.1])\r\n")


def test_a_user_name_is_not_told_to_the_world() -> None:
    assert b"alice" not in _received(Client(ip="192.0.2.1", helo="a", user="alice@example.com"))


@pytest.mark.parametrize("helo", ["a\r\nX-Evil: 1", "a) by evil (", "a;b", "a\x00b", "x" * 5000, "ü.example"])
def test_a_hostile_helo_stays_inside_its_word(helo: str) -> None:
    field = _received(Client(ip="192.0.2.1", helo=helo))
    first, rest = field.split(b"\r\n", 1)
    assert re.fullmatch(rb"Received: from [A-Za-z0-9._:\[\]?-]{1,255} \(\[192\.0\.2\.1\]\)", first)
    assert rest.startswith(b"\tby mx.example ")


@given(helo=st.text(max_size=300), tls=st.text(max_size=50), recipient=st.text(max_size=80))
def test_whatever_the_client_says_it_is_one_field(helo: str, tls: str, recipient: str) -> None:
    for protocol in ("ESMTP", "UTF8SMTP"):
        field = _received(
            Client(ip="::1", helo=helo, tls=tls or None), protocol=protocol, recipient=recipient
        )
        assert field.endswith(b"\r\n")
        lines = field[:-2].split(b"\r\n")
        assert all(line.startswith(b"\t") for line in lines[1:])
        assert not re.search(rb"[\r\n\x00]", b"".join(lines))
        assert all(len(line) <= 998 for line in lines)
        assert read_headers(field + b"\r\n").count("Received") == 1


def test_an_internationalised_recipient_is_shown_only_under_smtputf8() -> None:
    client = Client(ip="192.0.2.1", helo="a")
    assert b"for <" not in _received(client, recipient="jösé@example.com")
    assert "for <jösé@example.com>".encode() in _received(
        client, protocol="UTF8SMTP", recipient="jösé@example.com"
    )


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"esmtp": False, "tls": False, "auth": False, "smtputf8": False}, "SMTP"),
        ({"esmtp": False, "tls": True, "auth": False, "smtputf8": False}, "SMTP"),
        ({"esmtp": True, "tls": False, "auth": False, "smtputf8": False}, "ESMTP"),
        ({"esmtp": True, "tls": True, "auth": False, "smtputf8": False}, "ESMTPS"),
        ({"esmtp": True, "tls": False, "auth": True, "smtputf8": False}, "ESMTPA"),
        ({"esmtp": True, "tls": True, "auth": True, "smtputf8": False}, "ESMTPSA"),
        ({"esmtp": True, "tls": True, "auth": True, "smtputf8": True}, "UTF8SMTPSA"),
        ({"esmtp": True, "tls": False, "auth": False, "smtputf8": False, "lmtp": True}, "LMTP"),
        ({"esmtp": True, "tls": True, "auth": False, "smtputf8": True, "lmtp": True}, "UTF8LMTPS"),
    ],
)
def test_the_protocol_is_named_as_registered(facts: dict[str, bool], name: str) -> None:
    assert protocol_name(**facts) == name


def test_the_return_path_is_the_sender_in_brackets() -> None:
    assert return_path_field(Address("a b", "example.com")) == b'Return-Path: <"a b"@example.com>\r\n'
    assert return_path_field(NULL) == b"Return-Path: <>\r\n"


def test_an_added_field_is_written_as_given() -> None:
    assert added_field("X-Spam", "no, score=1") == b"X-Spam: no, score=1\r\n"
    assert added_field("X-Empty", "  ") == b"X-Empty:\r\n"


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\n", "ä", "a\x00", "x" * 77])
def test_an_impossible_field_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        added_field(name, "x")


@pytest.mark.parametrize("value", ["a\r\nX: 1", "a\n", "\ra", "a\x00b", "a\x1bb", "a\x7f"])
def test_a_value_with_control_characters_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        added_field("X-A", value)


def test_a_word_too_long_for_a_line_is_refused_and_the_longest_is_not() -> None:
    assert added_field("X-A", "y" * 997).endswith(b" " + b"y" * 997 + b"\r\n")
    with pytest.raises(ValueError, match="too long"):
        added_field("X-A", "y" * 998)


def test_text_beyond_ascii_is_written_as_encoded_words() -> None:
    text = "Grüße an die ganze Familie, " * 8
    field = added_field("X-A", text)
    assert field.isascii()
    value = field.decode()[5:].replace("\r\n", "")
    assert str(email.header.make_header(email.header.decode_header(value))) == text.strip()


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=600))
def test_a_folded_value_reads_back_the_same(value: str) -> None:
    value = value.strip(" \t")
    try:
        field = added_field("X-A", value)
    except ValueError:
        assert max(map(len, value.split())) > 900
        return
    assert field.endswith(b"\r\n")
    lines = field[:-2].split(b"\r\n")
    assert all(len(line) <= 998 and line.strip() for line in lines)
    if value.isascii():
        assert read_headers(field + b"\r\n").get("X-A") == value
