"""Password hashes as text: argon2id where argon2-cffi is installed, scrypt from the standard library.

Encodings, both with unpadded base64 for salt and digest::

    $argon2id$v=19$m=19456,t=2,p=1$SALT$DIGEST        m in KiB, as argon2-cffi and others write it
    $scrypt$ln=15,r=8,p=3$SALT$DIGEST                 N = 2**ln, as passlib writes it
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import ClassVar, Protocol

from elemta.runtime import Randomness

try:
    from argon2 import low_level as _argon2
except ImportError:  # an extra: scrypt serves without it
    _argon2 = None  # type: ignore[assignment]

# One verification may take this much memory. A typing error in the file must not take the machine down.
MAX_MEMORY = 256 * 1024 * 1024
# The cost of new hashes: what OWASP's password storage cheat sheet names as enough, 19 and 32 MiB each.
ARGON2_MEMORY_KIB = 19_456
ARGON2_TIME = 2
ARGON2_LANES = 1
SCRYPT_LN = 15
SCRYPT_R = 8
SCRYPT_P = 3
SALT_OCTETS = 16
DIGEST_OCTETS = 32

ARGON2_REMEDY = (
    "install argon2-cffi (pip install 'elemta[argon2]', on Debian python3-argon2), "
    "or set the password again with elemtactl user add --replace on this host, which then writes scrypt"
)


class UnusableHash(ValueError):
    """Text that is no password hash, or one that can't be verified here; the text says why."""


class PasswordHash(Protocol):
    """One hash of a users file. ``scheme`` is ``argon2id`` or ``scrypt``."""

    @property
    def scheme(self) -> str: ...

    def matches(self, password: bytes) -> bool:
        """Whether ``password`` gives this hash. Takes tens of milliseconds: never in the reactor's thread."""

    def impostor(self, randomness: Randomness) -> PasswordHash:
        """A hash that costs exactly as much to verify and that no password matches."""

    def __str__(self) -> str:
        """The encoded text."""


@dataclass(frozen=True, slots=True)
class Scrypt:
    """A scrypt hash (RFC 7914): N is ``2**ln``, memory ``128 * r * N`` octets."""

    ln: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    scheme: ClassVar[str] = "scrypt"

    def matches(self, password: bytes) -> bool:
        made = _scrypt(password, self.salt, self.ln, self.r, self.p, octets=len(self.digest))
        return hmac.compare_digest(made, self.digest)

    def impostor(self, randomness: Randomness) -> Scrypt:
        salt, digest = randomness.randbytes(len(self.salt)), randomness.randbytes(len(self.digest))
        return Scrypt(self.ln, self.r, self.p, salt, digest)

    def __str__(self) -> str:
        return f"$scrypt$ln={self.ln},r={self.r},p={self.p}${_encode(self.salt)}${_encode(self.digest)}"


@dataclass(frozen=True, slots=True)
class Argon2id:
    """An argon2id hash (RFC 9106), version 1.3; ``memory`` in KiB."""

    memory: int
    time: int
    lanes: int
    salt: bytes
    digest: bytes

    scheme: ClassVar[str] = "argon2id"

    def matches(self, password: bytes) -> bool:
        made = _argon2id(password, self.salt, self.memory, self.time, self.lanes, octets=len(self.digest))
        return hmac.compare_digest(made, self.digest)

    def impostor(self, randomness: Randomness) -> Argon2id:
        salt, digest = randomness.randbytes(len(self.salt)), randomness.randbytes(len(self.digest))
        return Argon2id(self.memory, self.time, self.lanes, salt, digest)

    def __str__(self) -> str:
        cost = f"m={self.memory},t={self.time},p={self.lanes}"
        return f"$argon2id$v=19${cost}${_encode(self.salt)}${_encode(self.digest)}"


def argon2_installed() -> bool:
    """Whether argon2id hashes can be made and verified here."""
    return _argon2 is not None


def new_hash(password: bytes, randomness: Randomness) -> PasswordHash:
    """A hash of ``password`` with a new salt: argon2id where it is installed, else scrypt."""
    salt = randomness.randbytes(SALT_OCTETS)
    if argon2_installed():
        cost = (ARGON2_MEMORY_KIB, ARGON2_TIME, ARGON2_LANES)
        return Argon2id(*cost, salt, _argon2id(password, salt, *cost, octets=DIGEST_OCTETS))
    shape = (SCRYPT_LN, SCRYPT_R, SCRYPT_P)
    return Scrypt(*shape, salt, _scrypt(password, salt, *shape, octets=DIGEST_OCTETS))


def placeholder(randomness: Randomness) -> PasswordHash:
    """A hash of the scheme and cost of :func:`new_hash` that no password matches; costs nothing to make."""
    salt, digest = randomness.randbytes(SALT_OCTETS), randomness.randbytes(DIGEST_OCTETS)
    if argon2_installed():
        return Argon2id(ARGON2_MEMORY_KIB, ARGON2_TIME, ARGON2_LANES, salt, digest)
    return Scrypt(SCRYPT_LN, SCRYPT_R, SCRYPT_P, salt, digest)


_SCRYPT = re.compile(r"\$scrypt\$ln=(\d{1,3}),r=(\d{1,5}),p=(\d{1,5})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)")
_ARGON2 = re.compile(
    r"\$argon2id\$v=19\$m=(\d{1,9}),t=(\d{1,5}),p=(\d{1,5})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)"
)


def parse_hash(text: str) -> PasswordHash:
    """The hash that ``text`` encodes. Raises :class:`UnusableHash`, which never repeats the text."""
    if text.startswith("$argon2id$"):
        return _parse_argon2id(text)
    if text.startswith("$scrypt$"):
        return _parse_scrypt(text)
    if text.startswith("$"):
        scheme = re.sub(r"[^a-z0-9-]", "", text.split("$")[1].lower())[:16]
        raise UnusableHash(f"hash scheme {scheme or 'unknown'} is not supported: use argon2id or scrypt")
    raise UnusableHash("what follows the name is not a hash: expected $argon2id$… or $scrypt$…")


def _parse_scrypt(text: str) -> Scrypt:
    match = _SCRYPT.fullmatch(text)
    if match is None:
        raise UnusableHash("malformed scrypt hash: expected $scrypt$ln=LN,r=R,p=P$SALT$DIGEST")
    ln, r, p = (int(match[index]) for index in (1, 2, 3))
    if not (1 <= ln <= 24 and 1 <= r <= 64 and 1 <= p <= 64) or 128 * r * 2**ln > MAX_MEMORY:
        raise UnusableHash(f"scrypt cost out of range: ln={ln},r={r},p={p} (at most {_mebibytes()} MiB)")
    return Scrypt(ln, r, p, *_salt_and_digest(match[4], match[5]))


def _parse_argon2id(text: str) -> Argon2id:
    match = _ARGON2.fullmatch(text)
    if match is None:
        raise UnusableHash("malformed argon2id hash: expected $argon2id$v=19$m=M,t=T,p=P$SALT$DIGEST")
    memory, time, parallelism = (int(match[index]) for index in (1, 2, 3))
    # RFC 9106 §3.1: memory is at least 8 KiB for each degree of parallelism
    if not (1 <= time <= 64 and 1 <= parallelism <= 16 and 8 * parallelism <= memory <= MAX_MEMORY // 1024):
        raise UnusableHash(
            f"argon2id cost out of range: m={memory},t={time},p={parallelism} (at most {_mebibytes()} MiB)"
        )
    if not argon2_installed():
        raise UnusableHash(f"an argon2id hash, but argon2-cffi is not installed: {ARGON2_REMEDY}")
    return Argon2id(memory, time, parallelism, *_salt_and_digest(match[4], match[5]))


def _salt_and_digest(salt: str, digest: str) -> tuple[bytes, bytes]:
    decoded = _decode(salt), _decode(digest)
    if not (8 <= len(decoded[0]) <= 64 and 16 <= len(decoded[1]) <= 128):
        raise UnusableHash("salt (8 to 64 octets) or digest (16 to 128 octets) has an impossible length")
    return decoded


def _scrypt(password: bytes, salt: bytes, ln: int, r: int, p: int, *, octets: int) -> bytes:
    # OpenSSL's own ceiling of 32 MiB is just below what ln=15,r=8 takes
    most = 128 * r * (2**ln + p + 2) + 1024 * 1024
    return hashlib.scrypt(password, salt=salt, n=2**ln, r=r, p=p, maxmem=most, dklen=octets)


def _argon2id(password: bytes, salt: bytes, memory: int, time: int, lanes: int, *, octets: int) -> bytes:
    raw: bytes = _argon2.hash_secret_raw(
        password,
        salt,
        time_cost=time,
        memory_cost=memory,
        parallelism=lanes,
        hash_len=octets,
        type=_argon2.Type.ID,
        version=19,
    )
    return raw


def _encode(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii").rstrip("=")


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise UnusableHash("salt or digest is not base64") from None


def _mebibytes() -> int:
    return MAX_MEMORY // (1024 * 1024)
