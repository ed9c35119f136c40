"""User names and passwords have one form in which they are compared."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.auth.names import UnusableName, canonical_name, canonical_password


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("Anna", "anna"),
        ("anna@Example.COM", "anna@example.com"),
        ("\uff21\uff4e\uff4e\uff41", "anna"),
        ("Rene\u0301e", "ren\u00e9e"),
        ("STRA\u1e9eE", "stra\u00dfe"),
    ],
)
def test_every_way_to_type_a_name_comes_to_one_user(typed: str, canonical: str) -> None:
    assert canonical_name(typed) == canonical


@pytest.mark.parametrize(
    "name", ["", "a b", "a\tb", "a\x00b", "a\nb", "a\u00a0b", "a\u202eb", "a:b", "#anna", "\ud800", "\ue000"]
)
def test_a_name_that_could_break_a_line_or_a_log_is_nobody(name: str) -> None:
    with pytest.raises(UnusableName):
        canonical_name(name)


def test_a_name_of_255_octets_is_a_user_and_one_of_256_is_none() -> None:
    assert canonical_name("a" * 255) == "a" * 255
    with pytest.raises(UnusableName):
        canonical_name("a" * 256)


@given(st.text(max_size=40))
def test_the_canonical_form_is_its_own_canonical_form(name: str) -> None:
    try:
        canonical = canonical_name(name)
    except UnusableName:
        return
    assert canonical_name(canonical) == canonical


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=40))
def test_a_password_composed_or_decomposed_is_one_password(text: str) -> None:
    composed = unicodedata.normalize("NFC", text).encode()
    decomposed = unicodedata.normalize("NFD", text).encode()
    assert canonical_password(composed) == canonical_password(decomposed)


def test_a_password_that_is_not_utf8_is_taken_as_it_is() -> None:
    assert canonical_password(b"caf\xe9") == b"caf\xe9"


def test_the_case_of_a_password_counts() -> None:
    assert canonical_password(b"Secret") != canonical_password(b"secret")
