"""Password hashes: what is written is read again, and what is no hash is refused with a reason."""

from __future__ import annotations

import base64

import pytest

from elemta.auth import hashes
from elemta.auth.hashes import Argon2id, Scrypt, UnusableHash, new_hash, parse_hash
from elemta.runtime import SYSTEM_RANDOMNESS

CHEAP_SCRYPT = "$scrypt$ln=4,r=8,p=1$"


def _b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode().rstrip("=")


# RFC 7914 §12, the third vector, in our encoding
RFC_7914 = (
    "$scrypt$ln=14,r=8,p=1$"
    + _b64(b"SodiumChloride")
    + "$"
    + _b64(
        bytes.fromhex(
            "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
            "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
        )
    )
)


def test_the_vector_of_rfc_7914_verifies() -> None:
    assert parse_hash(RFC_7914).matches(b"pleaseletmein")
    assert not parse_hash(RFC_7914).matches(b"pleaseletmeout")


def test_a_hash_made_by_argon2_cffi_itself_verifies() -> None:
    argon2 = pytest.importorskip("argon2")
    encoded = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=2).hash(b"secret")
    parsed = parse_hash(encoded)
    assert isinstance(parsed, Argon2id)
    assert (parsed.time, parsed.memory, parsed.lanes) == (1, 64, 2)
    assert parsed.matches(b"secret")
    assert not parsed.matches(b"Secret")


def test_argon2_cffi_verifies_a_hash_made_here() -> None:
    argon2 = pytest.importorskip("argon2")
    assert argon2.PasswordHasher().verify(str(new_hash(b"secret", SYSTEM_RANDOMNESS)), b"secret")


def test_a_new_hash_is_argon2id_where_it_is_installed_and_scrypt_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("argon2")
    assert new_hash(b"secret", SYSTEM_RANDOMNESS).scheme == "argon2id"
    monkeypatch.setattr(hashes, "_argon2", None)
    made = new_hash(b"secret", SYSTEM_RANDOMNESS)
    assert made.scheme == "scrypt"
    assert parse_hash(str(made)).matches(b"secret")


def test_two_hashes_of_one_password_have_two_salts() -> None:
    assert str(new_hash(b"secret", SYSTEM_RANDOMNESS)) != str(new_hash(b"secret", SYSTEM_RANDOMNESS))


def test_an_argon2_hash_without_the_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = "$argon2id$v=19$m=64,t=1,p=1$" + _b64(b"s" * 16) + "$" + _b64(b"d" * 32)
    monkeypatch.setattr(hashes, "_argon2", None)
    with pytest.raises(UnusableHash, match=r"argon2-cffi is not installed.*python3-argon2"):
        parse_hash(encoded)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("secret", "not a hash"),
        ("", "not a hash"),
        ("$1$abc$def", "scheme 1 is not supported"),
        ("$2b$12$abcdefghijklmnopqrstuv", "scheme 2b is not supported"),
        ("$argon2i$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$ZGlnZXN0", "scheme argon2i is not supported"),
        ("$argon2id$v=16$m=64,t=1,p=1$c2FsdHNhbHQ$ZGlnZXN0", "malformed argon2id"),
        ("$argon2id$v=19$m=999999999,t=1,p=1$c2FsdHNhbHQ$ZGlnZXN0", "out of range"),
        ("$argon2id$v=19$m=7,t=1,p=1$c2FsdHNhbHQ$ZGlnZXN0", "out of range"),
        ("$scrypt$ln=4,r=8$c2FsdHNhbHQ$ZGlnZXN0", "malformed scrypt"),
        ("$scrypt$ln=24,r=8,p=1$c2FsdHNhbHQ$ZGlnZXN0", "out of range"),
        ("$scrypt$ln=0,r=8,p=1$c2FsdHNhbHQ$ZGlnZXN0", "out of range"),
        (CHEAP_SCRYPT + "c2FsdHNhbHQ$ZGlnZXN0", "impossible length"),
        (CHEAP_SCRYPT + "c2FsdHNhbHQ$" + "A" * 25, "not base64"),
        (CHEAP_SCRYPT + "c2FsdHNhbHQ$ZGln\u00e9", "malformed scrypt"),
    ],
)
def test_what_is_no_usable_hash_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(UnusableHash, match=reason):
        parse_hash(text)


def test_a_refusal_never_repeats_what_may_be_a_password() -> None:
    with pytest.raises(UnusableHash) as caught:
        parse_hash("correct-horse-battery")
    assert "horse" not in str(caught.value)


@pytest.mark.parametrize(
    "known", [Scrypt(4, 8, 1, b"s" * 16, b"d" * 32), Argon2id(64, 1, 2, b"s" * 16, b"d" * 32)]
)
def test_an_impostor_has_the_scheme_and_the_cost_of_its_model_and_another_digest(
    known: Scrypt | Argon2id,
) -> None:
    impostor = known.impostor(SYSTEM_RANDOMNESS)
    assert impostor.scheme == known.scheme
    assert str(impostor).split("$")[:-2] == str(known).split("$")[:-2]
    assert len(str(impostor)) == len(str(known))
    assert impostor != known
