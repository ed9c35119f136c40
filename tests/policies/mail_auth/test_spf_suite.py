"""The test suite of RFC 7208, whole."""

from __future__ import annotations

import asyncio

import pytest

from elemta.errors import NoSuchDomain, ResolverTrouble
from elemta.policies.mail_auth.dns_facts import FactType, evaluate
from elemta.policies.mail_auth.spf import SPFQuestion, check_spf
from tests.interop.programs import missing
from tests.support.suites import suite_cases, suite_file

SUITE = "rfc7208-tests.yml"


class Zone:
    """A scenario's zone: records of type SPF count as TXT where a name has no TXT of its own."""

    def __init__(self, data: dict[str, list]) -> None:
        self.records = {name.lower(): entries for name, entries in data.items()}

    async def lookup(self, name: str, kind: FactType, depth: int = 0) -> tuple[object, ...]:
        if name.lower() not in self.records:
            if name.startswith("error."):
                raise ResolverTrouble("no answer in time")
            raise NoSuchDomain(name)
        entries = self.records[name.lower()]
        types = {kind for entry in entries if isinstance(entry, dict) for kind in entry}
        values, silent = [], False
        for entry in entries:
            if entry == "TIMEOUT":
                silent = True
                continue
            ((record, value),) = entry.items()
            if record == "SPF" and "TXT" not in types:
                record = "TXT"
            if record == "CNAME" and kind.value != "CNAME":
                return await self.lookup(value, kind, depth + 1) if depth < 9 else ()
            if record != kind.value:
                continue
            if value == "TIMEOUT":
                raise ResolverTrouble("no answer in time")
            if value == "NONE":
                continue
            if kind is FactType.TXT:
                value = value if isinstance(value, str) else "".join(value)
            if kind is FactType.MX:
                value = tuple(value)
            values.append(value)
        if silent and not values:
            raise ResolverTrouble("no answer in time")
        return tuple(values)


def test_the_suite_is_there():
    if suite_file(SUITE) is None:
        missing("the test suite of RFC 7208 is not here: .ci/suites gets it")
    assert len(suite_cases(SUITE)) == 203


async def in_place(step):
    return step()


@pytest.mark.parametrize(("scenario", "case"), suite_cases(SUITE))
def test_a_case_of_the_suite_has_a_result_that_the_suite_allows(scenario, case):
    question = SPFQuestion(case["host"], case["helo"], case["mailfrom"], "mx.example.org")
    answer = asyncio.run(
        evaluate(lambda facts: check_spf(question, facts), Zone(scenario["zonedata"]), in_place)
    )
    allowed = case["result"] if isinstance(case["result"], list) else [case["result"]]
    assert answer.result in allowed, answer
    if "explanation" in case and answer.result == "fail" and case["explanation"] != "DEFAULT":
        assert answer.text == case["explanation"]
