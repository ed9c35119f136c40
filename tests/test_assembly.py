"""What a configuration comes to, before anything is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.testing import MemoryReactorClock

from elemta.assembly import Assembly, Lasting, assemble
from elemta.config import load
from elemta.errors import ConfigError

LIMIT = """
[server]
hostname = "mx.example.test"
[[limit]]
name = "slow"
per = ["ip"]
counts = "messages"
rates = ["1/1m"]
on_exceed = "ACTION"
"""


def assembled(tmp_path: Path, text: str) -> Assembly:
    path = tmp_path / "elemta.toml"
    path.write_text(text)
    config = load(str(path), {})
    return assemble(config, Lasting.from_config(config, MemoryReactorClock()))


@pytest.mark.parametrize("table", ['timeout = "4s"', 'max_delay = "5s"', 'timeout = "1s"'])
def test_a_limit_that_would_delay_beyond_its_policys_timeout_is_a_fault(tmp_path: Path, table: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.limits\.max_delay: is \d s: must be less than"):
        assembled(tmp_path, LIMIT.replace("ACTION", "delay") + f"[policy.limits]\n{table}\n")


@pytest.mark.parametrize(("action", "table"), [("defer", 'timeout = "1s"'), ("delay", 'timeout = "4100ms"')])
def test_a_policy_with_time_enough_for_its_limits_is_built(tmp_path: Path, action: str, table: str) -> None:
    text = LIMIT.replace("ACTION", action) + f"[policy.limits]\n{table}\n"
    assert [loaded.name for loaded in assembled(tmp_path, text).chain.policies] == ["limits", "relay"]
