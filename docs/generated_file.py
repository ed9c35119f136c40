"""What every generator in docs/ does with its text: writes it, or compares it with what is there."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def write_or_check(texts: Mapping[Path, str], arguments: list[str]) -> int:
    """Write each file, or with ``--check`` name those that are stale; the exit status."""
    if arguments != ["--check"]:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [
        path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        sys.stderr.write(f"{os.path.relpath(path)} is stale: run make generate\n")
    return 1 if stale else 0
