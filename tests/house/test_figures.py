"""Figures about the code that must not grow again, as `.ci/house` counts them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_result_passes_three_types_to_the_queue_and_the_notice_and_class_names_are_unique() -> None:
    command = [sys.executable, str(ROOT / ".ci" / "house"), "--static", "--json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=90).stdout
    details = json.loads(output)["details"]
    assert details["types that describe a delivery result"] == ["Outcome"]
    types = details["types from the reply to the queue and the DSN"]
    assert types == ["DeliveryResult", "Notice", "Outcome"]
    assert json.loads(output)["figures"]["class names used more than once"] == 0
