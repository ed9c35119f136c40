"""Faults to order: calls of a function of ours raise, wherever that is between two moments of a test."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType
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


def function_of(name: Name) -> FunctionType | None:
    """The function itself; None where it can't be had by its name, or is a closure."""
    path, qualified = name
    module = importlib.import_module("elemta." + path.removesuffix(".py").replace("/", "."))
    found: Any = module
    for each in qualified.split("."):
        found = vars(found).get(each) if hasattr(found, "__dict__") else None
    if isinstance(found, property):
        found = found.fget
    found = inspect.unwrap(getattr(found, "__func__", found)) if found is not None else None
    return found if isinstance(found, FunctionType) and not found.__code__.co_freevars else None


class Observed:
    """Notes which functions are called, in this thread and in one more, and which give a Deferred."""

    def __init__(self, into: Callable[[Callable[[], None]], None]) -> None:
        self.called: dict[Name, None] = {}
        self.deferring: dict[Name, None] = {}
        self.on = False
        self._into = into

    def start(self) -> None:
        self.on = True
        sys.setprofile(self._hook)

    def install(self) -> None:
        self._into(lambda: sys.setprofile(self._hook))

    def stop(self) -> None:
        self.on = False
        sys.setprofile(None)
        self._into(lambda: sys.setprofile(None))

    def _hook(self, frame: FrameType, event: str, value: Any) -> None:
        if not self.on or event not in ("call", "return"):
            return
        name = name_of(frame.f_code)
        if name is None or frame.f_code.co_name.startswith("<"):
            return
        self.called[name] = None
        if event == "return" and isinstance(value, Deferred):
            self.deferring[name] = None


class Fault:
    """Calls of one function raise while this is ``armed``: so many of them. ``fired`` is how many did.

    With ``deferred`` they give a Deferred that failed. Each raises an ``error`` of its own: one that is
    raised again has a longer traceback each time.
    """

    def __init__(
        self, name: Name, error: Callable[[], Exception], times: int = 1, *, deferred: bool = False
    ) -> None:
        self.name, self.error, self.times = name, error, times
        self.armed = False
        self.fired = 0
        self._deferred = deferred
        self._function = function = function_of(name)
        self.possible = function is not None
        if function is None:
            return
        self._code = code = function.__code__
        self._original = FunctionType(
            code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
        )
        self._original.__kwdefaults__ = function.__kwdefaults__
        self._is_coroutine = bool(code.co_flags & inspect.CO_COROUTINE)
        number = len(_faults)
        _faults.append(self)
        scope: dict[str, Any] = {}
        # Code with a number of its own, and no closure.
        exec(
            "def broken(*args, **kwargs):\n"
            "    return __import__('tests.support.faults', fromlist=['meet'])"
            f".meet({number}, args, kwargs)\n",
            scope,
        )
        function.__code__ = scope["broken"].__code__

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.armed and self.fired < self.times:
            self.fired += 1
            if self._is_coroutine:
                return _raise_later(self.error())
            if self._deferred:
                return fail(self.error())
            raise self.error()
        return self._original(*args, **kwargs)

    def end(self) -> None:
        """The function is whole again."""
        self.armed = False
        if self._function is not None:
            self._function.__code__ = self._code


async def _raise_later(error: Exception) -> None:
    raise error


_faults: list[Fault] = []


def meet(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a function that is to fail does."""
    return _faults[number].call(args, kwargs)
