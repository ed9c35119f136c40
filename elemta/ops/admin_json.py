"""Values of the admin API as JSON, and parameters from the text of a request, both by their types.

A result is a frozen dataclass, and its fields are the keys. Names and shapes are public: scripts read
them. Times are seconds since the epoch, durations seconds, sizes octets. Addresses are as between ``<``
and ``>``, so the null reverse-path is ``""``.

A parameter says what it takes by ``Annotated[type, kind]``; an enum needs no kind. In the JSON object of a
body it has the type that the schema of its kind names; in a query it is a text.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Protocol, runtime_checkable

from elemta.address import Address
from elemta.config.values import Unacceptable, format_duration, parse_duration
from elemta.ip import IPAddress, unmapped
from elemta.ops.admin_errors import AdminRefusal

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None

MAX_COUNT = 1000
"""The most that one answer lists."""

# Of 2**64; more is no number here.
_MOST_DIGITS = 20
_ANY = r"(?s:.+)"
_SURROGATES = re.compile("[\ud800-\udfff]")


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
    pattern: str = _ANY
    problem: str = ""

    @property
    def schema(self) -> Mapping[str, Any]:
        own = {} if self.pattern.startswith("(?s:") else {"pattern": f"^(?:{self.pattern})$"}
        least = 0 if re.fullmatch(self.pattern, "") else 1
        return {"type": "string", "minLength": least, "maxLength": self.longest, **own}

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
        plain = text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
        if not (plain and self.least <= int(text) <= self.most):
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


@dataclass(frozen=True, slots=True)
class Flag:
    """Yes or no: ``true`` or ``false``."""

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "boolean"}

    def parse(self, name: str, text: str) -> bool:
        if text not in ("true", "false"):
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, f"{name} {text[:16]!r} is neither true nor false")
        return text == "true"


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """The IP address of a client, without a port; one that is IPv4-mapped is IPv4."""

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "string", "minLength": 1, "maxLength": 64}

    def parse(self, name: str, text: str) -> IPAddress:
        try:
            ip = ip_address(text.strip())
        except ValueError:
            problem = f"{name} {text[:64]!r} is no IP address"
            hint = "such as 192.0.2.7 or 2001:db8::7"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem, hint) from None
        return unmapped(ip)


@dataclass(frozen=True, slots=True)
class Duration:
    """A duration as the configuration writes it, ``90s`` or ``2h``, or a number of seconds; in seconds.

    It is above ``above``, where that is given, and at most ``most``.
    """

    above: float = -1.0
    most: float = 100 * 366 * 86400.0

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "string", "minLength": 1, "maxLength": 32}

    def parse(self, name: str, text: str) -> float:
        hint = "a number of seconds, or such as 90s, 5m, 2h, 5d"
        try:
            seconds = parse_duration(text[:64])
        except Unacceptable as error:
            problem = f"{name} {text[:32]!r} is no duration"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem, hint) from error
        if not self.above < seconds <= self.most:
            least = f"more than {format_duration(self.above)} and " if self.above >= 0 else ""
            problem = f"{name} must be {least}at most {format_duration(self.most)}"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem, hint)
        return seconds


@dataclass(frozen=True, slots=True)
class Texts:
    """Up to ``most`` texts, each as ``each`` has it; in a query with commas between them."""

    each: Text
    most: int
    least: int = 1

    @property
    def schema(self) -> Mapping[str, Any]:
        items = dict(self.each.schema)
        return {"type": "array", "items": items, "minItems": self.least, "maxItems": self.most}

    def parse(self, name: str, text: str) -> tuple[str, ...]:
        return self.take(name, [part for part in text.split(",") if part])

    def take(self, name: str, values: Sequence[Json]) -> tuple[str, ...]:
        """The value that a list stands for. Raises :class:`AdminRefusal`."""
        if not self.least <= len(values) <= self.most:
            problem = f"{name} has {len(values)} entries, not {self.least} to {self.most}"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem)
        if not all(isinstance(value, str) for value in values):
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, f"{name} is not a list of texts")
        return tuple(self.each.parse(name, str(value)) for value in values)


def value_in_body(kind: ParameterKind, name: str, given: Json) -> object:
    """The value of a parameter from the JSON of a body. Raises :class:`AdminRefusal`."""
    wanted = kind.schema["type"]
    if wanted == "array" and isinstance(given, list) and isinstance(kind, Texts):
        return kind.take(name, given)
    if wanted == "boolean" and isinstance(given, bool):
        return given
    if wanted in ("integer", "number") and isinstance(given, int | float) and not isinstance(given, bool):
        # In JSON 2.0 is an integer.
        whole = isinstance(given, float) and given.is_integer()
        return kind.parse(name, str(int(given) if whole else given))
    if wanted == "string" and isinstance(given, str):
        return kind.parse(name, given)
    article = "an" if wanted[0] in "ai" else "a"
    raise AdminRefusal(HTTPStatus.BAD_REQUEST, f"{name} is not {article} {wanted}")


def parse_body(body: bytes, content_type: str, longest: int) -> Mapping[str, Json]:
    """The JSON object in a body; an empty body is an empty object. Raises :class:`AdminRefusal`."""
    if not body:
        return {}
    if len(body) > longest:
        problem = f"a body of more than {longest} octets"
        raise AdminRefusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, problem)
    if content_type.partition(";")[0].strip().lower() != "application/json":
        hint = "Content-Type: application/json"
        raise AdminRefusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is not JSON", hint)
    try:
        found = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, "the body is malformed", "one JSON object") from None
    if not isinstance(found, dict):
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, "the body is not an object", "one JSON object")
    if any(_has_surrogates(each) for each in (*found, *found.values())):
        # Half a character can be neither stored nor logged.
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, "the body has half a character")
    return found


def _refuse_constant(name: str) -> Json:
    raise ValueError(name)


def _has_surrogates(value: Json) -> bool:
    if isinstance(value, list):
        return any(_has_surrogates(each) for each in value)
    return isinstance(value, str) and _SURROGATES.search(value) is not None
