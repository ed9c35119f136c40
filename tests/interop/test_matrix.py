"""The table of `make interop`: what was not run is never green; and one sender and one next hop for real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.matrix import tried
from tests.interop.matrix_hops import HOPS
from tests.interop.matrix_senders import SENDERS
from tests.interop.matrix_table import (
    FEATURES,
    CannotDo,
    Cell,
    NotRun,
    Outcome,
    exit_status,
    rendered,
    summary,
)

ROOT = Path(__file__).resolve().parents[2]
OK = Cell("a", "plain", Outcome.OK)
ABSENT = Cell("b", "plain", Outcome.NOT_RUN, "b is not installed")
UNABLE = Cell("a", "DSN", Outcome.CANNOT, "it has no DSN")
FAILED = Cell("a", "TLS", Outcome.FAILED, "it came with ESMTP")


def raising(error: Exception | None) -> Cell:
    def try_it() -> None:
        if error is not None:
            raise error

    return tried("a", "plain", try_it)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Outcome.OK),
        (CannotDo("x"), Outcome.CANNOT),
        (NotRun("x"), Outcome.NOT_RUN),
        (AssertionError("x"), Outcome.FAILED),
        (OSError("x"), Outcome.FAILED),
    ],
)
def test_what_became_of_a_cell(error: Exception | None, outcome: Outcome) -> None:
    assert raising(error).outcome is outcome


def test_the_table_has_each_outcome_and_its_reason() -> None:
    text = rendered("sender", [OK, FAILED, UNABLE, ABSENT])
    lines = text.splitlines()
    assert lines[0].split() == ["sender", "plain", "TLS", "AUTH", "DSN", "SMTPUTF8", "20", "MB"]
    assert lines[1].split()[:5] == ["a", "ok", "FAILED", "?", "-"]
    assert "a, TLS: FAILED: it came with ESMTP" in lines
    assert "b: not run: b is not installed" in lines
    assert summary([OK, FAILED, UNABLE, ABSENT]) == "1 ok, 1 FAILED, 1 not run, 1 that the program can't do"


@pytest.mark.parametrize(
    ("cells", "status", "strict"),
    [
        ([OK], 0, 0),
        ([OK, UNABLE], 0, 0),
        ([OK, ABSENT], 0, 1),
        ([OK, FAILED], 1, 1),
        ([ABSENT], 1, 1),
        ([UNABLE], 1, 1),
        ([], 1, 1),
    ],
)
def test_a_matrix_is_green_only_when_something_was_tried_and_nothing_failed(
    cells: list[Cell], status: int, strict: int
) -> None:
    assert exit_status(cells, strict=False) == status
    assert exit_status(cells, strict=True) == strict


def test_the_programs_that_the_documents_name_are_in_it() -> None:
    text = (ROOT / "docs/interoperability.md").read_text(encoding="utf-8")
    for name in (*SENDERS, *HOPS):
        assert f"| {name} |" in text, name
    for feature in FEATURES:
        assert feature in text


@pytest.mark.servers
def test_a_sender_and_a_next_hop_of_python_pass() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.interop.matrix", "--strict", "Python", "Elemta"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "12 ok, 0 FAILED, 0 not run, 0 that" in done.stdout
