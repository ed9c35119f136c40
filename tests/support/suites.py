"""Test suites of others, which are no part of this repository."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

_ROOT = Path(__file__).parents[2]


def suite_file(name: str) -> Path | None:
    """Where a suite's file is; None where it is nowhere.

    It is in ``ELEMTA_SUITES``, beside the repository in ``../shared/suites``, or where ``.ci/suites`` put it.
    """
    named = os.environ.get("ELEMTA_SUITES")
    places = [Path(named)] if named else [_ROOT / "../shared/suites", Path(sys.prefix) / "suites"]
    return next((place / name for place in places if (place / name).exists()), None)


def suite_cases(name: str) -> Sequence[Any]:
    """The parameters ``scenario`` and ``case`` of each case; of a suite that is nowhere, why none is run."""
    file = suite_file(name)
    if file is None:
        reason = f"the suite {name} is not here: ELEMTA_SUITES names its directory"
        return [pytest.param(None, None, id="none", marks=pytest.mark.skip(reason=reason))]
    return [
        pytest.param(scenario, case, id=f"{scenario['description']}-{test}")
        for scenario in yaml.safe_load_all(file.read_text("utf-8"))
        for test, case in scenario["tests"].items()
    ]
