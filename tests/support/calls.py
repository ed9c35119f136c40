"""How many functions of Elemta run for something: a figure that no busy machine changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import elemta

HERE = str(Path(elemta.__file__).parent)


def calls(work: Callable[[], object]) -> int:
    """How many functions of Elemta run in ``work()``."""
    count = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(HERE)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count
