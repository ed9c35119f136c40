"""The calls of the admin API: methods of operations classes, each declared as a call where it is defined.

.. code-block:: python

    class LimitOperations:
        @route("GET", "/v1/limits/top")
        async def top(self, limit: str | None = None, count: Annotated[int, Count()] = 20) -> LimitListing:
            "The identities nearest to a limit, or above it."

A part of the path in braces and every other argument is a parameter. An argument without a default is
needed; one whose default is None is absent where its text is empty. An underscore at the end of an
argument's name is not part of the parameter's (``from_``). The first line of the docstring is the
sentence that describes the call.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl, unquote

from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Choice, Json, ParameterKind, Text, to_json

F = TypeVar("F", bound=Callable[..., Awaitable[object]])

_ROUTE = "admin_route"
_MAX_TEXT = 4096
_MAX_FIELDS = 16


def route(method: str, path: str) -> Callable[[F], F]:
    """Declare a method of an operations class as an admin call; an override of it needs no declaration."""

    def declare(operation: F) -> F:
        vars(operation)[_ROUTE] = (method, path)
        return operation

    return declare


@dataclass(frozen=True, slots=True)
class AdminParameter:
    """One parameter of a call: its name in a request and in the method, and what it takes.

    ``default`` counts where it is not ``required``. One that is not ``in_path`` is in the query.
    """

    name: str
    argument: str
    in_path: bool
    kind: ParameterKind
    required: bool
    default: object = None

    def value(self, given: Mapping[str, str]) -> object:
        text = given.get(self.name)
        if not self.required and (text is None or (text == "" and self.default is None)):
            return self.default
        return self.kind.parse(self.name, text or "")


@dataclass(frozen=True, slots=True)
class AdminCall:
    """One call: HTTP method and path, parameters, the type of its result, and a sentence about it."""

    method: str
    path: str
    parameters: tuple[AdminParameter, ...]
    result: Any
    sentence: str
    operation: Callable[..., Awaitable[object]]

    @property
    def segments(self) -> Sequence[str]:
        return self.path.split("/")

    def match(self, segments: Sequence[str]) -> Mapping[str, str] | None:
        """The parts of a path that are parameters, or None where it is another path."""
        if len(segments) != len(self.segments):
            return None
        found = {}
        for known, segment in zip(self.segments, segments, strict=True):
            if known.startswith("{"):
                found[known.strip("{}")] = unquote(segment)
            elif known != segment:
                return None
        return found

    async def answer(self, parts: Mapping[str, str], query: Mapping[str, str]) -> Json:
        """Carry it out. Raises :class:`AdminRefusal`, or what the operation raises."""
        names = [parameter.name for parameter in self.parameters if not parameter.in_path]
        for name in query:
            # A misspelt filter must not mean "everything".
            if name not in names:
                known = f"known: {', '.join(names)}" if names else "it takes none"
                problem = f"unknown query parameter {name!r}"
                raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem, known)
        given = {**query, **parts}
        arguments = {each.argument: each.value(given) for each in self.parameters}
        return to_json(await self.operation(**arguments))


class CallTable:
    """The calls of some operations, in the order of their definition."""

    def __init__(self, *operations: object) -> None:
        self.calls: tuple[AdminCall, ...] = tuple(call for each in operations for call in _calls_of(each))
        names = [(call.method, call.path) for call in self.calls]
        if len(set(names)) != len(names):
            raise ValueError("two admin calls have the same method and path")
        # A path without a parameter goes before one that would take it for a parameter's value.
        self._by_fit = sorted(self.calls, key=lambda call: [each.startswith("{") for each in call.segments])

    async def answer(self, method: str, uri: str) -> Json:
        """What a request for ``uri`` is answered. Raises :class:`AdminRefusal`, or what the operations
        raise."""
        path, _, query = uri.partition("?")
        call, parts = self._find(method, path)
        return await call.answer(parts, _query(query))

    def _find(self, method: str, path: str) -> tuple[AdminCall, Mapping[str, str]]:
        if not path.startswith("/v1/"):
            raise AdminRefusal(HTTPStatus.NOT_FOUND, "no such path", "every path begins with /v1/")
        segments = path.split("/")
        allowed: list[str] = []
        for call in self._by_fit:
            parts = call.match(segments)
            if parts is None:
                continue
            if call.method == method:
                return call, parts
            if call.method not in allowed:
                allowed.append(call.method)
        if allowed:
            problem = f"{method[:16]} is not for this path"
            raise AdminRefusal(HTTPStatus.METHOD_NOT_ALLOWED, problem, ", ".join(allowed))
        raise AdminRefusal(HTTPStatus.NOT_FOUND, "no such path")


def _calls_of(operations: object) -> Iterator[AdminCall]:
    seen = set()
    for cls in reversed(type(operations).__mro__):
        for name, declared in vars(cls).items():
            found = getattr(declared, _ROUTE, None)
            if found is not None and name not in seen:
                seen.add(name)
                method, path = found
                yield _call(method, path, declared, getattr(operations, name))


def _call(
    method: str,
    path: str,
    declared: Callable[..., Awaitable[object]],
    operation: Callable[..., Awaitable[object]],
) -> AdminCall:
    hints = get_type_hints(declared, include_extras=True)
    arguments = list(inspect.signature(declared).parameters.values())[1:]
    parameters = tuple(_parameter(path, each, hints[each.name]) for each in arguments)
    sentence = (declared.__doc__ or "").strip().partition("\n")[0]
    if not sentence:
        raise TypeError(f"{method} {path} has no docstring")
    return AdminCall(method, path, parameters, hints["return"], sentence, operation)


def _parameter(path: str, argument: inspect.Parameter, hint: object) -> AdminParameter:
    name = argument.name.rstrip("_")
    required = argument.default is inspect.Parameter.empty
    return AdminParameter(
        name,
        argument.name,
        in_path=f"{{{name}}}" in path,
        kind=_kind(hint),
        required=required,
        default=None if required else argument.default,
    )


def _kind(hint: Any) -> ParameterKind:
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (each for each in get_args(hint) if each is not NoneType)
    if get_origin(hint) is Annotated:
        found: ParameterKind = next(each for each in hint.__metadata__ if isinstance(each, ParameterKind))
        return found
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return Choice(hint)
    if hint is str:
        return Text(_MAX_TEXT)
    raise TypeError(f"{hint} does not say what the parameter takes: Annotated[type, kind]")


def _query(text: str) -> Mapping[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=_MAX_FIELDS)
    except ValueError:
        problem = "the query is malformed"
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem, "NAME=VALUE&NAME=VALUE") from None
    return dict(pairs)
