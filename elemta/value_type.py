"""Values that are made many times for each message: frozen for mypy, and not at run time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value_type(cls: type[T]) -> type[T]:
    """A dataclass with slots whose fields nothing sets again; mypy refuses it, and nothing does at run time.

    A frozen dataclass refuses it at run time, too, and pays for that: it sets each field by a call. Policies
    get none of these: what they could change by mistake is a frozen dataclass.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


if TYPE_CHECKING:

    @value_type
    class _Frozen:
        number: int

    # The test of this module: mypy --strict reports a comment that it has no use for.
    _Frozen(1).number = 2  # type: ignore[misc]
