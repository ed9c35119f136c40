"""The programs of ``bench`` take the options that the page about performance shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^(bench[a-z-]*): .*\n\t.* (bench/\w+) \$\(ARGS\)$", MAKEFILE, re.MULTILINE))
SHOWN = re.findall(r"^(?:sudo )?make (bench[a-z-]*) ARGS='([^']*)'", PAGE, re.MULTILINE)


def test_the_page_shows_options() -> None:
    assert len(SHOWN) > 3


@pytest.mark.parametrize(("target", "arguments"), SHOWN)
def test_a_program_takes_the_options_that_the_page_shows(target: str, arguments: str) -> None:
    words = shlex.split(arguments)
    # Values are read before the help is shown. Options that are not known are not.
    command = [sys.executable, str(ROOT / PROGRAMS[target]), *words, "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    known = set(re.findall(r"--[a-z-]+", run.stdout))
    assert {word for word in words if word.startswith("--")} <= known
