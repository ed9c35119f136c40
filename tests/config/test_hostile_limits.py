"""Sets of limits that are made to take long: each is a fault at once. What takes the square takes minutes."""

from __future__ import annotations

import pytest

from elemta.config import load, load_limits
from elemta.errors import ConfigError

LIMIT = '[[limit]]\nname = "a"\nper = ["ip"]\ncounts = "messages"\nrates = ["1/1m"]\n'
SETS = {
    "a key of many parts": "a" + ".a" * 100_000 + " = 1",
    "a quoted key of many parts": "'a'" + '."a"' * 60_000 + " = 1",
    "a header of many parts": "[" + "a." * 100_000 + "a]",
    "tables of many parts": "[[" + "a . " * 60_000 + "a]]",
    "a key in an inline table": "x = {b = 1, " + "a." * 100_000 + "a = 1}",
    "a line of spaces": " " * 250_000 + "x",
    "spaces in a header": "[" + " " * 250_000 + "x",
    "deep lists": "x = " + "[" * 200_000,
    "deep tables": "x = " + "{a=" * 60_000,
    "many limits": LIMIT.splitlines()[0] + "\n" + '[[limit]]\nname = "a"\n' * 11_000,
    "a long name": LIMIT.replace('"a"', '"' + "x" * 250_000 + '"'),
    "a long rate": LIMIT.replace("1/1m", "9" * 250_000 + "/1m"),
    "many rates": LIMIT.replace('"1/1m"', '"1/1m", ' * 20_000),
    "a long number": "x = " + "9" * 200_000,
    "another table": '[server]\nhostname = "x.test"\n' + LIMIT,
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_takes_long_is_a_fault(name: str) -> None:
    base = load(None, {})
    with pytest.raises(ConfigError) as caught:
        load_limits(SETS[name], "pushed", base)
    assert all(len(str(fault)) < 400 for fault in caught.value.faults)


@pytest.mark.parametrize("name", ["override", "policy", "pushed", "spool", "node", "ip"])
def test_a_name_whose_keys_could_be_those_of_other_data_is_a_fault(name: str) -> None:
    with pytest.raises(ConfigError, match="has this name"):
        load_limits(LIMIT.replace('"a"', f'"{name}"'), "pushed", load(None, {}))


def test_dots_in_values_are_no_parts_of_a_key() -> None:
    addresses = ", ".join(f'"10.0.{number // 256}.{number % 256}"' for number in range(2000))
    (limit,) = load_limits(LIMIT + f"except = [{addresses}]\n", "pushed", load(None, {}))
    assert len(limit.except_) == 2000
