"""Postfix's policy delegation protocol, octets in and requests out."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.address import NULL, Address
from elemta.errors import PolicyRequestError
from elemta.policy_service.requests import (
    MAX_REQUEST,
    NO_ADDRESS,
    RequestReader,
    encode_answer,
    policy_request,
)

NAMES = st.from_regex(r"[a-z_]{1,20}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\0\n\r", exclude_categories=("Cs",)), max_size=40)


def read_all(reader: RequestReader) -> list[dict[str, str]]:
    found = []
    while (attributes := reader.next_request()) is not None:
        found.append(dict(attributes))
    return found


@given(
    st.lists(st.dictionaries(NAMES, VALUES, min_size=1), max_size=5),
    st.lists(st.integers(1, 30)),
    st.sampled_from(["\n", "\r\n"]),
)
def test_requests_are_the_same_however_they_are_cut(requests, sizes, end):
    octets = b"".join(
        ("".join(f"{name}={value}{end}" for name, value in request.items()) + end).encode()
        for request in requests
    )
    reader, found = RequestReader(), []
    for size in [*sizes, len(octets)]:
        reader.receive(octets[:size])
        octets = octets[size:]
        found += read_all(reader)
    assert found == requests
    assert len(reader) == 0


@given(st.binary(max_size=300))
def test_any_octets_are_requests_or_refused(octets):
    reader = RequestReader()
    reader.receive(octets)
    try:
        for attributes in read_all(reader):
            policy_request(attributes, "postfix")
    except PolicyRequestError:
        pass


@pytest.mark.parametrize("begins", [b"a", b"name=value\n", b"name=" + b"x" * MAX_REQUEST])
def test_a_request_without_an_end_is_refused_at_its_bound(begins):
    reader = RequestReader()

    def send_on() -> None:
        for _ in range(MAX_REQUEST):
            reader.receive(begins)
            assert reader.next_request() is None

    with pytest.raises(PolicyRequestError, match="longer than 65536 octets"):
        send_on()
    assert len(reader) < MAX_REQUEST + len(begins)


def test_a_request_of_exactly_the_bound_is_read():
    reader = RequestReader()
    reader.receive(b"a=" + b"x" * (MAX_REQUEST - 4) + b"\n\n")
    assert reader.next_request() is not None


@pytest.mark.parametrize(
    "text",
    [
        b"\n\n",
        b"\r\n\r\n",
        b"no equals sign\n\n",
        b"=value\n\n",
        b"a=1\nb\n\n",
        b"\0\n\n",
        b"a\0=1\n\n",
        b"a=\0\n\n",
        b"a=1\0b=2\0\0\n\n",
    ],
)
def test_what_is_no_attribute_is_refused(text):
    reader = RequestReader()
    reader.receive(text)
    with pytest.raises(PolicyRequestError):
        read_all(reader)


def test_a_request_of_postfix_is_read():
    request = policy_request(
        {
            "request": "smtpd_access_policy",
            "protocol_state": "RCPT",
            "client_address": "2001:db8::1",
            "helo_name": "client.example",
            "sasl_username": "anna",
            "sender": "Anna@Example.ORG",
            "recipient": "bert@example.com",
            "size": "12345",
            "instance": "123.456.7",
        },
        "postfix",
    )
    assert request.client_ip == ip_address("2001:db8::1")
    assert (request.state, request.listener, request.helo) == ("RCPT", "postfix", "client.example")
    assert (request.user, request.size, request.instance) == ("anna", 12345, "123.456.7")
    assert request.sender == Address("Anna", "example.org")
    assert request.recipient is not None
    assert request.recipient.address == Address("bert", "example.com")


def test_what_is_not_there_is_none():
    request = policy_request({"sender": "", "recipient": "", "sasl_username": ""}, "postfix")
    assert (request.client_ip, request.user, request.recipient) == (NO_ADDRESS, None, None)
    assert request.sender == NULL
    assert request.recipients == ()
    assert request.size == 0
    assert policy_request({}, "postfix").sender is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("client_address", "nonsense"), ("size", "-1"), ("size", "1e9"), ("size", "٣"), ("size", "9" * 19)],
)
def test_a_value_that_is_nonsense_is_refused(name, value):
    with pytest.raises(PolicyRequestError):
        policy_request({name: value}, "postfix")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("a@b@example.org", Address("a@b", "example.org")),
        ("root", Address("root", "")),
        ("a b@example.org.", Address("a b", "example.org")),
        ("<>", NULL),
    ],
)
def test_addresses_are_taken_as_postfix_writes_them(text, address):
    assert policy_request({"sender": text}, "postfix").sender == address


def test_an_answer_is_an_action_and_an_empty_line():
    assert encode_answer("DUNNO") == b"action=DUNNO\n\n"


def attributes_as_the_readme_has_them(text: str) -> dict[str, str] | None:
    """Line by line; the first of several values counts. None: no request."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        name, equals, value = line.removesuffix("\r").partition("=")
        if not equals or not name:
            return None
        found.setdefault(name, value)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_attributes_are_read_as_line_by_line(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(3000):
        pieces = dice.choices(
            ["a", "b", "=", "\n", "\r", "c=d", "\nx=", "\r\n", "\ny=1"], k=dice.randrange(1, 14)
        )
        text = "".join(pieces).strip("\n")
        if "\n\n" in text or "\n\r\n" in text + "\n":
            continue  # several requests
        reader = RequestReader()
        reader.receive(text.encode() + b"\n\n")
        expected = attributes_as_the_readme_has_them(text)
        if expected is None:
            with pytest.raises(PolicyRequestError):
                reader.next_request()
        else:
            assert reader.next_request() == expected
