"""Test suites of others, which are no part of this repository."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def suite_file(name: str) -> Path | None:
    """Where a suite's file is; None where it is nowhere.

    It is in ``ELEMTA_SUITES``, beside the repository in ``../shared/suites``, or where ``.ci/suites`` put it.
    """
    named = os.environ.get("ELEMTA_SUITES")
    places = [Path(named)] if named else [_ROOT / "../shared/suites", Path(sys.prefix) / "suites"]
    return next((place / name for place in places if (place / name).exists()), None)
