"""DKIM signatures, beyond what a suite has."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import re
import time
from functools import partial

import dkim
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from dkim.canonicalization import CanonicalizationPolicy

from elemta.errors import NoSuchDomain, ResolverTrouble
from elemta.policies.dkim_sign.signature import SigningKey, _seal_value
from elemta.policies.mail_auth.body_hash import hash_body
from elemta.policies.mail_auth.dns_facts import FactType, evaluate
from elemta.policies.mail_auth.signatures import (
    MAX_SIGNATURES,
    check_arc,
    check_dkim,
    wanted_body_hashes,
    wanted_keys,
)

HEADER = b"From: Anna <anna@example.org>\r\nTo: b@example.net\r\nSubject: Hello\r\nDate: now\r\n"
BODY = b"One line  with blanks \r\n\r\nAnd another\r\n\r\n\r\n"
MESSAGE = HEADER + b"\r\n" + BODY


class Keys:
    """Zone and private keys. RSA keys are made once for each size."""

    made: dict[int, rsa.RSAPrivateKey] = {}

    def __init__(self) -> None:
        self.records: dict[str, str | Exception] = {}

    async def lookup(self, name: str, kind: FactType) -> tuple[object, ...]:
        assert kind is FactType.TXT
        record = self.records.get(name)
        if record is None:
            raise NoSuchDomain(name)
        if isinstance(record, Exception):
            raise record
        return (record,)

    def rsa(self, bits: int = 2048, *, tags: str = "", selector: str = "s") -> bytes:
        if bits not in self.made:
            self.made[bits] = rsa.generate_private_key(65537, bits)
        key = self.made[bits]
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.records[f"{selector}._domainkey.example.org"] = (
            f"v=DKIM1; k=rsa; {tags}p={base64.b64encode(public).decode()}"
        )
        return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())

    def ed25519(self, selector: str = "e") -> bytes:
        key = ed25519.Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.records[f"{selector}._domainkey.example.org"] = (
            f"v=DKIM1; k=ed25519; p={base64.b64encode(public).decode()}"
        )
        return base64.b64encode(key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))

    def check(self, message: bytes):
        header, body = dkim.rfc822_parse(message)
        bodies = hash_body(io.BytesIO(body), wanted_body_hashes(header))

        async def in_place(step):
            return step()

        return asyncio.run(evaluate(lambda facts: check_dkim(header, bodies, facts), self, in_place))

    def result(self, message: bytes) -> str:
        (only,) = self.check(message)
        return only.result


def signed(key: bytes, message: bytes = MESSAGE, **how) -> bytes:
    how = {"selector": b"s", "domain": b"example.org", **how}
    return dkim.sign(message, privkey=key, **how) + message


@pytest.fixture
def keys():
    return Keys()


@pytest.mark.parametrize(
    "canonical", [(a, b) for a in (b"simple", b"relaxed") for b in (b"simple", b"relaxed")]
)
def test_a_signature_passes_in_every_canonical_form(keys, canonical):
    (check,) = keys.check(signed(keys.rsa(), canonicalize=canonical))
    assert (check.result, check.domain, check.selector, check.algorithm) == (
        "pass",
        "example.org",
        "s",
        "rsa-sha256",
    )
    assert len(check.beginning) == 8


def test_an_ed25519_signature_passes(keys):
    key = keys.ed25519()
    message = signed(key, selector=b"e", signature_algorithm=b"ed25519-sha256")
    assert keys.result(message) == "pass"
    assert keys.result(message.replace(b"Hello", b"Hallo")) == "fail"


@pytest.mark.parametrize(
    ("changed", "into"),
    [(b"Subject: Hello", b"Subject: Bye"), (b"And another", b"And one more"), (b"From: Anna", b"From: Bert")],
)
def test_a_change_of_what_was_signed_fails(keys, changed, into):
    assert keys.result(signed(keys.rsa()).replace(changed, into)) == "fail"


def test_a_second_from_field_breaks_the_signature(keys):
    message = signed(keys.rsa())
    assert keys.result(message.replace(b"To:", b"From: other@example.com\r\nTo:", 1)) == "fail"


@pytest.mark.parametrize(
    ("bits", "result"), [(1024, "pass"), (2048, "pass"), (4096, "pass"), (512, "policy"), (8192, "policy")]
)
def test_keys_of_1024_to_4096_bits_are_taken(keys, bits, result):
    if bits == 8192:
        keys.rsa(2048)
        message = signed(keys.rsa(2048))
        modulus = (1 << 8191) | 1
        numbers = rsa.RSAPublicNumbers(65537, modulus).public_key()
        der = numbers.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        keys.records["s._domainkey.example.org"] = f"v=DKIM1; p={base64.b64encode(der).decode()}"
    elif bits == 512:
        # dkimpy signs with short keys, cryptography no longer makes them.
        message = signed(keys.rsa(1024))
        modulus = (1 << 511) | 1
        der = rsa_512(modulus)
        keys.records["s._domainkey.example.org"] = f"v=DKIM1; p={base64.b64encode(der).decode()}"
    else:
        message = signed(keys.rsa(bits))
    assert keys.result(message) == result


def rsa_512(modulus: int) -> bytes:
    """A public key that libraries refuse to make: SubjectPublicKeyInfo by hand."""

    def der(tag: int, content: bytes) -> bytes:
        size = len(content)
        length = bytes([size]) if size < 128 else bytes([0x81, size])
        return bytes([tag]) + length + content

    number = der(2, b"\0" + modulus.to_bytes(64, "big"))
    key = der(0x30, number + der(2, b"\1\0\1"))
    algorithm = der(0x30, der(6, bytes.fromhex("2a864886f70d010101")) + b"\5\0")
    return der(0x30, algorithm + der(3, b"\0" + key))


def test_a_key_whose_exponent_makes_checks_slow_is_not_used(keys):
    message = signed(keys.rsa())
    modulus = keys.made[2048].public_key().public_numbers().n
    key = b"\x30\x82\x02\x0a" + b"\x02\x82\x01\x01\0" + modulus.to_bytes(256, "big")
    key += b"\x02\x82\x01\x01\0" + (modulus - 2).to_bytes(256, "big")
    keys.records["s._domainkey.example.org"] = f"v=DKIM1; p={base64.b64encode(key).decode()}"
    assert keys.result(message) == "policy"


def test_rsa_sha1_proves_nothing(keys):
    message = signed(keys.rsa()).replace(b"a=rsa-sha256", b"a=rsa-sha1")
    assert keys.result(message) == "policy"


@pytest.mark.parametrize(
    ("record", "result"),
    [
        (None, "permerror"),
        ("", "permerror"),
        ("v=DKIM1; p=", "permerror"),
        ("v=DKIM2; p=AAAA", "permerror"),
        ("v=DKIM1; p=!!!", "permerror"),
        ("v=DKIM1; k=unknown; p=AAAA", "permerror"),
        ("v=DKIM1; p=" + "A" * 5000, "permerror"),
        ("some text", "permerror"),
        (ResolverTrouble("no answer in time"), "temperror"),
    ],
)
def test_a_key_that_is_none_is_no_pass(keys, record, result):
    message = signed(keys.rsa())
    keys.records["s._domainkey.example.org"] = record
    assert keys.result(message) == result


@pytest.mark.parametrize(
    ("tags", "result"),
    [
        ("h=sha1; ", "permerror"),
        ("h=sha1:sha256; ", "pass"),
        ("s=tlsrpt; ", "permerror"),
        ("s=email; ", "pass"),
        ("s=other:email; ", "pass"),
        ("s= tlsrpt : * ; ", "pass"),
        ("s=other; ", "permerror"),
        ("n=notes about k=ed25519; g=; ", "pass"),
        ("t=s; ", "pass"),
        ("t=y; ", "pass"),
    ],
)
def test_the_tags_of_a_key_are_heeded(keys, tags, result):
    assert keys.result(signed(keys.rsa(tags=tags))) == result


def test_a_strict_key_is_not_for_domains_below(keys):
    message = signed(keys.rsa(tags="t=s; "), identity=b"anna@mail.example.org")
    assert keys.result(message) == "permerror"
    keys.rsa()
    assert keys.result(message) == "pass"


def test_an_expired_signature_fails_even_if_the_rest_is_good(keys, monkeypatch):
    key = keys.rsa()
    now = time.time()
    signer = dkim.DKIM(MESSAGE)
    field = signer.sign(b"s", b"example.org", key)
    assert b"x=" not in field
    with_expiry = field.replace(b"; t=", f"; x={int(now) - 100_000}; t=".encode(), 1)
    assert keys.result(with_expiry + MESSAGE) == "fail"


class Octets:
    """Keeps what dkimpy would hash."""

    def __init__(self) -> None:
        self.kept = b""

    def update(self, octets: bytes) -> None:
        self.kept += octets


def handmade(keys: Keys, tags: bytes, names: bytes, field: bytes = b"DKIM-Signature") -> bytes:
    """A field that signs MESSAGE, relaxed/relaxed, its first tags as they are given."""
    keys.rsa()
    relaxed = CanonicalizationPolicy.from_c_value(b"relaxed/relaxed")
    header, body = dkim.rfc822_parse(MESSAGE)
    digest = base64.b64encode(hashlib.sha256(relaxed.canonicalize_body(body)).digest())
    value = tags + b"h=" + names + b";bh=" + digest + b";b="
    octets = Octets()
    signed_names = names.lower().split(b":")
    canonical = relaxed.canonicalize_headers(header)
    dkim.hash_headers(octets, relaxed, canonical, signed_names, (field, value + b"\r\n"), {})
    signature = Keys.made[2048].sign(octets.kept, padding.PKCS1v15(), hashes.SHA256())
    return field + b":" + value + base64.b64encode(signature) + b"\r\n"


@pytest.mark.parametrize(
    ("names", "result"),
    [
        (b"from:subject", "pass"),
        (b"FROM:Subject:from", "pass"),
        (b"subject", "permerror"),
        (b"x-from:from-x", "permerror"),
        (b"", "permerror"),
    ],
)
def test_a_signature_that_does_not_cover_the_author_proves_nothing(keys, names, result):
    field = handmade(keys, b"v=1;a=rsa-sha256;c=relaxed/relaxed;d=example.org;s=s;", names)
    assert keys.result(field + MESSAGE) == result


@pytest.mark.parametrize(
    "tags",
    [
        b" i=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=s; ",
        b"i=1;a=rsa-sha256;c=relaxed/relaxed;d=example.org;s=s;",
        b" a=rsa-sha256;d=example.org;s=s;i=1;",
        b" a=rsa-sha256;\r\n\td=example.org;\r\n\ts=s;\r\n\ti = 1 ;\r\n\t",
        b" A=1; a=rsa-sha256; d=example.org; s=s; i=1 ; ",
    ],
)
def test_the_instance_of_an_arc_signature_is_found_wherever_it_stands(keys, tags):
    signature = handmade(keys, tags, b"from:subject", b"ARC-Message-Signature")
    results = b"ARC-Authentication-Results: i=1; list.example; spf=pass\r\n"
    key = SigningKey("example.org", "s", Keys.made[2048])
    fields, _ = dkim.rfc822_parse(results + signature)
    seal_tags = [(b"i", b"1"), (b"a", b"rsa-sha256"), (b"cv", b"none"), (b"d", b"example.org")]
    seal = _seal_value([*seal_tags, (b"s", b"s"), (b"b", b"")], fields, key)
    message = b"ARC-Seal: " + seal + b"\r\n" + signature + results + MESSAGE
    header, body = dkim.rfc822_parse(message)
    bodies = hash_body(io.BytesIO(body), wanted_body_hashes(header))

    async def in_place(step):
        return step()

    chain = asyncio.run(evaluate(lambda facts: check_arc(header, bodies, facts), keys, in_place))
    assert (chain.result, chain.text, chain.sealers) == ("pass", "", ("example.org",))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-100_000, "the signature has expired"),
        (-3_600, "the signature has expired"),
        (-2, "the signature has expired"),
        (3_600, "the header was changed"),  # by the tag itself
    ],
)
def test_a_signature_expires_at_the_second_that_it_names(keys, seconds, text):
    field = dkim.sign(MESSAGE, b"s", b"example.org", keys.rsa())
    signed_at = re.search(rb" t=\d+;", field)[0]
    dates = b" t=%d; x=%d;" % (time.time() - 200_000, time.time() + seconds)
    (check,) = keys.check(field.replace(signed_at, dates) + MESSAGE)
    assert (check.result, check.text) == ("fail", text)


def test_what_follows_the_length_is_not_signed_and_more_than_there_is_fails(keys):
    message = signed(keys.rsa(), length=True)
    assert keys.result(message) == "pass"
    assert keys.result(message + b"An advertisement\r\n") == "pass"
    assert keys.result(message.replace(b"And another\r\n", b"")) == "fail"


def test_several_signatures_are_checked_each_for_itself_and_at_most_ten(keys):
    one, two = keys.rsa(selector="s"), keys.ed25519(selector="e")
    first = dkim.sign(MESSAGE, b"s", b"example.org", one)
    second = dkim.sign(MESSAGE, b"e", b"example.org", two, signature_algorithm=b"ed25519-sha256")
    foreign = first.replace(b"example.org", b"example.com")
    results = [check.result for check in keys.check(foreign + second + first + MESSAGE)]
    assert results == ["permerror", "pass", "pass"]
    assert len(keys.check(first * 40 + MESSAGE)) == MAX_SIGNATURES


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"v=1",
        b"nonsense",
        b"v=1; a=rsa-sha256; d=; s=; h=; b=; bh=",
        b"v=1; a=rsa-sha256; d=example.org; s=s; h=from; b=AAAA; bh=AAAA; l=x",
        b"v=1; a=rsa-sha256; d=example.org; s=s; h=from; b=AAA; bh=AAA; c=other/other",
        b"v=1; a=rsa-sha256; d=\xff.org; s=\xff; h=from; b=AAAA; bh=AAAA",
        b"v=1; a=rsa-sha256; d=example.org; i=x; s=s; h=from; b=AAAA; bh=AAAA",
        b"v=1; v=1; a=rsa-sha256",
        b"v=1; a=rsa-sha256; d=example.org; s=s; h=from; b=AAAA; bh=AAAA; l=" + b"9" * 76,
        b"=;" * 1000,
    ],
)
def test_a_field_that_is_no_signature_is_no_pass_and_no_error(keys, value):
    keys.rsa()
    (check,) = keys.check(b"DKIM-Signature: " + value + b"\r\n" + MESSAGE)
    assert check.result in ("fail", "permerror")
    assert check.text


def test_a_message_without_a_signature_has_no_checks(keys):
    assert keys.check(MESSAGE) == ()


def test_the_keys_of_many_signatures_are_there_before_the_first_check(keys):
    private = keys.rsa()
    message = MESSAGE
    for number in range(MAX_SIGNATURES):
        keys.records[f"s{number}._domainkey.example.org"] = keys.records["s._domainkey.example.org"]
        message = dkim.sign(MESSAGE, b"s%d" % number, b"example.org", private) + message
    header, body = dkim.rfc822_parse(message)
    bodies, runs = hash_body(io.BytesIO(body), wanted_body_hashes(header)), []

    async def counted(step):
        runs.append(step)
        return step()

    checked = partial(check_dkim, header, bodies)
    checks = asyncio.run(evaluate(checked, keys, counted, wanted=wanted_keys(header)))
    assert [check.result for check in checks] == ["pass"] * MAX_SIGNATURES
    assert len(runs) == 1
