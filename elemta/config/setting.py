"""A setting: a dataclass field that carries its own documentation and bounds.

The schema of Elemta and the options of every policy are frozen dataclasses whose fields are made with
:func:`setting`. A field without it works too; it is then read by its type alone.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, overload

_METADATA = "elemta.setting"

T = TypeVar("T")


class Required:
    """The type of :data:`REQUIRED`."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = Required()


@dataclass(frozen=True, slots=True)
class Words:
    """The metadata of a field beside its name, type and default."""

    words: str = ""
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    check: Callable[[Any], object] | None = None
    not_empty: bool = False
    example: Any = None
    default_words: str = ""


@dataclass(frozen=True, slots=True)
class SettingField:
    """One setting: ``name`` is the field's, ``key`` the one in TOML (``except_`` is ``except``)."""

    name: str
    key: str
    type: Any
    default: Any
    about: Words

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


@overload
def setting(
    default: Required,
    words: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[Any] | None = None,
    check: Callable[[Any], object] | None = None,
    not_empty: bool = False,
    example: Any = None,
    default_words: str = "",
) -> Any: ...


@overload
def setting(
    default: T,
    words: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[Any] | None = None,
    check: Callable[[Any], object] | None = None,
    not_empty: bool = False,
    example: Any = None,
    default_words: str = "",
) -> T: ...


def setting(
    default: Any,
    words: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[Any] | None = None,
    check: Callable[[Any], object] | None = None,
    not_empty: bool = False,
    example: Any = None,
    default_words: str = "",
) -> Any:
    """Make a dataclass field that is a setting.

    ``default`` is the value without the key, or :data:`REQUIRED`. ``words`` is the sentence that
    stands in every document about it. ``unit`` "bytes" takes sizes such as ``"50MiB"`` and "seconds"
    durations such as ``"5m"``; any other unit is only named. ``minimum`` and ``maximum`` bound
    numbers, ``choices`` lists the only values allowed, ``check`` is called with the value and raises
    ``ValueError`` whose text goes on after "found …: "; of a list, these three concern each element.
    ``not_empty`` refuses an empty list or string.
    ``example`` and ``default_words`` stand in the documents where the default says too little.
    """
    about = Words(
        words, unit, minimum, maximum, tuple(choices or ()), check, not_empty, example, default_words
    )
    metadata = {_METADATA: about}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(shape: type[Any]) -> tuple[SettingField, ...]:
    """The settings of a dataclass, in the order of its fields.

    Raises TypeError, for the author of the dataclass, when it is none or its types can't be resolved.
    """
    if not (isinstance(shape, type) and dataclasses.is_dataclass(shape)):
        raise TypeError(f"{shape!r} is not a dataclass")
    try:
        types = typing.get_type_hints(shape)
    except NameError as error:
        raise TypeError(f"a type of {shape.__qualname__} can't be resolved: {error}") from error
    return tuple(
        SettingField(
            name=field.name,
            key=field.name.rstrip("_"),
            type=types[field.name],
            default=_default_of(field),
            about=field.metadata.get(_METADATA, Words()),
        )
        for field in dataclasses.fields(shape)
        if field.init
    )


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED
