"""Each command of ``elemtactl`` that a document names is there, and the page lists all of them."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from elemta.ctl.main import parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [
    page for name in ("docs", "deployments", "monitoring") for page in sorted((ROOT / name).rglob("*.md"))
]
# In a code span, which may be wrapped, or behind a prompt or the path of the environment in a code block.
NAMED = re.compile(r"`elemtactl\s+([^`]+)`|^\s*(?:[#$] )?(?:\S+/)?elemtactl ([^`\n]+)$", re.MULTILINE)


def commands(of: argparse.ArgumentParser, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command below this one; a group may be a command, too."""
    groups = [action for action in of._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups or (before and not any(group.required for group in groups)):
        yield before
    for group in groups:
        for name, inner in group.choices.items():
            yield from commands(inner, (*before, name))


TOP = parser()
ALL = set(commands(TOP))


def options(words: Sequence[str], of: argparse.ArgumentParser) -> set[str]:
    """The options that may stand somewhere in a command of these words."""
    found = set(of._option_string_actions)
    for group in of._actions:
        if isinstance(group, argparse._SubParsersAction):
            for at, word in enumerate(words):
                if word in group.choices:
                    return found | options(words[at + 1 :], group.choices[word])
    return found


def unknown_options(text: str) -> set[str]:
    """The options among these words that their command does not have."""
    words = shlex.split(text, comments=True)
    return {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)} - options(words, TOP)


def is_there(text: str) -> bool:
    """Whether these words begin with a command, or name a group of commands or none at all."""
    words = re.sub(r"--(?:config|socket)[ =]\S+|--json", "", text).split()
    words = words[: next((at for at, word in enumerate(words) if word.startswith("-")), len(words))]
    return not words or any(
        tuple(words[: len(command)]) == command or tuple(words) == command[: len(words)] for command in ALL
    )


def test_every_command_that_a_document_names_is_there_with_its_options() -> None:
    named = [
        (page.name, first or second)
        for page in PAGES
        for first, second in NAMED.findall(page.read_text(encoding="utf-8"))
    ]
    assert len(named) > 40
    assert [(page, words) for page, words in named if not is_there(words)] == []
    assert [(page, words, unknown_options(words)) for page, words in named if unknown_options(words)] == []


def test_the_page_lists_every_command() -> None:
    text = (ROOT / "docs" / "elemtactl.md").read_text(encoding="utf-8")
    listed = set()
    for row in re.findall(r"^\| `([a-z].*?)` \|", text, re.MULTILINE):
        words = re.match(r"[a-z-]+(?: [a-z|\\-]+)?(?= |$)", row)
        assert words is not None, row
        first, *rest = words[0].split()
        listed |= {(first, each) for each in rest[0].split("\\|")} if rest else {(first,)}
    assert listed == ALL


def test_a_command_that_is_not_there_is_noticed() -> None:
    assert is_there("queue list --state hold")
    assert is_there("--config etc/elemta-dev.toml status")
    assert is_there("queue")
    assert not is_there("queue flush ID")
    assert not is_there("stop")
    assert unknown_options("--json user add --console NAME --role operator --fast") == {"--fast"}
    assert unknown_options("queue retry --all --role=operator") == {"--role"}
