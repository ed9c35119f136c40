"""docs/attacks.md: every attack has an answer, and every test that should show it is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.support.references import REFERENCE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")


def attacks() -> list[tuple[str, str]]:
    """Each attack of the page: its heading and all that stands below it."""
    parts = re.split(r"^### (.+)$", re.sub(r"^## .+$", "", PAGE, flags=re.MULTILINE), flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def test_every_attack_has_an_answer_and_a_test() -> None:
    assert len(attacks()) > 40
    for heading, text in attacks():
        answer, _, tests = text.strip().partition("\n\n")
        assert len(answer.split()) > 2, heading
        assert not REFERENCE.search(answer), heading
        assert REFERENCE.search(tests), heading
        assert REFERENCE.sub("", tests).replace("-", "").split() == [], heading


def test_every_test_that_the_attacks_name_is_there() -> None:
    missing = [
        f"{path}::{name}"
        for path, name in REFERENCE.findall(PAGE)
        if not (ROOT / path).is_file() or name not in functions_of(path)
    ]
    assert missing == []
