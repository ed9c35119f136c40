"""Command lines out of what the client sent: the short way for a plain line, and the way for all others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from elemta.smtp.framing import InputBuffer

LIMIT = 12
pieces = st.lists(
    st.lists(
        st.sampled_from([b"\r\n", b"\r", b"\n", b"\0", b"\x16\x03", b"NOOP", b"NOOP\r\n", b"a", b"\xff"])
    ).map(b"".join),
    max_size=4,
)


@given(pieces, st.booleans())
def test_a_plain_line_is_what_the_other_way_gives_and_leaves_the_same(
    sent: list[bytes], lenient: bool
) -> None:
    short, other = InputBuffer(takes_bare_lf=lenient), InputBuffer(takes_bare_lf=lenient)
    for piece in sent:
        short.feed(piece)
        other.feed(piece)
        while True:
            plain = short.take_plain_line(LIMIT)
            line = other.take_line(LIMIT, 100)
            if plain is None:
                # The short way has left everything to the other.
                plain = short.take_line(LIMIT, 100)
            else:
                assert plain >= b" "
                assert not other.ended_bare
            assert plain == line
            assert (short.octets, short.ended_bare) == (other.octets, other.ended_bare)
            short.ended_bare = other.ended_bare = False
            if line is None:
                break
    assert short.block() == other.block()


def test_a_block_that_is_used_up_is_not_kept_while_more_waits() -> None:
    buffer = InputBuffer()
    buffer.feed(b"NOOP\r\n" * 1000)
    buffer.feed(b"NOOP\r\n")
    for _ in range(1000):
        assert buffer.take_plain_line(LIMIT) == b"NOOP"
    assert buffer.octets == 6
    assert buffer.memory < 200
    assert buffer.take_line(LIMIT, 100) == b"NOOP"
