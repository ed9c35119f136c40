"""`.ci/prose`: the words and lines that it finds, and where it does not look."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load_checker() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("prose", str(ROOT / ".ci" / "prose"))
    spec = importlib.util.spec_from_loader("prose", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


PROSE = load_checker()


def found(tmp_path: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The findings of one file, without its name."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    status = PROSE.main([str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert status == (1 if lines else 0)
    return [line.removeprefix(f"{path}:") for line in lines]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("Whoever logs in is counted.", "Whoever"),
        ("A client who logs in is counted.", "who"),
        ("Nobody is asked.", "Nobody"),
        ("The client is told when to try again.", "is told"),
        ("It costs its own verdict.", "costs its own verdict"),
        ("A lane is a destination.", "lane"),
        ("The client keeps his count.", "his"),
        ("## Troubles", "Troubles"),
    ],
)
def test_a_word_that_the_project_does_not_use_is_found(
    line: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finding,) = found(tmp_path, "page.md", f"# A page\n\n{line}\n", capsys)
    assert finding.startswith(f'3: "{word}": ')


@pytest.mark.parametrize(
    "line",
    [
        "A user may set `nobody` as the owner.",
        "[the page](../whoever/house.md)",
        "https://example.org/who/nobody",
        "People who write plugins read this.",
        "The warehouse and the household.",
        "```\nnobody:x:65534\n```",
    ],
)
def test_code_links_and_other_words_are_left_alone(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found(tmp_path, "page.md", f"{line}\n", capsys) == []


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        (f"{'a' * 55} {'b' * 54}", None),
        (f"{'a' * 55} {'b' * 55}", "wrap at 100"),
        (f"{'a' * 55} `{'b' * 53}`", "wrap at 100"),
        (f"- [{'a' * 53}]({'b' * 49}) cd", "wrap at 100"),
        (f"| {'a' * 50} | `{'b' * 51}` |", None),
        (f"| {'a' * 50} | `{'b' * 52}` |", "write the row as text"),
        (f"  `{'a' * 107}`", None),
        (f"- `{'a' * 107}`", None),
        (f"  - `{'a' * 105}`", None),
        (f"<!-- long lines -->\n```\n{'a' * 55} {'b' * 55}\n```", None),
    ],
)
def test_a_line_over_110_columns_is_found_unless_it_is_one_word(
    line: str, finding: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found(tmp_path, "page.md", f"{line}\n", capsys) == (
        [f"1: 111 columns: {finding}"] if finding else []
    )


def test_comments_and_strings_of_code_are_read_and_names_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '"""Text.\n\nWhoever."""\nnobody = 1  # for somebody\nhouse = f"{nobody} doors"\n'
    lines = [line.partition(":")[0] for line in found(tmp_path, "module.py", text, capsys)]
    assert lines == ["3", "4", "5"]


def test_a_program_in_python_without_a_suffix_is_read_as_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '#!/usr/bin/env python3\n"""For somebody."""\nnobody = 1\n'
    lines = [line.partition(":")[0] for line in found(tmp_path, "program", text, capsys)]
    assert lines == ["2"]


def test_names_in_sql_are_not_prose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'DUE = "SELECT lane FROM part"\nTOLD = "the lane is full"\n'
    lines = [line.partition(":")[0] for line in found(tmp_path, "module.py", text, capsys)]
    assert lines == ["2"]


def test_of_a_test_comments_and_docstrings_are_read_and_its_data_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PROSE, "ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    text = '"""Nobody."""\n\n\ndef test_it():\n    """Nobody."""\n    assert "nobody"  # nobody\n'
    lines = [line.partition(":")[0] for line in found(tmp_path / "tests", "test_it.py", text, capsys)]
    assert lines == ["1", "5", "6"]


def test_every_document_and_setting_is_checked_and_clean(capsys: pytest.CaptureFixture[str]) -> None:
    checked = set(PROSE.clean_files())
    assert {"README.md", "docs/promises.md", "deployments/haproxy/README.md", "etc/elemta.toml"} <= checked
    assert {"elemta/spool/writer.py", "docs/architecture.md", "tests/spool/test_holds.py"} <= checked
    assert {"bench/limits", "tests/compose/run", ".ci/house"} <= checked
    assert PROSE.main(["--clean"]) == 0, capsys.readouterr().out


def test_a_line_of_a_code_block_over_110_columns_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"```\n{'nobody ' * 15}abcdef\n```\n<!-- long lines -->\n```\n{'a ' * 55}b\n```\n"
    assert found(tmp_path, "page.md", text, capsys) == ["2: 111 columns: wrap the code"]
