"""The description of the API is true: of each call's parameters and body, and of what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from elemta.daemon.limit_operations import BoundFill, LimitFill, LimitListing
from elemta.ops.admin_calls import AdminCall
from elemta.ops.admin_json import to_json
from elemta.ops.openapi import openapi
from tests.support.administered import Administered

TABLE = Administered(None).calls
DESCRIPTION = openapi(TABLE)
TYPES: Mapping[str, Any] = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a JSON value is what a schema says; of the words that the description uses."""
    if "$ref" in schema:
        return fits(value, DESCRIPTION["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind == "object" and isinstance(value, dict):
            own = schema.get("properties", {})
            more = schema.get("additionalProperties", {})
            return set(schema.get("required", ())) <= set(value) and all(
                fits(each, own.get(name, more)) for name, each in value.items()
            )
        if kind == "array" and isinstance(value, list):
            return all(fits(each, schema["items"]) for each in value)
        types = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "null": type(None)}
        if (
            kind in types
            and isinstance(value, types[kind])
            and (kind == "boolean") == isinstance(value, bool)
        ):
            return True
    return not kinds


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [each for inner in value.values() for each in references(inner)]
    return [each for inner in value for each in references(inner)] if isinstance(value, list) else []


@pytest.mark.parametrize("call", TABLE.calls, ids=lambda call: f"{call.method} {call.path}")
def test_every_call_is_described_with_its_parameters_and_its_role(call: AdminCall) -> None:
    described = DESCRIPTION["paths"][call.path][call.method.lower()]
    assert described["x-role"] == call.route.role.value
    body = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    named = [each["name"] for each in described["parameters"]] + list(body.get("properties", {}))
    assert sorted(named) == sorted(each.name for each in call.parameters)
    assert not (call.method == "GET" and body)


def test_every_reference_leads_to_a_schema() -> None:
    known = {f"#/components/schemas/{name}" for name in DESCRIPTION["components"]["schemas"]}
    assert set(references(DESCRIPTION)) <= known


@pytest.mark.parametrize("retry_after", [1.5, 0.0, math.inf])
def test_the_schema_of_an_answer_fits_the_answer(retry_after: float) -> None:
    listing = LimitListing(
        (LimitFill("a", "b", "messages", "enforce", (BoundFill(1, 2, None),), retry_after, ("mx1",)),),
        "memory",
    )
    schema = DESCRIPTION["paths"]["/v1/limits/top"]["get"]["responses"]["200"]["content"]["application/json"]
    assert fits(to_json(listing), schema["schema"])
    assert not fits({"limits": [{}], "counted_in": "memory", "complete": True}, schema["schema"])
