"""The bundled policies use what any policy may use: the names that elemta.policy exports."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import elemta.policy

ROOT = Path(__file__).parents[2]
POLICIES = sorted((ROOT / "elemta" / "policies").rglob("*.py"))


def foreign_names(source: str) -> Iterator[str]:
    """What a bundled policy imports of Elemta beyond the contract and its own package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name.partition(".")[0] == "elemta")
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "elemta":
            if (node.module or "").startswith("elemta.policies."):
                continue
            exported = elemta.policy.__all__ if node.module == "elemta.policy" else ()
            yield from (f"{node.module}.{each.name}" for each in node.names if each.name not in exported)


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.name)
def test_a_bundled_policy_imports_only_what_the_contract_exports(path: Path) -> None:
    assert list(foreign_names(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import elemta.limits",
        "import elemta.policy.views",
        "from elemta import limits",
        "from elemta.limits import Limiter",
        "from elemta.policy import PolicyRunner",
        "from elemta.policy.verdicts import CONTINUE",
        "from ..limits import Limiter",
        "def build():\n    from elemta.limits import Limiter",
        "if TYPE_CHECKING:\n    from elemta.config import Counts",
    ],
)
def test_any_other_import_is_seen(source: str) -> None:
    assert list(foreign_names(source))


def test_what_the_contract_exports_is_there() -> None:
    assert [name for name in elemta.policy.__all__ if not hasattr(elemta.policy, name)] == []
    assert sorted(set(elemta.policy.__all__)) == sorted(elemta.policy.__all__)


@pytest.mark.parametrize(
    ("source", "forbidden"),
    [
        ("elemta.net", "elemta.policies"),
        ("elemta.limits", "elemta.smtp"),
        ("elemta.smtp", "elemta.config"),
        ("elemta.policies", "elemta.limits"),
        ("elemta.policies", "elemta.config"),
        ("elemta.policies", "elemta.smtp"),
    ],
)
def test_the_linter_forbids_the_import(source: str, forbidden: str) -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    pairs = {
        (one, other)
        for contract in linter["contracts"]
        if contract["type"] == "forbidden"
        for one in contract["source_modules"]
        for other in contract["forbidden_modules"]
    }
    assert (source, forbidden) in pairs
