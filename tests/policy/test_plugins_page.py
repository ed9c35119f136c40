"""The Python of docs/plugins.md that is in no file: each snippet runs, and every name in it is there.

tests/policy/test_example_package.py has the files of docs/examples.
"""

from __future__ import annotations

import ast
import builtins
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from zope.interface import implementedBy, implementer
from zope.interface.verify import verifyClass

import elemta.policy
import elemta.policy.testing
from elemta.policies.greylist import GreylistPlugin
from elemta.policy.testing import PolicyTester

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
# Behind the name of a file it is the file, or a part of it.
OF_FILE = r"^(\*\*`[^`]+`\*\*\n\n|From \[`[^`]+`\]\([^)]+\):\n\n)?"
BLOCK = re.compile(OF_FILE + r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SNIPPETS = {
    f"line {PAGE[: found.start()].count(chr(10)) + 1}": found[2]
    for found in BLOCK.finditer(PAGE)
    if not found[1]
}


def names() -> dict[str, Any]:
    """What an author has imported: the contract, and the two decorators that it is written with."""
    exported = {
        name: getattr(module, name)
        for module in (elemta.policy, elemta.policy.testing)
        for name in module.__all__
    }
    session = PolicyTester(GreylistPlugin()).session
    others = {
        "dataclass": dataclass,
        "implementer": implementer,
        "GreylistPlugin": GreylistPlugin,
        "session": session,
    }
    return {**exported, **others, "__name__": "snippet"}


def test_the_page_has_snippets() -> None:
    assert SNIPPETS


def ran(text: str) -> dict[str, Any]:
    """What a snippet leaves behind."""
    space = names()
    exec(compile(text, "docs/plugins.md", "exec", dont_inherit=True), space)
    return space


@pytest.mark.parametrize("place", SNIPPETS)
def test_a_snippet_runs_and_every_name_in_it_is_there(place: str) -> None:
    text = SNIPPETS[place]
    space = ran(text)
    # Functions are not called: what they name must be there all the same.
    tree = ast.parse(text)
    bound = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    read = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert read - bound - set(space) - set(dir(builtins)) == set()
    # A policy of the page has the methods that its interfaces ask for.
    for thing in [space[node.name] for node in tree.body if isinstance(node, ast.ClassDef)]:
        for interface in implementedBy(thing):
            assert verifyClass(interface, thing, tentative=True)
