"""Faults to order: one call of a function of ours raises, wherever that is between two moments of a test."""

from __future__ import annotations

import dis
import importlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from twisted.internet.defer import Deferred, fail

import elemta

PACKAGE = Path(elemta.__file__).parent

Name = tuple[str, str]
"""A function: its module's file below the package, and its qualified name."""


@cache
def name_of(code: CodeType) -> Name | None:
    """The function of a code object; None where it is none of ours."""
    path = Path(code.co_filename)
    if PACKAGE not in path.parents:
        return None
    return str(path.relative_to(PACKAGE)), getattr(code, "co_qualname", code.co_name)


@cache
def _begin_of(code: CodeType) -> int:
    """How far a frame of this code may be at its first call; a coroutine that goes on is farther."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "RESUME" and not instruction.arg:
            return int(instruction.offset)
    return -1


class Faults:
    """Notes what is called while it is armed; one call of ``target`` raises ``error`` then.

    ``into`` has the hook installed in a thread of its own.
    """

    def __init__(self, into: Callable[[Callable[[], None]], None] = lambda install: None) -> None:
        self.called: dict[Name, None] = {}
        self.deferring: dict[Name, None] = {}
        self.target: Name | None = None
        self.error: Exception | None = None
        self.armed = False
        self.fired = False
        self._into = into

    def arm(self) -> None:
        """From now on."""
        self.armed = True
        sys.setprofile(self._hook)

    def install(self) -> None:
        """Have the hook in the other thread, too."""
        self._into(lambda: sys.setprofile(self._hook))

    def disarm(self) -> None:
        """The moment has passed."""
        self.armed = False
        sys.setprofile(None)

    def _hook(self, frame: FrameType, event: str, value: Any) -> None:
        if not self.armed or event not in ("call", "return"):
            return
        name = name_of(frame.f_code)
        if name is None or frame.f_code.co_name.startswith("<"):
            return
        if event == "return":
            if isinstance(value, Deferred):
                self.deferring[name] = None
            return
        if frame.f_lasti > _begin_of(frame.f_code):
            return
        self.called[name] = None
        if name == self.target and not self.fired and self.error is not None:
            self.fired = True
            raise self.error


def failing(name: Name, faults: Faults, error: Exception, patch: Any) -> bool:
    """Have one call of a function, while armed, give a Deferred that failed; whether that can be had."""
    path, qualified = name
    module = importlib.import_module("elemta." + path.removesuffix(".py").replace("/", "."))
    *owners, last = qualified.split(".")
    owner: Any = module
    for each in owners:
        owner = getattr(owner, each, None)
    function = getattr(owner, last, None)
    if not callable(function):
        return False

    def fails(*args: Any, **kwargs: Any) -> Any:
        if faults.armed and not faults.fired:
            faults.fired = True
            return fail(error)
        return function(*args, **kwargs)

    patch.setattr(owner, last, fails)
    return True
