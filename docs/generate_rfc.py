"""Writes docs/rfc.md from the comments that cite RFCs: section, code that follows it, tests about it.

A citation has one form, ``RFC 5321 §4.5.2``, in comments and docstrings of ``elemta/`` and ``tests/``.

    python docs/generate_rfc.py           writes docs/rfc.md
    python docs/generate_rfc.py --check   fails when it is stale
"""

from __future__ import annotations

import ast
import io
import re
import sys
import textwrap
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from generated_file import write_or_check

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "rfc.md"

CITATION = re.compile(r"RFC (\d{3,5}) §(\d+(?:\.\d+)*|[A-Z](?:\.\d+)*)")

HEAD = """# RFCs: section, code, tests

`make generate` writes this page from the citations in the code (`RFC 5321 §4.5.2`). Below each section are
the places in the code that cite it, and then the tests that cite it themselves.

"""

# From Python 3.12 on the text of an f-string is a token of its own kind.
TEXT = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}

Section = tuple[str, str]


def citations(path: Path) -> Iterator[tuple[Section, int, bool]]:
    """The sections that one file cites, each with its line and whether that is a comment (else a string)."""
    with io.BytesIO(path.read_bytes()) as source:
        for token in tokenize.tokenize(source.readline):
            if token.type in TEXT:
                for match in CITATION.finditer(token.string):
                    line = token.start[0] + token.string.count("\n", 0, match.start())
                    yield (match[1], match[2]), line, token.type == tokenize.COMMENT


def scopes(path: Path) -> list[tuple[int, int, str]]:
    """First line, last line and dotted name of every function and class, outer ones first."""
    found: list[tuple[int, int, str]] = []

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = min([child.lineno, *(each.lineno for each in child.decorator_list)])
                found.append((first, child.end_lineno or first, prefix + child.name))
                walk(child, f"{prefix}{child.name}.")
            else:
                walk(child, prefix)

    walk(ast.parse(path.read_bytes()), "")
    return found


def place(path: Path, line: int, is_comment: bool, known: list[tuple[int, int, str]]) -> str:
    """File and innermost function or class of a citation; no line number, which every edit would move."""
    around = [name for first, last, name in known if first <= line <= last]
    # A comment above a definition belongs to it.
    below = [name for first, _, name in known if is_comment and line < first <= line + 3]
    name = around[-1] if around else (below[0] if below else "")
    relative = path.relative_to(ROOT).as_posix()
    return f"`{relative}` {name}".rstrip()


def gather(folder: str) -> dict[Section, list[str]]:
    """Section to places, in the order of files and lines, each place once."""
    places: dict[Section, list[str]] = defaultdict(list)
    for path in sorted((ROOT / folder).rglob("*.py")):
        if not CITATION.search(path.read_text(encoding="utf-8")):
            continue  # most do not: parsing all takes seconds
        known = scopes(path)
        for section, line, is_comment in citations(path):
            where = place(path, line, is_comment, known)
            if where not in places[section]:
                places[section].append(where)
    return places


def order(section: Section) -> tuple[int, list[tuple[int, str]]]:
    rfc, number = section
    return int(rfc), [(int(part), "") if part.isdigit() else (10**6, part) for part in number.split(".")]


def render() -> str:
    """The text of docs/rfc.md."""
    code, tests = gather("elemta"), gather("tests")
    lines = [HEAD]
    rfc = ""
    for section in sorted({*code, *tests}, key=order):
        if section[0] != rfc:
            rfc = section[0]
            gap = "\n" if len(lines) > 1 else ""
            lines.append(f"{gap}## [RFC {rfc}](https://www.rfc-editor.org/rfc/rfc{rfc})\n\n")
        lines.append(f"- §{section[1]}\n")
        for where in [*code.get(section, ()), *tests.get(section, ())]:
            lines.append(
                textwrap.fill(
                    where, 110, initial_indent="  - ", subsequent_indent="    ", break_long_words=False
                )
                + "\n"
            )
    return "".join(lines)


def main(arguments: list[str]) -> int:
    return write_or_check({TARGET: render()}, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
