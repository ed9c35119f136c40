"""`make interop`: real programs send to Elemta, and Elemta sends to real servers; prints a table.

Each cell is one message that really arrived. `--strict` fails also where a program could not be run; words on
the command line choose programs.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.interop.matrix_hops import HOPS, Relay
from tests.interop.matrix_senders import SENDERS, Receiver
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
from tests.support.open_directory import open_directory


def tried(program: str, feature: str, try_it: Callable[[], None]) -> Cell:
    """One cell."""
    try:
        try_it()
    except CannotDo as error:
        return Cell(program, feature, Outcome.CANNOT, str(error))
    except NotRun as error:
        return Cell(program, feature, Outcome.NOT_RUN, str(error))
    except Exception as error:
        if "--verbose" in sys.argv:
            traceback.print_exc()
        return Cell(program, feature, Outcome.FAILED, _one_line(f"{type(error).__name__}: {error}"))
    return Cell(program, feature, Outcome.OK)


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) < 600 else f"{words[:200]} ... {words[-380:]}"


def senders(directory: Path, chosen: Sequence[str]) -> list[Cell]:
    """Every sender, every feature, to one receiving node."""
    cells = []
    with Receiver(directory) as receiver:
        for name, make in SENDERS.items():
            if chosen and name not in chosen:
                continue
            cells += [
                _told(tried(name, feature, partial(receiver.try_sender, name, make, feature)))
                for feature in FEATURES
            ]
    return cells


def hops(directory: Path, chosen: Sequence[str]) -> list[Cell]:
    """Elemta to every next hop."""
    cells = []
    for name, make in HOPS.items():
        if chosen and name not in chosen:
            continue
        relay = Relay(directory / name.replace(" ", "-"), make)
        try:
            started = tried(name, "plain", relay.start)
            if started.outcome is not Outcome.OK:
                cells += [Cell(name, feature, started.outcome, started.why) for feature in FEATURES]
                _told(started)
                continue
            cells += [_told(tried(name, feature, partial(relay.deliver, feature))) for feature in FEATURES]
        finally:
            relay.stop()
    return cells


def _told(cell: Cell) -> Cell:
    print(f"  {cell.program}, {cell.feature}: {cell.outcome.value}", file=sys.stderr, flush=True)
    return cell


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make interop")
    parser.add_argument("programs", nargs="*", help="only these")
    parser.add_argument("--strict", action="store_true", help="fail where a program could not be run")
    parser.add_argument("--verbose", action="store_true", help="tracebacks")
    options = parser.parse_args(arguments)
    with open_directory("elemta-interop-") as directory:
        sending = senders(directory, options.programs)
        receiving = hops(directory, options.programs)
    print()
    print(rendered("sender", sending))
    print()
    print(rendered("next hop", receiving))
    print()
    print(summary([*sending, *receiving]))
    return exit_status([*sending, *receiving], strict=options.strict)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
