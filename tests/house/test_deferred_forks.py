"""One driver decides between a value now and a Deferred later: elemta.deferred_value."""

from __future__ import annotations

import re
from pathlib import Path

ELEMTA = Path(__file__).parents[2] / "elemta"

FORK = re.compile(r"isinstance\([^()]*(?:\([^()]*\))?[^()]*\bDeferred\b")

ALLOWED = {
    "deferred_value.py": "the driver",
    "delivery/pool.py": "waits for nothing, and logs what fails",
    "net/login.py": "cancels the policies' work when the client leaves",
    "policy_service/service.py": "answers in order, and does not wait where it need not",
    "policy/call_context.py": "takes what a plugin returns: a verdict, a Deferred or a coroutine",
}


def test_no_other_module_forks_by_hand() -> None:
    found = {
        path.relative_to(ELEMTA).as_posix() for path in ELEMTA.rglob("*.py") if FORK.search(path.read_text())
    }
    assert found == set(ALLOWED)
