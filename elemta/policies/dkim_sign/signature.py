"""DKIM signatures and ARC sets that we make (RFC 6376, RFC 8463, RFC 8617).

dkimpy chooses and canonicalizes the fields; the mathematics is that of ``cryptography``, which lets other
threads run meanwhile. The body comes as a hash, so its size does not matter here.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dkim
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from dkim.canonicalization import CanonicalizationPolicy

Header = list[tuple[bytes, bytes]]

MIN_RSA_BITS = 1024  # RFC 8301 §3.2
RELAXED = b"relaxed/relaxed"
MAX_SETS = 50  # RFC 8617 §4.2.1
# Fields of the message itself; those that relays add or change are left out (RFC 6376 §5.4.1).
SIGNED = (
    b"from", b"reply-to", b"subject", b"date", b"to", b"cc", b"message-id", b"in-reply-to", b"references",
    b"mime-version", b"content-type", b"content-transfer-encoding", b"content-id", b"content-description",
    b"resent-date", b"resent-from", b"resent-to", b"resent-cc", b"list-id", b"list-help", b"list-unsubscribe",
    b"list-unsubscribe-post", b"list-subscribe", b"list-post", b"list-owner", b"list-archive", b"sender",
)  # fmt: skip
# Once more than there are, so that no other can be added (RFC 6376 §8.15).
OVERSIGNED = (
    b"from",
    b"subject",
    b"date",
    b"to",
    b"cc",
    b"message-id",
    b"reply-to",
    b"mime-version",
    b"content-type",
)


class KeyFileFault(Exception):
    """The key file can't be used; the text says why."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key and where its public half is found in DNS."""

    domain: str
    selector: str
    private: RSAPrivateKey | Ed25519PrivateKey

    @property
    def algorithm(self) -> bytes:
        return b"rsa-sha256" if isinstance(self.private, RSAPrivateKey) else b"ed25519-sha256"

    def sign(self, digest_of: bytes) -> bytes:
        """Sign octets: RSA their SHA-256, Ed25519 likewise (RFC 8463 §3)."""
        if isinstance(self.private, RSAPrivateKey):
            return self.private.sign(digest_of, padding.PKCS1v15(), hashes.SHA256())
        return self.private.sign(hashlib.sha256(digest_of).digest())


def load_key(domain: str, selector: str, file: Path) -> SigningKey:
    """Read a key in PEM (PKCS#1 or PKCS#8). Raises :class:`KeyFileFault`."""
    try:
        key = load_pem_private_key(file.read_bytes(), None)
    except OSError as error:
        raise KeyFileFault(f"{file}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileFault(f"{file}: no private key in PEM without a password") from error
    if isinstance(key, RSAPrivateKey):
        if key.key_size < MIN_RSA_BITS:
            raise KeyFileFault(f"{file}: the key has {key.key_size} bits, at least {MIN_RSA_BITS} are needed")
    elif not isinstance(key, Ed25519PrivateKey):
        raise KeyFileFault(f"{file}: the key is neither RSA nor Ed25519")
    return SigningKey(domain, selector, key)


class _Octets:
    """What dkimpy takes for a hash: keeps the octets, because the signature functions hash themselves."""

    def __init__(self) -> None:
        self.octets = bytearray()

    def update(self, data: bytes) -> None:
        self.octets += data


def dkim_signature(header: Header, body_digest: bytes, key: SigningKey, now: int) -> bytes:
    """The value of a DKIM-Signature field, folded. ``body_digest``: relaxed, SHA-256."""
    names = _signed_names(header)
    domain = key.domain.encode("ascii")
    tags = [
        (b"v", b"1"),
        (b"a", key.algorithm),
        (b"c", RELAXED),
        (b"d", domain),
        (b"s", key.selector.encode("ascii")),
        (b"t", b"%d" % now),
        (b"h", b":".join(names)),
        (b"bh", base64.b64encode(body_digest)),
        (b"b", b""),
    ]
    return _signed_value(b"DKIM-Signature", tags, header, names, key)


def _signed_names(header: Header, wanted: Sequence[bytes] = SIGNED) -> list[bytes]:
    present = [name.lower() for name, _ in header]
    names = [name for name in present if name in wanted]
    return names + [name for name in OVERSIGNED if name in wanted]


def _signed_value(
    name: bytes, tags: list[tuple[bytes, bytes]], header: Header, include: Sequence[bytes], key: SigningKey
) -> bytes:
    value = dkim.fold(b"; ".join(b"=".join(tag) for tag in tags), namelen=len(name), linesep=b"\r\n")
    policy = CanonicalizationPolicy.from_c_value(RELAXED)
    octets = _Octets()
    dkim.hash_headers(
        octets, policy, policy.canonicalize_headers(header), include, (name, b" " + value), dict(tags)
    )
    signature = base64.b64encode(key.sign(bytes(octets.octets)))
    lines = [signature[at : at + 70] for at in range(0, len(signature), 70)]
    return bytes(value + b"\r\n\t" + b"\r\n\t".join(lines))


@dataclass(frozen=True, slots=True)
class ArcSet:
    """The three fields of an ARC set; the seal is the topmost (RFC 8617 §4.1)."""

    seal: bytes
    signature: bytes
    results: bytes

    def fields(self) -> Header:
        """As fields, the topmost first."""
        return [
            (b"ARC-Seal", self.seal),
            (b"ARC-Message-Signature", self.signature),
            (b"ARC-Authentication-Results", self.results),
        ]


@dataclass(frozen=True, slots=True)
class Chain:
    """The ARC sets that a message has, by number, and what their validation said: none, pass or fail."""

    sets: Sequence[Header]
    status: str


def arc_set(
    header: Header,
    body_digest: bytes,
    chain: Chain,
    results: bytes,
    key: SigningKey,
    *,
    now: int,
    signed: Sequence[bytes] | None = None,
) -> ArcSet | None:
    """Seal a message (RFC 8617 §5.1). ``results`` is the value of our Authentication-Results field.

    None where no set may follow: the chain was failed by the one that sealed last, or has 50 sets.
    """
    number = len(chain.sets) + 1
    if number > MAX_SETS or _sealed_as_failed(chain):
        return None
    who = [(b"d", key.domain.encode("ascii")), (b"s", key.selector.encode("ascii")), (b"t", b"%d" % now)]
    first = (b"i", b"%d" % number)
    aar = b"i=%d; %s" % (number, results.strip())
    names = [name.lower() for name in signed] if signed is not None else _arc_names(header)
    ams_tags = [first, (b"a", key.algorithm), (b"c", RELAXED), *who]
    ams_tags += [(b"h", b":".join(names)), (b"bh", base64.b64encode(body_digest)), (b"b", b"")]
    ams = _signed_value(b"ARC-Message-Signature", ams_tags, header, names, key)
    seal_tags = [first, (b"a", key.algorithm), (b"cv", chain.status.encode("ascii")), *who, (b"b", b"")]
    own = [
        (b"ARC-Authentication-Results", b" " + aar + b"\r\n"),
        (b"ARC-Message-Signature", b" " + ams + b"\r\n"),
    ]
    # RFC 8617 §5.1.2: a seal over a failed chain covers its own set only.
    sealed = (
        own if chain.status == "fail" else [field for one in chain.sets for field in _in_order(one)] + own
    )
    seal = _seal_value(seal_tags, sealed, key)
    return ArcSet(seal, ams, aar)


def _arc_names(header: Header) -> list[bytes]:
    # RFC 8617 §4.1.2: never ARC-Seal; DKIM-Signature fields should be covered.
    return _signed_names(header, (*SIGNED, b"dkim-signature"))


def _sealed_as_failed(chain: Chain) -> bool:
    if not chain.sets:
        return False
    seal = next((value for name, value in chain.sets[-1] if name.lower() == b"arc-seal"), b"")
    return b"cv=fail" in b"".join(seal.lower().split())


_ORDER = (b"arc-authentication-results", b"arc-message-signature", b"arc-seal")


def _in_order(fields: Header) -> Header:
    # RFC 8617 §5.1.1
    return sorted(fields, key=lambda field: _ORDER.index(field[0].lower()))


def _seal_value(tags: list[tuple[bytes, bytes]], sealed: Header, key: SigningKey) -> bytes:
    value = dkim.fold(b"; ".join(b"=".join(tag) for tag in tags), namelen=8, linesep=b"\r\n")
    policy = CanonicalizationPolicy.from_c_value(RELAXED)
    octets = bytearray()
    for name, content in policy.canonicalize_headers([*sealed, (b"ARC-Seal", b" " + value)]):
        octets += name + b":" + content
    signature = base64.b64encode(key.sign(bytes(octets).rstrip(b"\r\n")))
    lines = [signature[at : at + 70] for at in range(0, len(signature), 70)]
    return bytes(value + b"\r\n\t" + b"\r\n\t".join(lines))
