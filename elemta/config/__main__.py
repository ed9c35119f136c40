"""``python -m elemta.config write|check [ROOT]``: what is generated from the schema, or is it stale."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from elemta.config.reference import render_markdown, render_sample

GENERATED: Final[Mapping[str, Callable[[], str]]] = {
    "etc/elemta.toml": render_sample,
    "docs/configuration.md": render_markdown,
}
"""Paths below the root of the source, and what writes them."""

USAGE: Final = "usage: python -m elemta.config write|check [ROOT]"


def stale(root: Path) -> list[str]:
    """The generated files below ``root`` that are not what the schema says, or not there."""
    return [path for path, render in GENERATED.items() if _text_of(root / path) != render()]


def write(root: Path) -> None:
    """Write every generated file below ``root``."""
    for path, render in GENERATED.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(render(), encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit status is 0, 1 (stale) or 64 (EX_USAGE)."""
    if len(arguments) not in (1, 2) or arguments[0] not in ("write", "check"):
        sys.stderr.write(f"{USAGE}\n")
        return 64
    root = Path(arguments[1]) if len(arguments) == 2 else Path.cwd()
    if arguments[0] == "write":
        write(root)
        return 0
    old = stale(root)
    for path in old:
        sys.stderr.write(f"{path} is stale: run python -m elemta.config write\n")
    return 1 if old else 0


def _text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
