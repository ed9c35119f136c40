"""The test suite of ARC: chains to validate."""

from __future__ import annotations

import asyncio
import io

import dkim
import pytest

from elemta.errors import NoSuchDomain
from elemta.policies.mail_auth.body_hash import hash_body
from elemta.policies.mail_auth.dns_facts import FactType, evaluate
from elemta.policies.mail_auth.signatures import check_arc, wanted_body_hashes
from tests.support.suites import suite_cases

SUITE = "arc-draft-validation-tests.yml"


class Zone:
    def __init__(self, records: dict[str, str]) -> None:
        self.records = {name.lower(): value for name, value in records.items()}

    async def lookup(self, name: str, kind: FactType) -> tuple[object, ...]:
        if kind is not FactType.TXT or name.lower() not in self.records:
            raise NoSuchDomain(name)
        return (self.records[name.lower()],)


async def in_place(step):
    return step()


@pytest.mark.parametrize(("scenario", "case"), suite_cases(SUITE))
def test_a_chain_of_the_suite_is_what_the_suite_says(scenario, case):
    message = case["message"].replace("\n", "\r\n").encode()
    header, body = dkim.rfc822_parse(message)
    bodies = hash_body(io.BytesIO(body), wanted_body_hashes(header))
    zone = Zone(scenario.get("txt-records") or {})
    chain = asyncio.run(evaluate(lambda facts: check_arc(header, bodies, facts), zone, in_place))
    # Where a seal says that the chain was broken, the suite wants no result; RFC 8617 §5.2: fail.
    assert chain.result == (case["cv"] or "Fail").lower(), chain
