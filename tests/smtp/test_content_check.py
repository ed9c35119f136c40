"""What is looked for in a message's content: bare CR, bare LF, NUL."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.smtp.framing import ContentCheck, ContentError

# Mostly what matters, with octets beside it that a sloppy look could take for a line ending.
content = st.lists(
    st.sampled_from(
        [b"\r\n", b"\r", b"\n", b"\0", b".", b"a", b"\x0b\x0c\x1c\x1d\x1e", b"\x85", b"\xe2\x80\xa8"]
    )
    | st.binary(max_size=20)
).map(b"".join)


@given(content)
def test_a_flaw_is_found_exactly_where_there_is_one(piece: bytes) -> None:
    check = ContentCheck(normalize=False)
    assert check.clean(piece) == piece
    bare = re.search(rb"\r(?!\n)|(?<!\r)\n", piece) is not None
    assert check.flaw is (ContentError.NUL if b"\0" in piece else ContentError.BARE_NEWLINE if bare else None)


@given(content)
def test_normalised_content_has_only_crlf_and_keeps_all_else(piece: bytes) -> None:
    cleaned = ContentCheck(normalize=True).clean(piece)
    assert re.search(rb"\r(?!\n)|(?<!\r)\n", cleaned) is None
    assert cleaned == re.sub(rb"\r\n|\r|\n", b"\r\n", piece)


@pytest.mark.parametrize("place", [0, 1, 32_767, 65_534, 65_535])
@pytest.mark.parametrize("ending", [b"\r", b"\n"])
def test_one_bare_newline_among_many_lines_is_found_wherever_it_is(place: int, ending: bytes) -> None:
    lines = (b"x" * 78 + b"\r\n") * 820
    check = ContentCheck(normalize=False)
    check.clean(lines)
    assert check.flaw is None
    text = lines[: place // 80 * 80] + ending + b"." + lines[place // 80 * 80 :]
    check.clean(text)
    assert check.flaw is ContentError.BARE_NEWLINE
