"""The hash of a body in blocks."""

from __future__ import annotations

import hashlib

import pytest
from dkim.canonicalization import Relaxed, Simple
from hypothesis import given
from hypothesis import strategies as st

from elemta.policies.mail_auth import body_hash
from elemta.policies.mail_auth.body_hash import BodyHashKind, hash_body

PIECES = st.sampled_from([b"a", b" ", b"\t", b"\r\n", b"\r\n", b"x y", b"\r", b"\n"])


class Blocks:
    """A body that is read in blocks of the sizes that a test gives."""

    def __init__(self, body: bytes, sizes: list[int]) -> None:
        self.body, self.sizes = body, sizes

    def read(self, _size: int) -> bytes:
        size = self.sizes[0] if self.sizes else len(self.body)
        self.sizes = self.sizes[1:]
        block, self.body = self.body[:size], self.body[size:]
        return block


@given(st.lists(PIECES), st.lists(st.integers(1, 5)), st.none() | st.integers(0, 30), st.booleans())
def test_blocks_of_any_size_hash_as_the_whole_body_does(pieces, sizes, limit, relaxed):
    body = b"".join(pieces) + (b"\r\n" if pieces else b"")
    kind = BodyHashKind(relaxed, limit)
    found = hash_body(Blocks(body, sizes), [kind])[kind]
    canonical = (Relaxed if relaxed else Simple).canonicalize_body(body)
    assert found.length == len(canonical)
    assert found.digest == hashlib.sha256(canonical[:limit]).digest()


@pytest.mark.parametrize("piece", [b"\r\n", b" ", b"\r", b"x" * 997 + b" \r\n"])
def test_a_large_body_of_one_kind_takes_time_in_proportion(piece):
    body = piece * (400_000 // len(piece)) + b"\r\n"
    kinds = [BodyHashKind(relaxed, None) for relaxed in (False, True)]
    hashes = hash_body(Blocks(body, [body_hash.BLOCK] * 100), kinds)
    assert hashes[kinds[0]].length == len(Simple.canonicalize_body(body))


@given(st.lists(PIECES), st.lists(st.none() | st.integers(0, 30), max_size=6), st.booleans())
def test_any_number_of_limits_is_hashed_in_one_pass(pieces, limits, relaxed):
    body = b"".join(pieces) + (b"\r\n" if pieces else b"")
    kinds = [BodyHashKind(relaxed, limit) for limit in limits]
    together = hash_body(Blocks(body, [1, 2, 3]), kinds)
    assert together == {kind: hash_body(Blocks(body, []), [kind])[kind] for kind in kinds}
