"""DKIM and ARC signatures (RFC 6376, RFC 8463, RFC 8617), by dkimpy.

What is dkimpy's here: the grammar of fields, the canonical header, the mathematics. What is not: keys come
from a table of DNS answers, the body is hashed in blocks and once for all signatures, trouble with DNS is a
result of its own, and keys that are too short or too long are refused (RFC 8301 §3.2).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import dkim
from dkim.canonicalization import CanonicalizationPolicy, InvalidCanonicalizationPolicyError
from dkim.util import InvalidTagValueList, parse_tag_value

from elemta.policies.mail_auth.body_hash import BodyHash, BodyHashKind
from elemta.policies.mail_auth.dns_facts import DnsFacts, FactType, Question

MAX_SIGNATURES = 10
MAX_SEALS = 50  # RFC 8617 §4.2.1
MAX_SIGNATURE = 32 * 1024  # octets of one field; a signature with all that z= may copy is far shorter
MAX_SET_OCTETS = 256 * 1024  # of all ARC fields: each seal covers all those before it
MAX_COMPARISONS = 200_000  # of names in h= with fields; 50 names and 100 fields are 5,000
MIN_RSA_BITS, MAX_RSA_BITS = 1024, 4096  # RFC 8301 §3.2
MAX_EXPONENT = 1 << 33
DKIMPY_LEEWAY = 36_000  # seconds
MAX_KEY_RECORD = 4096  # characters: a key of 4,096 bits takes 740
ALGORITHMS = {b"rsa-sha256": b"rsa", b"ed25519-sha256": b"ed25519"}  # RFC 8301 §3.1, RFC 8463 §3
_SPACE = re.compile(rb"\s+")

Header = list[tuple[bytes, bytes]]
Bodies = Mapping[BodyHashKind, BodyHash]


class KeyLookupTrouble(Exception):
    """DNS did not say in time what the key is. No fault of the signature's."""


class UnacceptableSignature(dkim.DKIMException):  # type: ignore[misc]
    """The signature is well formed, but of a kind that proves nothing: an old algorithm, a short key."""


class BodyChanged(dkim.ValidationError):  # type: ignore[misc]
    """The body is not the one that was signed."""


@dataclass(frozen=True, slots=True)
class SignatureCheck:
    """What became of one DKIM signature, in the words of RFC 8601 §2.7.1."""

    result: str
    text: str
    domain: str = ""
    selector: str = ""
    identity: str = ""
    algorithm: str = ""
    beginning: str = ""  # the first characters of b=, which tell signatures apart (RFC 6008 §4)


@dataclass(frozen=True, slots=True)
class ChainCheck:
    """What became of a message's ARC chain: ``result`` is none, pass, fail or temperror."""

    result: str
    text: str
    sealers: tuple[str, ...] = ()  # the newest first
    newest_results: str = ""  # what the newest sealer says of the message


class _Checker:
    """What the two checkers of dkimpy share: keys from the table, hashes of the body from outside."""

    def use(self, header: Header, facts: DnsFacts, bodies: Bodies) -> None:
        """Give what dkimpy would read out of the whole message."""
        self.headers = [[name, value] for name, value in header]
        self._facts, self._bodies = facts, bodies

    def verify_sig(
        self, sig: dict[bytes, bytes], include_headers: Any, sig_header: Any, dnsfunc: Any
    ) -> bool:
        """Check one signature. Raises :class:`KeyLookupTrouble` or a ``DKIMException``."""
        if len(include_headers) * len(self.headers) > MAX_COMPARISONS:
            raise dkim.MessageFormatError("h= and the header are too long")
        wanted = ALGORITHMS.get(sig[b"a"])
        if wanted is None:
            raise UnacceptableSignature("the algorithm is obsolete: " + sig[b"a"].decode("ascii", "replace"))
        self.pk, self.keysize, self.ktag, self.seqtlsrpt = self._key(sig, wanted)
        if b"x" in sig:
            _check_expiry(sig)
        if b"bh" in sig:
            self._check_body(sig)
        rest = {tag: value for tag, value in sig.items() if tag != b"bh"}
        return bool(self.verify_sig_process(rest, include_headers, sig_header, dnsfunc))  # type: ignore[attr-defined]

    def _key(self, sig: dict[bytes, bytes], wanted: bytes) -> tuple[Any, int, bytes, bool]:
        name = _key_name(sig)
        fact = self._facts.get(name, FactType.TXT)
        if fact.trouble is not None:
            raise KeyLookupTrouble(fact.trouble)
        # RFC 6376 §3.6.2.2: several records are undefined; the first is taken.
        record = str(fact.values[0]) if fact.values else ""
        if not record:
            raise dkim.KeyFormatError("no key for the signature")
        if len(record) > MAX_KEY_RECORD or not record.isascii():
            raise dkim.KeyFormatError("the key record is no key")
        tags = _tags(record.encode("ascii"))
        _check_tags(tags)
        _check_strict_identity(tags, sig)
        try:
            pk, bits, kind, reports = dkim.evaluate_pk(name, _for_dkimpy(tags))
        except (ValueError, IndexError, TypeError) as error:  # binascii.Error is a ValueError
            raise dkim.KeyFormatError("the key can't be read") from error
        if kind != wanted:
            raise dkim.KeyFormatError("the key is of another algorithm than the signature")
        if kind == b"rsa" and not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
            raise UnacceptableSignature(f"a key of {bits} bits proves nothing")
        # A large exponent makes one check take as long as hundreds; no sender uses one.
        if kind == b"rsa" and not 3 <= pk["publicExponent"] < MAX_EXPONENT:
            raise UnacceptableSignature("the key's exponent is out of the ordinary")
        return pk, bits, kind, reports

    def _check_body(self, sig: dict[bytes, bytes]) -> None:
        kind = body_hash_kind(sig)
        body = self._bodies[kind]
        if kind.limit is not None and kind.limit > body.length:
            raise BodyChanged("l= is larger than the body")  # RFC 6376 §3.5, l=
        if body.digest != base64.b64decode(_SPACE.sub(b"", sig[b"bh"])):
            raise BodyChanged("the body was changed")


def _check_expiry(sig: dict[bytes, bytes]) -> None:
    """RFC 6376 §3.5, x=: dkimpy, whose clock it is, takes a signature that expired up to 10 hours ago."""
    earlier = b"%d" % max(0, int(sig[b"x"]) - DKIMPY_LEEWAY)
    dkim.validate_signature_fields({b"d": sig[b"d"], b"x": earlier}, [])


class _DKIM(_Checker, dkim.DKIM):  # type: ignore[misc]
    def verify_sig(
        self, sig: dict[bytes, bytes], include_headers: Any, sig_header: Any, dnsfunc: Any
    ) -> bool:
        if b"from" not in include_headers:
            # RFC 6376 §6.1.1: any author could stand above what was signed.
            raise dkim.ValidationError("the From field is not signed")
        return super().verify_sig(sig, include_headers, sig_header, dnsfunc)


class _ARC(_Checker, dkim.ARC):  # type: ignore[misc]
    def use(self, header: Header, facts: DnsFacts, bodies: Bodies) -> None:
        super().use(header, facts, bodies)
        self.headers = [[name, _with_instance(name, value)] for name, value in header]


class _InstanceValue(bytes):
    """The value of an ARC-Message-Signature. dkimpy looks for it by its instance, in lower case, and only in
    the form that most sealers write."""

    instance: bytes

    def lower(self) -> bytes:
        return b" i=" + self.instance + b"; " + super().lower()


def _with_instance(name: bytes, value: bytes) -> bytes:
    if name.lower() != b"arc-message-signature":
        return value
    try:
        instance = _tags(value).get(b"i")
    except dkim.DKIMException:
        return value  # its check says the same
    if instance is None:
        return value
    found = _InstanceValue(value)
    found.instance = instance
    return found


def _tags(value: bytes) -> dict[bytes, bytes]:
    if len(value) > MAX_SIGNATURE:
        raise dkim.MessageFormatError("the list of tags is too long")
    try:
        return dict(parse_tag_value(value))
    except InvalidTagValueList as error:
        raise dkim.MessageFormatError("the list of tags can't be read") from error


def _check_tags(tags: dict[bytes, bytes]) -> None:
    """RFC 6376 §3.6.1: p=, h= and s=."""
    if not _SPACE.sub(b"", tags.get(b"p", b"")):
        raise dkim.KeyFormatError("the key is revoked")
    if b"h" in tags and b"sha256" not in _SPACE.sub(b"", tags[b"h"]).split(b":"):
        raise dkim.KeyFormatError("the key does not allow sha256")
    if b"s" in tags and not {b"*", b"email"} & set(_SPACE.sub(b"", tags[b"s"]).split(b":")):
        raise dkim.KeyFormatError("the key is not for mail")


def _for_dkimpy(tags: dict[bytes, bytes]) -> str:
    """A key record without what was checked: dkimpy reads an s= of several services as unknown."""
    kept = (tag + b"=" + tags[tag] for tag in (b"v", b"k", b"p") if tag in tags)
    return b"; ".join(kept).decode("ascii")


def _check_strict_identity(key: dict[bytes, bytes], sig: dict[bytes, bytes]) -> None:
    """RFC 6376 §3.6.1, t=s: i= names the domain itself, not one below it."""
    strict = b"s" in _SPACE.sub(b"", key.get(b"t", b"")).split(b":")
    if strict and b"i" in sig and sig[b"i"].rpartition(b"@")[2].lower() != sig[b"d"].lower():
        raise dkim.KeyFormatError("the key is not for domains below its own")


def body_hash_kind(sig: Mapping[bytes, bytes]) -> BodyHashKind:
    """How the body is hashed for a signature. Raises a ``DKIMException`` where its tags don't say."""
    try:
        policy = CanonicalizationPolicy.from_c_value(sig.get(b"c", b"simple/simple"))
    except InvalidCanonicalizationPolicyError as error:
        raise dkim.MessageFormatError("c= is unknown") from error
    limit = sig.get(b"l")
    if limit is not None and not re.fullmatch(rb"[0-9]{1,76}", limit):
        raise dkim.MessageFormatError("l= is no number")
    return BodyHashKind(policy.body_algorithm.name == b"relaxed", None if limit is None else int(limit))


def wanted_body_hashes(header: Header) -> list[BodyHashKind]:
    """The hashes that the signatures of this header need, of a bounded number."""
    kinds: list[BodyHashKind] = []
    for given, value in _signature_fields(header):
        try:
            kinds.append(body_hash_kind({**given, **_tags(value)}))
        except dkim.DKIMException:
            continue  # its check says the same
    return kinds


def _signature_fields(header: Header) -> Iterable[tuple[dict[bytes, bytes], bytes]]:
    """The fields that sign a body, each with the tags that it has where it names none."""
    signatures = [value for name, value in header if name.lower() == b"dkim-signature"]
    seals = [value for name, value in header if name.lower() == b"arc-message-signature"]
    yield from (({}, value) for value in signatures[:MAX_SIGNATURES])
    yield from (({b"c": b"relaxed/relaxed"}, value) for value in seals[:MAX_SEALS])


def wanted_keys(header: Header) -> list[Question]:
    """Where DNS has the keys of this header's signatures and seals, of a bounded number."""
    signatures = [value for name, value in header if name.lower() == b"dkim-signature"][:MAX_SIGNATURES]
    sealed = (b"arc-seal", b"arc-message-signature")
    seals = [value for name, value in header if name.lower() in sealed][: 2 * MAX_SEALS]
    keys: list[Question] = []
    for value in (*signatures, *seals):
        try:
            tags = _tags(value)
        except dkim.DKIMException:
            continue  # its check says the same
        if tags.get(b"s") and tags.get(b"d"):
            keys.append((_key_name(tags).lower().rstrip("."), FactType.TXT))
    return keys


def _key_name(tags: Mapping[bytes, bytes]) -> str:
    return (tags[b"s"] + b"._domainkey." + tags[b"d"]).decode("utf-8", "replace")


def check_dkim(header: Header, bodies: Bodies, facts: DnsFacts) -> tuple[SignatureCheck, ...]:
    """Check every DKIM signature, the topmost first; those behind the tenth are not looked at."""
    count = sum(1 for name, _ in header if name.lower() == b"dkim-signature")
    checks = [_check_one(header, bodies, facts, index) for index in range(min(count, MAX_SIGNATURES))]
    return tuple(checks)


def _check_one(header: Header, bodies: Bodies, facts: DnsFacts, index: int) -> SignatureCheck:
    values = (value for name, value in header if name.lower() == b"dkim-signature")
    if len(next(islice(values, index, None))) > MAX_SIGNATURE:
        return SignatureCheck("permerror", "the signature is too long")
    checker = _DKIM()
    checker.use(header, facts, bodies)

    def said(result: str, text: str) -> SignatureCheck:
        return _described(checker.signature_fields, result, text)

    return _result(lambda: checker.verify(index), said)


def _result(  # noqa: PLR0911 - one case for each result of RFC 8601 §2.7.1
    verify: Callable[[], bool], said: Callable[[str, str], SignatureCheck]
) -> SignatureCheck:
    try:
        return said("pass", "") if verify() else said("fail", "the header was changed")
    except UnacceptableSignature as error:
        return said("policy", str(error))
    except KeyLookupTrouble as error:
        return said("temperror", str(error))
    except BodyChanged as error:
        return said("fail", str(error))
    except dkim.ValidationError as error:
        expired = str(error).startswith("x= value is past")
        return said("fail", "the signature has expired") if expired else said("permerror", _words(error))
    except dkim.DKIMException as error:
        return said("permerror", _words(error))
    except (binascii.Error, UnicodeError, ValueError, IndexError, KeyError):
        return said("permerror", "the signature can't be read")


def _words(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _described(tags: Mapping[bytes, bytes], result: str, text: str) -> SignatureCheck:
    def tag(name: bytes) -> str:
        return _SPACE.sub(b"", tags.get(name, b"")).decode("utf-8", "replace")[:256]

    return SignatureCheck(result, text, tag(b"d").lower(), tag(b"s"), tag(b"i"), tag(b"a"), tag(b"b")[:8])


def check_arc(  # noqa: PLR0911 - one case for each end of a validation
    header: Header, bodies: Bodies, facts: DnsFacts
) -> ChainCheck:
    """Validate the chain of ARC sets (RFC 8617 §5.2)."""
    if not any(name.lower() in dkim.ARC.ARC_HEADERS for name, _ in header):
        return ChainCheck("none", "")
    problem = _structure_problem(header)
    if problem:
        return ChainCheck("fail", problem)
    checker = _ARC()
    checker.use(header, facts, bodies)
    try:
        verdict, sets, text = checker.verify()
    except KeyLookupTrouble as error:
        return ChainCheck("temperror", str(error))
    except (dkim.DKIMException, ValueError, IndexError, KeyError) as error:
        return ChainCheck("fail", _words(error))
    sealers = tuple(one["as-domain"].decode("utf-8", "replace").lower() for one in sets if "as-domain" in one)
    newest = sets[0]["aar-value"].decode("utf-8", "replace")[:2000] if sets else ""
    if verdict == dkim.CV_None:
        return ChainCheck("none", "")
    if verdict == dkim.CV_Pass:
        return ChainCheck("pass", "", sealers, newest)
    return ChainCheck("fail", str(text)[:120], sealers, newest)


def _structure_problem(header: Header) -> str:
    """Why the fields can't be a chain: looked at before any signature is checked (RFC 8617 §5.2)."""
    fields = [value for name, value in header if name.lower() in dkim.ARC.ARC_HEADERS]
    if len(fields) > 3 * MAX_SEALS:
        return "the chain is longer than 50 sets"
    if sum(map(len, fields)) > MAX_SET_OCTETS:
        return "the sets of the chain are too long"
    return ""
