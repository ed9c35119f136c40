"""The benchmark of the policy service runs, and its figures have the form that the page says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench" / "policy_service"


def test_elemta_is_measured_at_full_and_at_half_speed() -> None:
    command = [sys.executable, str(BENCH), "--only", "Elemta", "--rounds", "1", "--seconds", "0.5"]
    command += ["--connections", "4", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    full, half = json.loads(done.stdout)["rounds"]
    assert (full["load"], half["load"]) == ("full", "half")
    assert 0 < half["rate"] < full["rate"]
    assert all(0 < one["p50"] <= one["p99"] for one in (full, half))
