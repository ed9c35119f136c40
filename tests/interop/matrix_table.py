"""The table of `make interop`: each cell says what was tried and what became of it, or why it was not."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FEATURES = ("plain", "TLS", "AUTH", "DSN", "SMTPUTF8", "20 MB")


class Outcome(enum.Enum):
    """What became of one cell."""

    OK = "ok"
    FAILED = "FAILED"
    NOT_RUN = "not run"
    CANNOT = "-"
    """The program has no such feature."""


@dataclass(frozen=True)
class Cell:
    """One program and one feature; ``why`` explains every outcome but OK."""

    program: str
    feature: str
    outcome: Outcome
    why: str = ""


class CannotDo(Exception):
    """The program does not have this feature."""


class NotRun(Exception):
    """This machine does not have the program."""


def rendered(title: str, cells: Sequence[Cell]) -> str:
    """The table of some programs, and a line for each cell that needs words."""
    programs = list(dict.fromkeys(cell.program for cell in cells))
    by_place = {(cell.program, cell.feature): cell for cell in cells}
    rows = [[title, *FEATURES]]
    for program in programs:
        found = [by_place.get((program, feature)) for feature in FEATURES]
        rows.append([program, *("?" if cell is None else cell.outcome.value for cell in found)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    notes = [
        f"{cell.program}, {cell.feature}: {cell.outcome.value}: {cell.why}"
        for cell in cells
        if cell.outcome is Outcome.FAILED
    ]
    reasons = dict.fromkeys(
        f"{cell.program}: not run: {cell.why}" for cell in cells if cell.outcome is Outcome.NOT_RUN
    )
    return "\n".join((*lines, *notes, *reasons))


def summary(cells: Iterable[Cell]) -> str:
    """One line with the number of each outcome; what was not run is never left out."""
    counts = dict.fromkeys(Outcome, 0)
    for cell in cells:
        counts[cell.outcome] += 1
    return (
        f"{counts[Outcome.OK]} ok, {counts[Outcome.FAILED]} FAILED, {counts[Outcome.NOT_RUN]} not run, "
        f"{counts[Outcome.CANNOT]} that the program can't do"
    )


def exit_status(cells: Sequence[Cell], *, strict: bool) -> int:
    """1 after a failure, and with ``strict`` also where something was not run, or nothing was."""
    bad = {Outcome.FAILED, Outcome.NOT_RUN} if strict else {Outcome.FAILED}
    tried = any(cell.outcome is Outcome.OK for cell in cells)
    return 0 if tried and not any(cell.outcome in bad for cell in cells) else 1
