"""Encoded words in mail of any author: shown decoded where they can be, and never an error."""

from __future__ import annotations

import encodings
from email.header import Header

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from elemta.message.dsn_text import subject_of
from elemta.message.encoded_words import _CHARSETS, decode_words

_LETTERS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=60)
_NAMES = "=? ?= ? = q B é utf-8 idna punycode zlib utf-7 iso-2022-kr unicode_escape undefined mbcs"
_PIECES = st.sampled_from([*_NAMES.split(), *["_", "\x00", "*en", "�", "w6k=", "=E9", "+AAA"], " ", "x" * 70])


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("lunch", "lunch"),
        ("=?utf-8?q?caf=C3=A9_au_lait?=", "café au lait"),
        ("=?UTF-8?B?w6k=?=", "é"),
        ("=?utf-8?B?w6k?=", "é"),
        ("=?iso-8859-1?q?=E9?= =?koi8-r?q?=C1?= end", "éа end"),
        ("a =?utf-8?q?b?= c", "a b c"),
        ("=?utf-8*fr?q?=C3?= =?utf-8*fr?b?qQ==?=", "é"),
        ("=?ks_c_5601-1987?b?x9E=?=", "한"),
        ("=?koi8-u?q?=A4?=", "є"),
        ("=?é?q?a?=", "=?é?q?a?="),
        ("=?no-such?q?a?=", "=?no-such?q?a?="),
        ("=?zlib?b?eJwDAAAAAAE=?=", "=?zlib?b?eJwDAAAAAAE=?="),
        ("=?utf-8?b?a?=", "=?utf-8?b?a?="),
        ("=?utf-8?x?a?=", "=?utf-8?x?a?="),
        ("=?utf-8?q?=FF=?=", "\ufffd="),
    ],
)
def test_a_word_is_decoded_or_stays_as_it_is_written(written: str, shown: str) -> None:
    assert decode_words(written) == shown


@given(_LETTERS, st.sampled_from(["utf-8", "utf-16", "utf-7"]))
def test_what_another_mailer_encodes_is_read_as_it_was(text: str, charset: str) -> None:
    assert decode_words(Header(text, charset, maxlinelen=1000).encode()) == text


@settings(max_examples=500)
@given(st.one_of(st.text(max_size=400), st.lists(_PIECES, max_size=20).map("".join)))
@example("=?é?q?a?=")
@example("=?\0?q?a?=")
@example("=?utf-8?b?a?=")
def test_no_text_at_all_is_an_error(text: str) -> None:
    assert isinstance(decode_words(text), str)
    assert subject_of(text).isprintable()


@settings(max_examples=500)
@given(st.sampled_from(sorted(_CHARSETS)), st.binary(max_size=60))
def test_no_octets_are_an_error_in_any_charset(charset: str, octets: bytes) -> None:
    quoted = "".join(f"={octet:02X}" for octet in octets)
    assert isinstance(decode_words(f"=?{charset}?q?{quoted}?="), str)


def test_names_of_charsets_that_do_not_exist_are_not_remembered() -> None:
    before = len(encodings._cache)  # type: ignore[attr-defined]
    for number in range(100):
        decode_words(f"=?strange-{number}?q?a?=")
    assert len(encodings._cache) == before  # type: ignore[attr-defined]
