"""Messages that are made to cost time: each is answered soon, and holds up the reactor shortly.

The bound is generous, for a busy machine. Before the checks were bounded, the worst of these took minutes.
"""

from __future__ import annotations

import base64
import hashlib
import time

import pytest

from elemta.policies.mail_auth import MailAuthPlugin
from elemta.policies.mail_auth.field import claims
from elemta.policy import CONTINUE, DKIMResult, DMARCResult, Reject, SPFResult
from elemta.policy.testing import PolicyTester, Zone

SECONDS = 20.0
FROM = b"From: a@x.test\r\n"
BODY = b"\r\nhello\r\n"
BODY_HASH = base64.b64encode(hashlib.sha256(b"hello\r\n").digest())
# The modulus of any key of 2,048 bits: nothing is signed with it.
KEY = base64.b64encode(
    b"\x30\x82\x01\x22\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x03\x82\x01\x0f\x00"
    b"\x30\x82\x01\x0a\x02\x82\x01\x01\x00" + b"\xc5" * 256 + b"\x02\x03\x01\x00\x01"
).decode()
ZONE = Zone(texts_of={"s._domainkey.x.test": [f"v=DKIM1; k=rsa; p={KEY}"], "x.test": ["v=spf1 -all"]})


def signature(names: bytes = b"from", more: bytes = b"") -> bytes:
    return (
        b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=x.test; s=s; h=" + names + b"; bh="
        + BODY_HASH + b"; b=" + base64.b64encode(b"y" * 256) + more + b"\r\n"
    )  # fmt: skip


def arc_set(number: int, padding: int) -> bytes:
    i, cv = b"%d" % number, b"none" if number == 1 else b"pass"
    signed = b"; a=rsa-sha256; d=x.test; s=s; b=" + base64.b64encode(b"y" * 256)
    return (
        b"ARC-Seal: i=" + i + b"; cv=" + cv + signed + b"\r\n"
        b"ARC-Message-Signature: i=" + i + b"; h=from; bh=" + BODY_HASH + signed + b"\r\n"
        b"ARC-Authentication-Results: i=" + i + b"; mx; spf=pass " + b"z" * padding + b"\r\n"
    )


def chain(sets: int, padding: int = 0) -> bytes:
    return b"".join(arc_set(number, padding) for number in range(sets, 0, -1))


def ask(content: bytes, zone: Zone = ZONE, **options: str):
    asked = PolicyTester(MailAuthPlugin(), {"timeout": "60s", **options}, resolver=zone)
    asked.helo("x.test")
    asked.mail("a@x.test")
    asked.rcpt("b@example.com")
    began = time.monotonic()
    verdict = asked.message(content)
    assert time.monotonic() - began < SECONDS
    return asked, verdict


NAMES = b":".join(b"x%d" % number for number in range(4500))
HEADERS = {
    "10,000 fields": b"".join(b"X-%d: y\r\n" % number for number in range(10_000)),
    "a line of 1 MB": b"X: " + b"y" * 1_000_000 + b"\r\n",
    "10,000 results": b"Authentication-Results: mx.example.com; x\r\n" * 10_000,
    "a comment without end": b"Authentication-Results: (" + b"\\(" * 250_000 + b"\r\n",
    "nested comments": b"Authentication-Results: " + b"(" * 200_000 + b")" * 200_000 + b"\r\n",
    "2,000 signatures": signature() * 2000,
    "names in h= and fields": signature(NAMES) * 10 + b"a: b\r\n" * 10_000,
    "fewer names in h=": signature(NAMES[:200]) * 10 + b"a: b\r\n" * 10_000,
    "many tags": b"DKIM-Signature: " + b"a=b;" * 100_000 + b"\r\n",
    "blanks in a tag": b"DKIM-Signature: v=1; b=" + b" \r\n\t" * 15_000 + b"x; s=s; d=x.test\r\n",
    "50 ARC sets": chain(50),
    "50 long ARC sets": chain(50, 15_000),
    "51 ARC sets": chain(51),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=list(HEADERS))
def test_a_header_that_is_made_to_cost_time_is_read_soon(header: bytes):
    _, verdict = ask(header + FROM + BODY)
    assert verdict == CONTINUE


@pytest.mark.parametrize(
    "value",
    [
        b"a@b," * 15_000 + b"c@d",
        b"<" * 60_000,
        b"(" * 60_000,
        b'"a" ' * 15_000 + b"<a@x.test>",
        b"a." * 30_000 + b"@x.test",
        b"=?utf-8?q?a?= " * 4000 + b"<a@x.test>",
        b"a:;" * 20_000,
    ],
    ids=["addresses", "angles", "comments", "words", "dots", "encoded", "groups"],
)
def test_a_from_field_that_is_made_to_cost_time_names_no_author(value: bytes):
    message = b"From: " + value + b"\r\n" + BODY
    asked, verdict = ask(message)
    assert asked.transaction.results.get(DMARCResult).result == "permerror"
    assert verdict == CONTINUE
    _, verdict = ask(message, dmarc="enforce")
    assert verdict == Reject("DMARC: the From field names too many authors", code=550, enhanced="5.7.26")


@pytest.mark.parametrize(
    "header",
    [
        b"a:\r\n" * 200_000,
        b"X: y\r\n" + b" z\r\n" * 200_000,
        b"X: y\r\n" + b" " * 2000 + b"z\r\n" * 300_000,
    ],
    ids=["fields", "folds", "more than 1 MiB"],
)
def test_a_header_beyond_all_measure_is_refused_for_good(header: bytes):
    _, verdict = ask(FROM + header + BODY)
    assert verdict == Reject("The header of the message is too long", code=552, enhanced="5.3.4")


def test_only_ten_signatures_are_looked_at():
    asked, _ = ask(signature() * 2000 + FROM + BODY)
    assert len(asked.transaction.results.get(DKIMResult).signatures) == 10


@pytest.mark.parametrize(
    ("value", "ours"),
    [
        ("mx.example.com; spf=pass", True),
        ("(a (nested) comment) MX.example.com.; x", True),
        ("(\\( one) mx.example.com", True),
        ("mx.example.com(version 1); x", True),
        ('"mx.example.com"; x', True),
        ('"mx.exam\\ple.com"; x', True),
        ("(mx.example.com; x", True),
        ("", True),
        ("other.example; mx.example.com", False),
        ("(mx.example.com) other.example; x", False),
        ("other.example(mx.example.com); x", False),
    ],
)
def test_a_field_that_claims_our_name_or_can_not_be_read_is_ours(value: str, ours: bool):
    assert claims(value, "mx.example.com") is ours


MECHANISMS = "ip4:10.0.0.1 "
RECORDS = {
    "long": "v=spf1 " + MECHANISMS * 4900 + "-all",
    "terms": "v=spf1 " + "zzz=1 " * 10_000 + "-all",
    "itself": "v=spf1 include:x.test -all",
    "redirected": "v=spf1 redirect=x.test",
    "void": "v=spf1 a:1.x.test a:2.x.test a:3.x.test -all",
    "lookups": "v=spf1 " + " ".join(f"a:{number}.known.test" for number in range(11)) + " -all",
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=list(RECORDS))
def test_an_spf_record_that_is_made_to_cost_time_is_an_error(record: str):
    addresses = {f"{number}.known.test": ["10.0.0.1"] for number in range(11)}
    zone = Zone(texts_of={"x.test": [record]}, addresses_of=addresses)
    asked, _ = ask(FROM + BODY, zone)
    assert asked.transaction.results.get(SPFResult).result == "permerror"


def test_many_spf_records_as_long_as_may_be_are_read_soon():
    long = "v=spf1 " + MECHANISMS * 620
    includes = " ".join(f"include:{number}.x.test" for number in range(9))
    texts = {f"{number}.x.test": [f"{long}?all"] for number in range(9)}
    asked, _ = ask(FROM + BODY, Zone(texts_of={**texts, "x.test": [f"v=spf1 {includes} -all"]}))
    assert asked.transaction.results.get(SPFResult).result == "fail"
