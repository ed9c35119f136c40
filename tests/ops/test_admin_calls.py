"""The table of admin calls: what a declared method becomes, and that the page of the API has all of it."""

from __future__ import annotations

import enum
import importlib
import math
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import CancelledError

import elemta.console
import elemta.daemon
import elemta.net
import elemta.ops
from elemta.address import NULL, Address
from elemta.auth.roles import AccessRole
from elemta.daemon.supervisor_operations import WORKER_CALLS
from elemta.errors import (
    MessageOnHold,
    NoSender,
    NoSpool,
    SpoolError,
    SpoolFull,
    SpoolLocked,
    StoreUnavailable,
    UnknownMessage,
)
from elemta.ops.admin_calls import AdminCall, CallTable, declared_calls, route
from elemta.ops.admin_errors import AdminRefusal, refusal_of
from elemta.ops.admin_json import Count, Text, to_json
from tests.support.administered import Administered

ROOT = Path(__file__).resolve().parents[2]
CALLS = Administered(None).calls.calls


def every_call() -> tuple[AdminCall, ...]:
    """The calls of every class in the tree that declares some, each path once."""
    found: dict[tuple[str, str], AdminCall] = {}
    for package in (elemta.console, elemta.daemon, elemta.net, elemta.ops):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for kind in vars(importlib.import_module(module.name)).values():
                if isinstance(kind, type) and kind.__module__ == module.name:
                    found.update(((each.method, each.path), each) for each in declared_calls(kind))
    return tuple(found.values())


EVERY_CALL = every_call()


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Painted:
    name: str
    colour: Colour | None
    coats: int
    from_where: str | None


class Painting:
    @route("GET", "/v1/paint/{name}")
    async def paint(
        self,
        name: str,
        colour: Colour | None = None,
        coats: Annotated[int, Count(1, 9)] = 2,
        from_: Annotated[str, Text(5, "a place")] | None = None,
    ) -> Painted:
        """Paint a thing.

        More about it.
        """
        return Painted(name, colour, coats, from_)

    @route("GET", "/v1/paint/all")
    async def everything(self, with_: Annotated[str, Text(5, "a tool")]) -> Painted:
        """Paint everything."""
        return Painted("all", None, 0, with_)


class PaintingTwice(Painting):
    async def paint(self, *args: Any, **named: Any) -> Painted:
        return await super().paint("twice " + named.pop("name"), *args, **named)


def test_a_program_reads_path_parameters_result_and_sentence_of_a_call() -> None:
    call = CallTable(Painting()).calls[0]
    assert (call.method, call.path, call.sentence) == ("GET", "/v1/paint/{name}", "Paint a thing.")
    assert call.result is Painted
    told = [(each.name, each.in_path, each.required, each.default) for each in call.parameters]
    assert told == [
        ("name", True, True, None),
        ("colour", False, False, None),
        ("coats", False, False, 2),
        ("from", False, False, None),
    ]
    assert [each.kind.schema["type"] for each in call.parameters] == ["string", "string", "integer", "string"]
    assert call.parameters[1].kind.schema["enum"] == ["red", "blue"]


@pytest.mark.parametrize(
    ("uri", "answer"),
    [
        ("/v1/paint/fence", {"name": "fence", "colour": None, "coats": 2, "from_where": None}),
        (
            "/v1/paint/a%20fence?colour=blue&coats=9&from=above",
            {"name": "a fence", "colour": "blue", "coats": 9, "from_where": "above"},
        ),
        ("/v1/paint/fence?colour=&from=", {"name": "fence", "colour": None, "coats": 2, "from_where": None}),
        # A path without a parameter goes first, whatever the order of the methods.
        ("/v1/paint/all?with=brush", {"name": "all", "colour": None, "coats": 0, "from_where": "brush"}),
    ],
)
@ensureDeferred
async def test_parameters_come_from_the_path_and_the_query_by_their_types(
    uri: str, answer: Mapping[str, Any]
) -> None:
    assert await CallTable(Painting()).answer("GET", uri) == answer


def test_no_call_takes_a_missing_parameter_for_an_empty_one() -> None:
    asked = [
        (call, each) for call in EVERY_CALL for each in call.parameters if each.required and not each.in_path
    ]
    assert any(each.name == "toml" for _, each in asked)
    for call, each in asked:
        for body in ({}, {each.name: None}):
            with pytest.raises(AdminRefusal) as refused:
                each.value({}, body)
            assert refused.value.status == 400, (call.path, each.name)


@pytest.mark.parametrize(
    ("uri", "error", "hint"),
    [
        ("/v1/paint/fence?colour=green", "unknown colour 'green'", "known: red, blue"),
        ("/v1/paint/fence?coats=10", "coats '10' is not a number from 1 to 9", ""),
        ("/v1/paint/fence?coats=", "coats '' is not a number from 1 to 9", ""),
        ("/v1/paint/fence?from=beneath", "from is missing or too long", "a place"),
        ("/v1/paint/all", "with is missing or too long", "a tool"),
        ("/v1/paint/all?with=", "with is missing or too long", "a tool"),
        ("/v1/paint/fence?name=x", "unknown query parameter 'name'", "known: colour, coats, from"),
        ("/v1/paint/fence?colour", "the query is malformed", "NAME=VALUE&NAME=VALUE"),
        (
            "/v1/paint/fence?coats=2&colour=red&coats=3",
            "'coats' is in the query twice",
            "each parameter once; a list has commas between its values",
        ),
    ],
)
@ensureDeferred
async def test_a_parameter_that_is_not_understood_is_400_with_what_it_takes(
    uri: str, error: str, hint: str
) -> None:
    with pytest.raises(AdminRefusal) as refused:
        await CallTable(Painting()).answer("GET", uri)
    assert (refused.value.status, refused.value.error, refused.value.hint) == (400, error, hint)


@ensureDeferred
async def test_an_override_is_the_same_call() -> None:
    calls = CallTable(PaintingTwice())
    assert [call.path for call in calls.calls] == ["/v1/paint/{name}", "/v1/paint/all"]
    answer = await calls.answer("GET", "/v1/paint/fence")
    assert isinstance(answer, dict)
    assert answer["name"] == "twice fence"


def test_two_calls_with_one_path_are_refused() -> None:
    with pytest.raises(ValueError, match="same method and path"):
        CallTable(Painting(), Painting())


class Silent:
    @route("GET", "/v1/silent")
    async def silent(self) -> Painted:
        raise AssertionError


class Vague:
    @route("GET", "/v1/vague")
    async def vague(self, many: int) -> Painted:
        """It does not say how many."""
        raise AssertionError


@pytest.mark.parametrize("operations", [Silent(), Vague()])
def test_a_call_without_a_sentence_or_with_an_unbounded_number_is_refused(operations: object) -> None:
    with pytest.raises(TypeError):
        CallTable(operations)


@pytest.mark.parametrize(
    ("value", "json"),
    [
        (
            Painted("fence", Colour.RED, 1, None),
            {"name": "fence", "colour": "red", "coats": 1, "from_where": None},
        ),
        ((Address("anna", "example.org"), NULL), ["anna@example.org", ""]),
        ({Colour.RED: (1, 2.5), "x": True}, {"red": [1, 2.5], "x": True}),
        # JSON has no infinity
        ([math.inf, -math.inf, math.nan], [None, None, None]),
    ],
)
def test_a_result_is_json_by_its_type(value: object, json: object) -> None:
    assert to_json(value) == json


def test_what_has_no_form_in_json_is_an_error() -> None:
    with pytest.raises(TypeError, match="object"):
        to_json(object())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnknownMessage("x"), 404),
        (NoSpool("x"), 404),
        (MessageOnHold("x"), 409),
        (NoSender("x"), 409),
        (SpoolLocked("x", node="mx2"), 409),
        (SpoolFull("x"), 503),
        (SpoolError("x"), 503),
        (StoreUnavailable("x"), 503),
        (CancelledError(), 504),
        (RuntimeError("secret"), 500),
    ],
)
def test_an_error_has_one_answer_whatever_the_call(error: Exception, status: int) -> None:
    refusal = refusal_of(error)
    assert refusal.status == status
    assert "secret" not in str(refusal.content)


# The page of the API


def page() -> str:
    text = (ROOT / "docs" / "elemtactl.md").read_text(encoding="utf-8")
    return text.partition("Each call below")[2]


def as_written(call: AdminCall) -> str:
    query = "&".join(f"{each.name}=" for each in call.parameters if not each.in_path)
    path = call.path.replace("{queue_id}", "ID").replace("{name}", "NAME")
    return f"`{call.method} {path}{'?' + query if query else ''}`"


def keys_of(result: Any) -> set[str]:
    """The names of all keys in a result."""
    if result is Address:
        return set()
    if is_dataclass(result):
        hints = get_type_hints(result)
        return {field.name for field in fields(result)} | {
            key for field in fields(result) for key in keys_of(hints[field.name])
        }
    return {key for each in get_args(result) for key in keys_of(each)}


@pytest.mark.parametrize("call", EVERY_CALL, ids=lambda call: f"{call.method} {call.path}")
def test_every_call_has_its_line_in_the_page_and_every_key_its_word(call: AdminCall) -> None:
    assert as_written(call) in page().replace("\n  ", " ")
    words = {word for quoted in re.findall(r"`([^`]*)`", page()) for word in quoted.split()}
    assert keys_of(call.result) <= words


def test_a_call_for_another_role_than_its_method_has_says_so_in_the_page() -> None:
    entries = page().replace("\n  ", " ").split("\n- ")
    others = [
        (as_written(call), call.route.role.value)
        for call in EVERY_CALL
        if call.route.role is not (AccessRole.VIEWER if call.method == "GET" else AccessRole.OPERATOR)
    ]
    assert len(others) > 2
    for written, role in others:
        assert [role in entry for entry in entries if entry.startswith(written)] == [True], written


def test_the_daemon_and_its_supervisor_have_no_other_call() -> None:
    known = {(each.method, each.path) for each in EVERY_CALL}
    assert {(each.method, each.path) for each in (*CALLS, *WORKER_CALLS)} <= known
    assert ("GET", "/v1/workers") in known


def test_the_page_has_no_other_call() -> None:
    written = set(re.findall(r"`((?:GET|POST|DELETE) /v1/[^`]*)`", page()))
    calls = {as_written(call) for call in EVERY_CALL}
    assert {f"`{each}`" for each in written} == {*calls, "`GET /v1/events`"}
