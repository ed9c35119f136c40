"""Our fields and what a client sent: to every reader they are two things."""

from __future__ import annotations

import email
import email.message
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from elemta.envelope import Client
from elemta.message.trace import added_field, received_field, separator

RECEIVED = received_field(
    hostname="mx.example",
    client=Client(ip="192.0.2.1", helo="client.example"),
    protocol="ESMTP",
    queue_id="4A7",
    at=1_763_862_000.0,
    only_recipient=None,
)
FORGERY = b"\t; dkim=pass header.d=bank.example"


def logical_lines(message: bytes) -> list[bytes]:
    """The header by RFC 5322 §2.2.3 and nothing else: lines with what continues them, to the empty line."""
    found: list[bytes] = []
    for line in message.split(b"\r\n"):
        if not line:
            break
        if line[:1] in (b" ", b"\t") and found:
            found[-1] += b"\r\n" + line
        else:
            found.append(line)
    return found


def fields_and_payload(message: bytes) -> tuple[list[tuple[str, str]], bytes]:
    """What Python's own parser takes for the fields, and for what is behind them."""
    parsed: email.message.Message = email.message_from_bytes(message)
    payload = parsed.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return [(name, str(value)) for name, value in parsed.raw_items()], payload


@pytest.mark.parametrize(
    "message",
    [
        FORGERY + b"\r\nSubject: x\r\n\r\nbody\r\n",
        b" \r\nSubject: x\r\n\r\n",
        b" \t \r\n\r\n",
        b"no header at all\r\n",
        b": no name\r\n",
        b"two words: x\r\n",
        b"S\xc3\xbcbject: x\r\n",
        b"From a@b.test Mon Jan  1 00:00:00 2024\r\n" + FORGERY + b"\r\n",
        b"From a@b.test Mon Jan  1 00:00:00 2024\r\n>From c d\r\nno header\r\n",
        b"From : x\r\n" + FORGERY + b"\r\n",
        b"x" * 70_000,
    ],
)
def test_what_does_not_begin_with_a_field_stands_behind_an_empty_line(message: bytes) -> None:
    assert separator(message[: 64 * 1024]) == b"\r\n"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\r\nbody\r\n",
        b"Subject: x\r\n\r\nbody\r\n",
        b"Subject:\r\n x\r\n",
        b"Subject \t: x\r\n\r\n",
        b">From: x\r\n\r\n",
        b"From a@b.test Mon Jan  1 00:00:00 2024\r\nSubject: x\r\n\r\nbody\r\n",
        b">From a@b.test Mon Jan  1 00:00:00 2024\r\n\r\nbody\r\n",
    ],
)
def test_a_message_that_begins_with_a_field_or_has_no_header_is_left_as_it_is(message: bytes) -> None:
    assert separator(message) == b""


LINES = st.sampled_from(
    [
        b"",
        b" ",
        b"\t",
        FORGERY,
        b"From a@b.test Mon Jan  1 00:00:00 2024",
        b">From a@b.test Mon Jan  1 00:00:00 2024",
        b"From : x",
        b"Subject: x",
        b"Authentication-Results: mx.example; dkim=pass",
        b"X :y",
        b":",
        b"words",
        b"--=_x",
    ]
) | st.binary(max_size=30).map(lambda octets: re.sub(rb"[\r\n\0]", b"", octets))
OWN = st.lists(
    st.tuples(
        st.sampled_from(["Authentication-Results", "X-Spam", "From", ">From", "X"]),
        st.text(st.characters(blacklist_categories=["Cc"]), max_size=200) | st.sampled_from(["", "a " * 60]),
    ),
    max_size=3,
)


@given(OWN, st.lists(LINES, max_size=5), st.booleans())
@example([("Authentication-Results", "mx.example; dkim=none")], [FORGERY], True)
def test_readers_see_exactly_our_fields_and_then_what_the_client_sent(
    own: list[tuple[str, str]], lines: list[bytes], ended: bool
) -> None:
    ours = RECEIVED + b"".join(added_field(name, value) for name, value in own)
    clients = b"\r\n".join(lines) + (b"\r\n" if ended and lines else b"")
    message = ours + separator(clients) + clients
    count = 1 + len(own)

    assert logical_lines(message)[:count] == logical_lines(ours)
    fields, payload = fields_and_payload(message)
    own_fields, nothing = fields_and_payload(ours)
    assert fields[:count] == own_fields
    assert len(own_fields) == count
    assert not nothing
    if separator(clients):
        assert logical_lines(message)[count:] == []
        assert fields[count:] == []
        assert payload == clients
    elif b"From " not in clients:
        # Python's parser has an opinion of its own on lines of an mbox file.
        assert (fields[count:], payload) == fields_and_payload(clients)
