"""JSON that is written for each message is what the standard library writes, with either encoder."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.json_text import _encoder, json_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)
ENCODERS = (json_text, _encoder(None))


@given(value=VALUES)
def test_it_is_what_the_standard_library_writes(value: object) -> None:
    expected = json.dumps(value, separators=(",", ":"))
    assert [encode(value) for encode in ENCODERS] == [expected, expected]
    assert expected.isascii()


@pytest.mark.parametrize("encode", ENCODERS)
@pytest.mark.parametrize("value", [b"octets", object(), {"a": {1}}])
def test_what_json_does_not_have_is_an_error(encode: Callable[[object], str], value: object) -> None:
    with pytest.raises(TypeError):
        encode(value)
