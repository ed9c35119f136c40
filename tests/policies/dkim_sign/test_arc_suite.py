"""The test suite of ARC: sets to make."""

from __future__ import annotations

import base64
import io
import re

import dkim
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from elemta.policies.dkim_sign.signature import Chain, SigningKey, arc_set
from elemta.policies.mail_auth.body_hash import BodyHashKind, hash_body
from elemta.policies.mail_auth.field import own_results
from tests.support.suites import suite_cases

SUITE = "arc-draft-sign-tests.yml"
ARC = (b"arc-seal", b"arc-message-signature", b"arc-authentication-results")


def tags(value: bytes) -> dict[str, str]:
    """The tags of a field, without blanks and without the signature, which depends on their order."""
    pairs = (part.partition("=") for part in "".join(value.decode().split()).split(";") if part)
    return {name: content for name, _, content in pairs if name != "b"}


def chain_of(header) -> Chain:
    sets: dict[int, list] = {}
    for name, value in header:
        if name.lower() in ARC:
            sets.setdefault(int(re.search(rb"\bi=(\d+)", value)[1]), []).append((name, value))
    field = b"".join(value for name, value in header if name == b"Authentication-Results")
    status = re.search(rb"arc=(\w+)", field)[1].decode()
    return Chain([sets[number] for number in sorted(sets)], status)


@pytest.mark.parametrize(("scenario", "case"), suite_cases(SUITE))
def test_a_set_of_the_suite_has_the_fields_that_the_suite_says_and_is_valid(scenario, case):
    message = case["message"].replace("\n", "\r\n").encode()
    header, body = dkim.rfc822_parse(message)
    private = load_pem_private_key(scenario["privatekey"].encode(), None)
    key = SigningKey(scenario["domain"], scenario["sel"], private)
    kind = BodyHashKind(True, None)
    digest = hash_body(io.BytesIO(body), [kind])[kind].digest
    fields = [value for name, value in header if name == b"Authentication-Results"]
    results = own_results(fields, case["srv-id"])
    names = case["sig-headers"].encode().split(b":")
    made = arc_set(header, digest, chain_of(header), results, key, now=case["t"], signed=names)
    if not case["AS"]:
        assert made is None
        return
    assert tags(made.seal) == tags(case["AS"].encode())
    assert tags(made.signature) == tags(case["AMS"].encode())
    assert tags(made.results) == tags(case["AAR"].encode())
    sealed = b"".join(name + b": " + value + b"\r\n" for name, value in made.fields()) + message
    public = base64.b64encode(
        private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )
    record = b"v=DKIM1; k=rsa; p=" + public
    verdict, sets, why = dkim.arc_verify(sealed, dnsfunc=lambda *_, **__: record)
    assert sets[0]["ams-valid"], why
    assert sets[0]["as-valid"] or "cv=fail" in case["AS"], why
    assert verdict == dkim.CV_Pass or "cv=fail" in case["AS"]
