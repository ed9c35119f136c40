"""Values of the admin API as JSON, and parameters from the text of a request, both by their types.

A result is a frozen dataclass, and its fields are the keys. Names and shapes are public: scripts read
them. Times are seconds since the epoch, durations seconds, sizes octets. Addresses are as between ``<``
and ``>``, so the null reverse-path is ``""``.

A parameter says what it takes by ``Annotated[type, kind]``; an enum needs no kind.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from http import HTTPStatus
from typing import Any, Protocol, runtime_checkable

from elemta.address import Address
from elemta.ops.admin_errors import AdminRefusal

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None

MAX_COUNT = 1000
"""The most that one answer lists."""


def to_json(value: object) -> Json:
    """A value as JSON has it. A float that JSON can't write is null, an enum its value."""
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Address):
        return str(value)
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(to_json(key)): to_json(each) for key, each in value.items()}
    if isinstance(value, Iterable):
        return [to_json(each) for each in value]
    raise TypeError(f"{type(value).__name__} has no form in JSON")


@runtime_checkable
class ParameterKind(Protocol):
    """What a parameter takes. ``schema`` says the same in the words of JSON Schema."""

    @property
    def schema(self) -> Mapping[str, Any]: ...

    def parse(self, name: str, text: str) -> object:
        """The value that a text stands for. Raises :class:`AdminRefusal`."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is not empty, of at most ``longest`` characters, that ``pattern`` matches as a whole.

    ``hint`` says what to write, ``problem`` what is wrong otherwise.
    """

    longest: int
    hint: str = ""
    pattern: str = r"(?s:.+)"
    problem: str = ""

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "string", "minLength": 1, "maxLength": self.longest}

    def parse(self, name: str, text: str) -> str:
        if len(text) > self.longest or not re.fullmatch(self.pattern, text):
            problem = self.problem or f"{name} is missing or too long"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem, self.hint)
        return text


@dataclass(frozen=True, slots=True)
class Count:
    """A number of things to show."""

    least: int = 1
    most: int = MAX_COUNT

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}

    def parse(self, name: str, text: str) -> int:
        if not (text.isascii() and text.isdigit() and self.least <= int(text[:9]) <= self.most):
            problem = f"{name} {text[:16]!r} is not a number from {self.least} to {self.most}"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem)
        return int(text)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the values of an enum."""

    choices: type[enum.Enum]

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "string", "enum": [choice.value for choice in self.choices]}

    def parse(self, name: str, text: str) -> enum.Enum:
        try:
            return self.choices(text)
        except ValueError:
            known = ", ".join(choice.value for choice in self.choices)
            problem = f"unknown {name} {text[:32]!r}"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem, f"known: {known}") from None
