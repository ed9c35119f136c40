"""The description of the admin API, made from the table of its calls: OpenAPI 3.1.

The schemas of results come from the dataclasses, those of parameters from what each parameter takes.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from http import HTTPStatus
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from elemta import __version__
from elemta.address import Address
from elemta.auth.roles import AccessRole, Caller
from elemta.ops.admin_calls import AdminCall, AdminParameter, CallTable, route

Schema = dict[str, Any]

_ERRORS = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.CONFLICT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "hint": {"type": "string"}},
    "required": ["error", "hint"],
}
_SCALARS: Mapping[Any, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    # JSON has no infinity: it is null there.
    float: {"type": ["number", "null"]},
    NoneType: {"type": "null"},
    Address: {"type": "string", "description": "as between < and >; empty for the null reverse-path"},
    Any: {},
    object: {},
}
_EVENTS: Schema = {
    "operationId": "events",
    "summary": "Server-sent events: `state` about once a second.",
    "x-role": AccessRole.VIEWER.value,
    "responses": {
        "200": {
            "description": "a stream that does not end",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
}


@dataclass(frozen=True, slots=True)
class CallerDetails:
    """The caller's name and role.

    ``csrf`` is what a browser sends as X-CSRF-Token with each change; null where none is asked for.
    """

    actor: str
    role: AccessRole
    csrf: str | None


class ApiOperations:
    """Describes the API, and the caller to itself. ``calls`` are described once they are set."""

    def __init__(self) -> None:
        self.calls = CallTable()

    @route("GET", "/v1/openapi.json")
    async def describe(self) -> Mapping[str, Any]:
        """This description."""
        return openapi(self.calls)

    @route("GET", "/v1/session")
    async def session(self, caller: Caller) -> CallerDetails:
        """The caller: its name, its role, and the CSRF token of its session."""
        return CallerDetails(caller.actor, caller.role, caller.csrf)


def openapi(calls: CallTable) -> Schema:
    """The description of ``calls`` and of the event stream."""
    components: dict[str, Schema] = {"Error": _ERROR}
    paths: dict[str, dict[str, Schema]] = {}
    for call in calls.calls:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call, components)
    paths["/v1/events"] = {"get": _EVENTS}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Elemta",
            "version": __version__,
            "description": "Times are seconds since the epoch, durations seconds, sizes octets.",
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"cookie": [], "csrf": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": "elemta_session"},
                "csrf": {"type": "apiKey", "in": "header", "name": "X-CSRF-Token"},
            },
        },
    }


def _operation(call: AdminCall, components: dict[str, Schema]) -> Schema:
    given = [each for each in call.parameters if not each.in_path]
    reads = call.method == "GET"
    in_uri = [each for each in call.parameters if each.in_path or reads]
    found: Schema = {
        "operationId": f"{call.method.lower()} {call.path.removeprefix('/v1/')}",
        "summary": call.sentence,
        "x-role": call.route.role.value,
        "parameters": [_parameter(each) for each in in_uri],
        "responses": {
            "200": {"description": "done", "content": _json(_schema(call.result, components))},
            **{str(status.value): _error(status) for status in _ERRORS},
        },
    }
    if given and not reads:
        found["description"] = "The keys of the body may be parameters of the query instead."
        found["requestBody"] = {
            "required": any(each.required for each in given),
            "content": _json(_object(given)),
        }
    return found


def _object(parameters: Sequence[AdminParameter]) -> Schema:
    found: Schema = {
        "type": "object",
        "properties": {each.name: _with_default(each, in_body=True) for each in parameters},
        "additionalProperties": False,
    }
    required = [each.name for each in parameters if each.required]
    return {**found, "required": required} if required else found


def _parameter(parameter: AdminParameter) -> Schema:
    found: Schema = {
        "name": parameter.name,
        "in": "path" if parameter.in_path else "query",
        "required": parameter.required or parameter.in_path,
        "schema": _with_default(parameter),
    }
    if parameter.kind.schema["type"] == "array":
        # With commas between the values
        found |= {"style": "form", "explode": False}
    return found


def _with_default(parameter: AdminParameter, *, in_body: bool = False) -> Schema:
    """What a parameter takes, with what is the same as no parameter: an empty text, and null in a body."""
    schema = dict(parameter.kind.schema)
    if parameter.required:
        return schema
    default = parameter.default
    default = default.value if isinstance(default, enum.Enum) else default
    if in_body:
        return {"anyOf": [schema, {"enum": ["", None]}]}
    if default is None or default == "":
        return {"anyOf": [schema, {"enum": [""]}]}
    return {**schema, "default": default} if isinstance(default, str | int | float | bool) else schema


def _error(status: HTTPStatus) -> Schema:
    return {"description": status.phrase, "content": _json({"$ref": "#/components/schemas/Error"})}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _schema(hint: Any, components: dict[str, Schema]) -> Schema:
    """The schema of what :func:`~elemta.ops.admin_json.to_json` makes of a value of this type."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if hint in _SCALARS:
        return dict(_SCALARS[hint])
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return {"anyOf": [_schema(each, components) for each in arguments]}
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema(arguments[1], components)}
    if origin is not None:
        entries = [each for each in arguments if each is not Ellipsis]
        items = _schema(entries[0], components) if len(entries) == 1 else {}
        return {"type": "array", "items": items}
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        return {"enum": [each.value for each in hint]}
    if is_dataclass(hint) and isinstance(hint, type):
        return _reference(hint, components)
    raise TypeError(f"{hint} has no schema")


def _reference(cls: type, components: dict[str, Schema]) -> Schema:
    reference = {"$ref": f"#/components/schemas/{cls.__name__}"}
    if cls.__name__ in components:
        return reference
    components[cls.__name__] = {}
    hints = get_type_hints(cls, include_extras=True)
    own = {field.name: _schema(hints[field.name], components) for field in fields(cls)}
    components[cls.__name__].update({"type": "object", "properties": own, "required": list(own)})
    return reference
