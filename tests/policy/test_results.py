"""Results: typed values that policies share, on a session and on a transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from elemta.policy import CONTINUE, Results
from elemta.policy.results import MAX_RESULTS
from elemta.policy.testing import PolicyTester
from tests.policy.conftest import Scripted


@dataclass(frozen=True)
class SPFResult:
    verdict: str


@dataclass(frozen=True)
class Country:
    code: str


def test_a_result_is_found_by_its_type_and_the_later_one_counts() -> None:
    results = Results()
    assert results.get(SPFResult) is None
    results.publish(SPFResult("pass"))
    results.publish(Country("AQ"))
    results.publish(SPFResult("fail"))
    assert results.get(SPFResult) == SPFResult("fail")
    assert results.get(Country) == Country("AQ")


@pytest.mark.parametrize("value", ["pass", 3, None, {}, [], (), True, 1.5, b""])
def test_a_value_without_a_class_of_its_own_is_no_result(value: Any) -> None:
    with pytest.raises(TypeError):
        Results().publish(value)


def test_results_have_a_bound() -> None:
    results = Results()
    for number in range(MAX_RESULTS):
        results.publish(type(f"R{number}", (), {})())
    with pytest.raises(ValueError, match="more than"):
        results.publish(SPFResult("pass"))


def test_policies_behind_see_what_one_published_and_a_new_transaction_begins_without(stage: Any) -> None:
    def publishes(session: Any, *shown: Any) -> Any:
        if len(shown) == 0:
            session.results.publish(Country("AQ"))
        elif len(shown) == 1:
            shown[0].results.publish(SPFResult("pass"))
        return CONTINUE

    seen: list[Any] = []

    def reads(session: Any, *shown: Any) -> Any:
        where = shown[0] if shown else session
        seen.append((where.results.get(SPFResult), where.results.get(Country)))
        return CONTINUE

    client = stage.play(Scripted(publishes), Scripted(reads))
    client.connect()
    client.mail()
    client.rcpt()
    client.begin()
    client.rcpt()
    passed, country = SPFResult("pass"), Country("AQ")
    assert seen == [(None, country), (passed, country), (passed, country), (None, country)]


def test_the_tester_plays_other_policies() -> None:
    from tests.policy.test_services import plugin_of

    async def ask(services: Any) -> Any:
        return CONTINUE

    tester = PolicyTester(plugin_of(ask))
    tester.session.results.publish(Country("AQ"))
    tester.transaction.results.publish(SPFResult("pass"))
    assert tester.transaction.results.get(Country) == Country("AQ")
    assert tester.transaction.results.get(SPFResult) == SPFResult("pass")
    assert tester.session.results.get(SPFResult) is None
