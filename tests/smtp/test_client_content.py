"""What goes over the wire for a message reads as that one message, however it was cut."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.smtp.client_content import ContentEncoder


def canonical(message: bytes) -> bytes:
    """The reference: every line end is CRLF and the last line has one."""
    text = message.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    return text if not text or text.endswith(b"\r\n") else text + b"\r\n"


def strictly_received(wire: bytes) -> tuple[bytes, bytes]:
    """What a strict receiver makes of the octets after 354: the message, and what is left behind it."""
    end = (b"\r\n" + wire).find(b"\r\n.\r\n")
    assert end >= 0, "no end of the message"
    message, rest = wire[:end], wire[end + 3 :]
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", message), "a bare CR or LF was sent"
    return re.sub(rb"(?m)^\.", b"", message.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n"), rest


def lenient_ends(wire: bytes) -> int:
    """How many ends a receiver would see that takes any mixture of CR and LF around a dot for one."""
    return len(re.findall(rb"(?:\r\n|\r|\n)\.(?=\r|\n)", b"\n" + wire))


def encoded(chunks: list[bytes]) -> bytes:
    encoder = ContentEncoder()
    return b"".join([*(encoder.encode(chunk) for chunk in chunks), encoder.finish()])


def cut(message: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(message) + 1) for place in places), len(message)]
    return [message[a:b] for a, b in itertools.pairwise(edges)]


pieces = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"..", b"a", b"\x00", b"\xff", b"MAIL FROM:<x@y>"]),
    max_size=40,
).map(b"".join)


@given(message=pieces, places=st.lists(st.integers(0, 400), max_size=12))
def test_however_it_is_cut_a_strict_receiver_gets_exactly_the_canonical_message(
    message: bytes, places: list[int]
) -> None:
    wire = encoded(cut(message, places))
    assert strictly_received(wire) == (canonical(message), b"")
    assert wire == encoded([message])
    assert lenient_ends(wire) == 1


@given(pieces)
def test_byte_by_byte_is_the_same_as_whole(message: bytes) -> None:
    assert encoded([message[i : i + 1] for i in range(len(message))]) == encoded([message])


@pytest.mark.parametrize(
    "variant",
    [
        b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\n", b"\r\n.\r", b"\r.\r\n", b"\r\n.\r\n", b"\r\r\n.\r\n",
        b"\n\n.\r\n", b"\r\n\x00.\r\n", b"\r\n.\x00\r\n", b"\r.\n", b"\n.\r",
    ],
)  # fmt: skip
def test_no_variant_of_the_end_of_data_leaves_as_one(variant: bytes) -> None:
    message = b"one" + variant + b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<target@example.org>\r\nDATA\r\n"
    for chunks in ([message], [message[i : i + 1] for i in range(len(message))]):
        wire = encoded(chunks)
        assert strictly_received(wire) == (canonical(message), b"")
        assert lenient_ends(wire) == 1


def test_a_dot_that_begins_a_chunk_after_a_line_end_is_doubled() -> None:
    message = b"x" * 16382 + b"\r\n" + b".\r\nMAIL FROM:<evil@example.org>\r\n"
    wire = encoded([message[:16384], message[16384:]])
    assert b"\r\n..\r\nMAIL FROM" in wire
    assert wire.endswith(b"\r\n.\r\n")


def test_crlf_stays_crlf_also_between_chunks() -> None:
    assert encoded([b"a\r", b"\nb\r\n"]) == b"a\r\nb\r\n.\r\n"


def test_an_empty_message_is_only_the_end() -> None:
    assert encoded([]) == b".\r\n"
    assert encoded([b"", b""]) == b".\r\n"


def test_a_large_message_is_encoded_at_the_pace_of_a_scan() -> None:
    chunk = (b"y" * 76 + b"\r\n") * 840
    encoder = ContentEncoder()
    started = time.process_time()
    for _ in range(800):
        encoder.encode(chunk)
    assert time.process_time() - started < 5.0  # 52 MB
