"""What other daemons answer, read by the types of the results: a peer may have another version, or lie."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from elemta.address import Address
from elemta.ops.admin_json import Json, to_json

_SCALARS: Mapping[Any, tuple[type, ...]] = {
    str: (str,),
    bool: (bool,),
    int: (int,),
    # JSON has no infinity: it is null there.
    float: (int, float, NoneType),
    NoneType: (NoneType,),
    Address: (str,),
}


def read_json(hint: Any, value: Json) -> Json:
    """What ``to_json`` could have made of a value of this type, without unknown keys. Raises ValueError.

    A key that is missing has the default of its field.
    """
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if hint in _SCALARS:
        return _scalar(hint, value)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _one_of(arguments, value)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return {key: read_json(arguments[1], each) for key, each in _as(dict, value).items()}
    if origin is not None:
        return [read_json(arguments[0], each) for each in _as(list, value)]
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        if value not in [each.value for each in hint]:
            raise ValueError(f"not a {hint.__name__}")
        return value
    found = _as(dict, value)
    return {name: read_json(kind, found.get(name, default)) for name, kind, default in _keys(hint)}


def _as(kind: type, value: Json) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"not a {kind.__name__}")  # noqa: TRY004 - it is what a peer says
    return value


def _scalar(hint: Any, value: Json) -> Json:
    wrong = isinstance(value, bool) is not (hint is bool)
    if not isinstance(value, _SCALARS[hint]) or wrong:
        raise ValueError(f"not a {hint.__name__}")
    return value


def _one_of(arguments: tuple[Any, ...], value: Json) -> Json:
    for each in arguments:
        try:
            return read_json(each, value)
        except ValueError:
            continue
    raise ValueError("none of the types")


@cache
def _keys(cls: type) -> tuple[tuple[str, Any, Json], ...]:
    """The name, the type and the default of each field; None where it has none."""
    hints = get_type_hints(cls, include_extras=True)
    found = []
    for field in fields(cls):
        default = field.default if field.default is not MISSING else None
        found.append((field.name, hints[field.name], to_json(default)))
    return tuple(found)
