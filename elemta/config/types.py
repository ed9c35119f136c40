"""Maps the type of a field to the way its values are read, named and written."""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

from elemta.config.setting import SettingField, Words
from elemta.config.values import (
    ADDRESS_WORDS,
    DURATION_WORDS,
    NETWORK_WORDS,
    RATE_WORDS,
    SIZE_WORDS,
    Rate,
    Unacceptable,
    did_you_mean,
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_network,
    parse_rate,
    parse_size,
)

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True, slots=True)
class SettingType:
    """How one setting is read and written.

    ``words`` says what is allowed, after "must be"; ``label`` is the short form for a table of settings.
    ``read`` takes what TOML holds and raises ``Unacceptable`` (or a plain ValueError from a check).
    ``write`` gives what TOML holds. ``from_text`` turns an environment variable into what TOML would
    have held. Of a list, all of these concern one element, and ``gather`` makes the list of them.
    """

    words: str
    label: str
    read: Callable[[object], Any]
    write: Callable[[Any], object]
    from_text: Callable[[str], object]
    gather: Callable[[Iterable[Any]], Any] | None = None

    @property
    def is_list(self) -> bool:
        return self.gather is not None

    def written(self, value: Any) -> object:
        """The whole value as TOML holds it."""
        if not self.is_list:
            return self.write(value)
        elements = [self.write(each) for each in value]
        return sorted(elements, key=str) if isinstance(value, frozenset) else elements


def table_of(field: SettingField) -> tuple[type[Any], bool] | None:
    """The dataclass of a setting that is a table, and whether it is a list of tables; None for others."""
    annotation = _without_none(field.type)
    many = typing.get_origin(annotation) is tuple
    if many:
        arguments = typing.get_args(annotation)
        if len(arguments) != 2 or arguments[1] is not Ellipsis:
            return None
        annotation = arguments[0]
    is_table = isinstance(annotation, type) and dataclasses.is_dataclass(annotation)
    return (annotation, many) if is_table and annotation not in _SIMPLE else None


def type_of(field: SettingField) -> SettingType:
    """The kind of a setting. TypeError, for the author of the dataclass, when its type can't be one."""
    annotation, about = _without_none(field.type), field.about
    origin = typing.get_origin(annotation)
    if origin not in (tuple, frozenset):
        return _checked(_scalar(field.name, annotation, about), about)
    arguments = typing.get_args(annotation)
    if origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):
        raise TypeError(f"{field.name}: a list is written tuple[T, ...], not {annotation}")
    element = _checked(_scalar(field.name, arguments[0], about), about)
    return dataclasses.replace(element, label=f"list: {element.label}", gather=origin)


def _checked(kind: SettingType, about: Words) -> SettingType:
    check = about.check
    if check is None:
        return kind

    def read(found: object) -> Any:
        value = kind.read(found)
        check(value)
        return value

    return dataclasses.replace(kind, read=read)


def _without_none(annotation: Any) -> Any:
    """The annotation without ``| None``: TOML has no null, so None is only ever a default."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        arguments = [argument for argument in typing.get_args(annotation) if argument is not type(None)]
        if len(arguments) == 1:
            return arguments[0]
    return annotation


def _consists_of(annotation: Any, *classes: type) -> bool:
    members = set(typing.get_args(annotation)) or {annotation}
    return members <= set(classes)


def _same(value: Any) -> Any:
    return value


def _string(found: object, words: str = "a string") -> str:
    if not isinstance(found, str):
        raise Unacceptable(f"must be {words}")
    if any(char < " " or char == "\x7f" for char in found):
        raise Unacceptable(f"must be {words} without control characters")
    return found


def _text(about: Words) -> SettingType:
    if not about.choices:
        return SettingType("a string", "string", _string, _same, _same)
    words = _one_of(about.choices)

    def read(found: object) -> str:
        if found not in about.choices or not isinstance(found, str):
            raise Unacceptable(f"must be {words}", did_you_mean(str(found), map(str, about.choices)))
        return found

    return SettingType(words, words, read, _same, _same)


def _enum(members: type[enum.Enum], about: Words) -> SettingType:
    allowed = {
        str(member.value): member for member in members if not about.choices or member in about.choices
    }
    words = _one_of(allowed)

    def read(found: object) -> enum.Enum:
        member = allowed.get(found) if isinstance(found, str) else None
        if member is None:
            hint = did_you_mean(found, allowed) if isinstance(found, str) else ""
            raise Unacceptable(f"must be {words}", hint)
        return member

    return SettingType(words, words, read, lambda member: member.value, _same)


def _one_of(choices: Iterable[object]) -> str:
    quoted = [f'"{choice}"' for choice in choices]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _boolean(found: object) -> bool:
    if not isinstance(found, bool):
        raise Unacceptable("must be true or false")
    return found


def _boolean_text(text: str) -> object:
    lowered = text.strip().lower()
    return True if lowered in _TRUE else False if lowered in _FALSE else text


def _number(shape: type[int] | type[float], about: Words) -> SettingType:
    if about.unit == "bytes":
        words = SIZE_WORDS + _bounds(about, format_size)
        return SettingType(words, "size", _bounded(parse_size, words, about), format_size, _same)
    if about.unit == "seconds" and shape is float:
        words = DURATION_WORDS + _bounds(about, format_duration)
        return SettingType(words, "duration", _bounded(parse_duration, words, about), format_duration, _same)
    if about.unit == "seconds":
        words = DURATION_WORDS + _bounds(about, format_duration)
        return SettingType(words, "duration", _bounded(_whole_seconds, words, about), _same, _same)
    if shape is int:
        words = "a whole number" + _bounds(about, str)
        return SettingType(words, "whole number", _bounded(_whole, words, about), _same, _whole_text)
    words = "a number" + _bounds(about, str)
    return SettingType(words, "number", _bounded(_real, words, about), _same, _real_text)


def _bounds(about: Words, write: Callable[[Any], str]) -> str:
    if about.choices:
        return ": " + " or ".join(write(choice) for choice in about.choices)
    if about.minimum is not None and about.maximum is not None:
        return f" from {write(about.minimum)} to {write(about.maximum)}"
    if about.minimum is not None:
        return f" from {write(about.minimum)}"
    return f" up to {write(about.maximum)}" if about.maximum is not None else ""


def _bounded(read: Callable[[object], float], words: str, about: Words) -> Callable[[object], Any]:
    def read_within(found: object) -> float:
        try:
            number = read(found)
        except Unacceptable as error:
            raise Unacceptable(f"must be {words}", error.hint) from None
        low = about.minimum is not None and number < about.minimum
        high = about.maximum is not None and number > about.maximum
        if low or high or (about.choices and number not in about.choices):
            raise Unacceptable(f"must be {words}")
        return number

    return read_within


def _whole(found: object) -> int:
    if isinstance(found, bool) or not isinstance(found, int):
        raise Unacceptable("")
    return found


def _real(found: object) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise Unacceptable("")
    return float(found)


def _whole_seconds(found: object) -> int:
    seconds = parse_duration(found)
    if seconds != int(seconds):
        raise Unacceptable("")
    return int(seconds)


def _whole_text(text: str) -> object:
    try:
        return int(text.strip())
    except ValueError:
        return text


def _real_text(text: str) -> object:
    try:
        return float(text.strip())
    except ValueError:
        return text


_SIMPLE: Mapping[Any, SettingType] = {
    Path: SettingType("a path", "path", lambda found: Path(_string(found, "a path")), str, _same),
    Rate: SettingType(RATE_WORDS, "rate", parse_rate, str, _same),
    bool: SettingType("true or false", "boolean", _boolean, _same, _boolean_text),
}


def _scalar(name: str, annotation: Any, about: Words) -> SettingType:
    if _consists_of(annotation, IPv4Network, IPv6Network):
        return SettingType(NETWORK_WORDS, "network", parse_network, str, _same)
    if _consists_of(annotation, IPv4Address, IPv6Address):
        return SettingType(ADDRESS_WORDS, "address", parse_address, str, _same)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _enum(annotation, about)
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    if annotation in (int, float):
        return _number(annotation, about)
    if annotation is str:
        return _text(about)
    raise TypeError(
        f"{name}: a setting can't have the type {annotation}; it can be str, int, float, bool, Path, "
        "an Enum, an address, a network, a Rate, or tuple[T, ...] or frozenset[T] of these; among a policy's "
        "options, a dataclass of settings or tuple[T, ...] of one"
    )
