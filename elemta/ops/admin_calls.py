"""The calls of the admin API: methods of operations classes, each declared as a call where it is defined.

.. code-block:: python

    class LimitOperations:
        @route("GET", "/v1/limits/top")
        async def top(self, limit: str | None = None, count: Annotated[int, Count()] = 20) -> LimitListing:
            "The identities nearest to a limit, or above it."

A part of the path in braces and every other argument is a parameter. An argument without a default is
needed; one whose default is None is absent where its text is empty, unless its kind takes an empty text. An
underscore at the end of an argument's name is not part of the parameter's (``from_``). The first line of the
docstring is the sentence that describes the call.

The parameters of a ``GET`` are in the query. Those of any other method are in the query, or are the keys of
a JSON object in the body. An argument of the type :class:`~elemta.auth.roles.Caller` is no parameter: it is
the peer that makes the call.
"""

from __future__ import annotations

import enum
import inspect
import tomllib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl, unquote

from elemta.auth.roles import LOCAL, AccessRole, Caller
from elemta.config.dumper import literal
from elemta.ops import audit
from elemta.ops.admin_errors import AdminRefusal, refusal_of
from elemta.ops.admin_json import Choice, Json, ParameterKind, Text, parse_body, to_json, value_in_body

F = TypeVar("F", bound=Callable[..., Awaitable[object]])

_ROUTE = "admin_route"
# A character has up to 12 octets in a URI, and Twisted reads no line of more than 16 KiB.
_MAX_TEXT = 1000
_MAX_FIELDS = 16
# The parameters that are whole files of TOML. By mistake that may be the daemon's own, with its passwords.
_DOCUMENTS = frozenset({"toml"})
# With this parameter a call changes nothing, and only shows what it would change.
_DRY_RUN = "dry_run"
MAX_BODY = 64 * 1024
"""The octets that the body of a call may have, unless the call says more."""


@dataclass(frozen=True, slots=True)
class CallRoute:
    """How a method is called: HTTP method and path, the role that it needs, the octets of its body.

    ``audited``: each call has a record in the audit log.
    """

    method: str
    path: str
    role: AccessRole
    audited: bool
    max_body: int


def route(
    method: str,
    path: str,
    *,
    role: AccessRole | None = None,
    audited: bool | None = None,
    max_body: int = MAX_BODY,
) -> Callable[[F], F]:
    """Declare a method of an operations class as an admin call; an override of it needs no declaration.

    ``role`` is by default viewer for a ``GET`` and operator for any other method. What needs an operator and
    is no ``GET`` is audited, unless ``audited`` says otherwise.
    """
    reads = method == "GET"
    needed = role or (AccessRole.VIEWER if reads else AccessRole.OPERATOR)
    if audited is None:
        audited = not reads and needed is AccessRole.OPERATOR

    def declare(operation: F) -> F:
        vars(operation)[_ROUTE] = CallRoute(method, path, needed, audited, 0 if reads else max_body)
        return operation

    return declare


@dataclass(frozen=True, slots=True)
class AdminParameter:
    """One parameter of a call: its name in a request and in the method, and what it takes.

    ``default`` counts where it is not ``required``. One that is not ``in_path`` is in the query, or in the
    body of what is no ``GET``.
    """

    name: str
    argument: str
    in_path: bool
    kind: ParameterKind
    required: bool
    default: object = None

    def value(self, texts: Mapping[str, str], body: Mapping[str, Json]) -> object:
        given = body.get(self.name)
        if given is not None and (given != "" or self._takes_empty):
            return value_in_body(self.kind, self.name, given)
        text = texts.get(self.name)
        empty_is_none = self.default is None and not self._takes_empty
        if not self.required and (text is None or (text == "" and empty_is_none)):
            return self.default
        if text is None and self._takes_empty:
            # An empty set of limits has to be asked for: a body that was forgotten is none.
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, f"{self.name} is missing")
        return self.kind.parse(self.name, text or "")

    @property
    def _takes_empty(self) -> bool:
        return self.kind.schema.get("minLength") == 0


@dataclass(frozen=True, slots=True)
class AdminCall:
    """One call: its route, its parameters, the type of its result, and a sentence about it.

    ``caller`` is the name of the argument that gets the :class:`~elemta.auth.roles.Caller`, or empty.
    """

    route: CallRoute
    parameters: tuple[AdminParameter, ...]
    result: Any
    sentence: str
    operation: Callable[..., Awaitable[object]]
    caller: str = ""

    @property
    def method(self) -> str:
        return self.route.method

    @property
    def path(self) -> str:
        return self.route.path

    @property
    def segments(self) -> Sequence[str]:
        return self.path.split("/")

    @property
    def action(self) -> str:
        """What the call does, in the audit log: ``queue.hold``, ``limits.reset``, ``queue.delete``."""
        words = [each for each in self.segments[2:] if not each.startswith("{")]
        return ".".join([*words, *(["delete"] if self.method == "DELETE" else [])])

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

    async def answer(
        self,
        parts: Mapping[str, str],
        query: Mapping[str, str],
        body: Mapping[str, Json] | None = None,
        caller: Caller = LOCAL,
    ) -> Json:
        """Carry it out. Raises :class:`AdminRefusal`, or what the operation raises."""
        body = body or {}
        try:
            result = await self._carry_out(parts, query, body, caller)
        except Exception as error:
            # Any failure: each attempt to change something has its record.
            if self.route.audited:
                refusal = refusal_of(error)
                target = self._target(parts, _with_documents({**query, **body}, _length))
                audit.change_refused(
                    caller, self.action, target, status=refusal.status, problem=refusal.error
                )
            raise
        given = {**query, **body}
        if self.route.audited and given.get(_DRY_RUN) not in (True, "true"):
            target = self._target(parts, _with_documents(given, _without_comments))
            audit.change_made(caller, self.action, target)
        return result

    def check_role(self, caller: Caller) -> None:
        """Refuse a caller that may not make it. Raises :class:`AdminRefusal`."""
        if not caller.role.may(self.route.role):
            hint = f"it needs the role {self.route.role.value}"
            problem = f"the role {caller.role.value} may not do this"
            raise AdminRefusal(HTTPStatus.FORBIDDEN, problem, hint)

    async def _carry_out(
        self, parts: Mapping[str, str], query: Mapping[str, str], body: Mapping[str, Json], caller: Caller
    ) -> Json:
        self.check_role(caller)
        names = [parameter.name for parameter in self.parameters if not parameter.in_path]
        for name in (*query, *body):
            # A misspelt filter must not mean "everything".
            if name not in names:
                known = f"known: {', '.join(names)}" if names else "it takes none"
                what = "query parameter" if name in query else "key"
                raise AdminRefusal(HTTPStatus.BAD_REQUEST, f"unknown {what} {name[:64]!r}", known)
            if name in query and name in body:
                raise AdminRefusal(HTTPStatus.BAD_REQUEST, f"{name} is in the query and in the body")
        texts = {**query, **parts}
        arguments = {each.argument: each.value(texts, body) for each in self.parameters}
        if self.caller:
            arguments[self.caller] = caller
        return to_json(await self.operation(**arguments))

    def _target(self, parts: Mapping[str, str], given: Mapping[str, Json]) -> str:
        """What a change is made to: the parts of the path, else the parameters in their order."""
        if parts:
            return " ".join(parts.values())
        known = [each.name for each in self.parameters if each.name in given]
        if len(known) == 1 and isinstance(given[known[0]], str):
            return str(given[known[0]])
        return " ".join(f"{name}={given[name]}" for name in known)


def _with_documents(given: Mapping[str, Json], shown: Callable[[str], str]) -> Mapping[str, Json]:
    return {name: shown(str(value)) if name in _DOCUMENTS else value for name, value in given.items()}


def _length(document: str) -> str:
    """All that is logged of one that was refused: what is not known to be a set of limits has secrets."""
    return f"({len(document)} characters)"


def _without_comments(document: str) -> str:
    """What one says that was taken, on one line: a comment may have anything in it."""
    try:
        return literal(tomllib.loads(document))
    except (ValueError, RecursionError):
        return _length(document)


class CallTable:
    """The calls of some operations, in the order of their definition."""

    def __init__(self, *operations: object) -> None:
        self.set_calls(tuple(call for each in operations for call in _calls_of(each)))

    def set_calls(self, calls: tuple[AdminCall, ...]) -> None:
        """Make these the calls of the table."""
        self.calls = calls
        names = [(call.method, call.path) for call in self.calls]
        if len(set(names)) != len(names):
            raise ValueError("two admin calls have the same method and path")
        # A path without a parameter goes before one that would take it for a parameter's value.
        self._by_fit = sorted(self.calls, key=lambda call: [each.startswith("{") for each in call.segments])

    @property
    def max_body(self) -> int:
        """The octets that the largest body of a call may have."""
        return max((call.route.max_body for call in self.calls), default=0)

    def has(self, method: str, path: str) -> bool:
        """Whether there is a call with this method, and this path as it is declared."""
        return any((call.method, call.path) == (method, path) for call in self.calls)

    async def answer(
        self, method: str, uri: str, body: bytes = b"", content_type: str = "", caller: Caller = LOCAL
    ) -> Json:
        """What a request for ``uri`` is answered. Raises :class:`AdminRefusal`, or what the operations
        raise."""
        path, _, query = uri.partition("?")
        call, parts = self.find_call(method, path)
        # A GET has no use for a body, and ignores one.
        given = parse_body(body, content_type, call.route.max_body) if call.method != "GET" else {}
        return await call.answer(parts, _query(query), given, caller)

    def find_call(self, method: str, path: str) -> tuple[AdminCall, Mapping[str, str]]:
        """The call for a path, and the parameters in that. Raises :class:`AdminRefusal`."""
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


def declared_calls(*operations: type) -> tuple[AdminCall, ...]:
    """The calls that classes of operations declare; they can't be carried out."""
    return tuple(call for each in operations for call in _calls_of_class(each, lambda _: _not_here))


def _calls_of(operations: object) -> Iterator[AdminCall]:
    return _calls_of_class(type(operations), lambda name: getattr(operations, name))


def _calls_of_class(
    kind: type, operation: Callable[[str], Callable[..., Awaitable[object]]]
) -> Iterator[AdminCall]:
    seen = set()
    for cls in reversed(kind.__mro__):
        for name, declared in vars(cls).items():
            found = getattr(declared, _ROUTE, None)
            if found is not None and name not in seen:
                seen.add(name)
                yield _call(found, declared, operation(name))


async def _not_here(**arguments: object) -> object:
    raise TypeError(f"a call that is only declared was made with {sorted(arguments)}")


def _call(
    route: CallRoute, declared: Callable[..., Awaitable[object]], operation: Callable[..., Awaitable[object]]
) -> AdminCall:
    hints = get_type_hints(declared, include_extras=True)
    arguments = list(inspect.signature(declared).parameters.values())[1:]
    callers = [each.name for each in arguments if hints[each.name] is Caller]
    parameters = tuple(
        _parameter(route.path, each, hints[each.name]) for each in arguments if each.name not in callers
    )
    sentence = (declared.__doc__ or "").strip().partition("\n")[0]
    if not sentence:
        raise TypeError(f"{route.method} {route.path} has no docstring")
    return AdminCall(route, parameters, hints["return"], sentence, operation, "".join(callers))


def _parameter(path: str, argument: inspect.Parameter, hint: object) -> AdminParameter:
    name = argument.name.rstrip("_")
    required = argument.default is inspect.Parameter.empty
    in_path, kind = f"{{{name}}}" in path, _kind(hint)
    if in_path and isinstance(kind, Text):
        kind = replace(kind, longest=min(kind.longest, _MAX_TEXT))
    return AdminParameter(
        name,
        argument.name,
        in_path=in_path,
        kind=kind,
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
    query = dict(pairs)
    if len(query) < len(pairs):
        # One of them would count and the other not, as if it were misspelt.
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        hint = "each parameter once; a list has commas between its values"
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, f"{twice[:64]!r} is in the query twice", hint)
    return query
