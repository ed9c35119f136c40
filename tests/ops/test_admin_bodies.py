"""Parameters in the body of a call, the roles that calls need, and their records in the audit log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.logger import globalLogPublisher

from elemta.auth.roles import AccessRole, Caller
from elemta.ops.admin_calls import CallTable, route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Count, Flag, Text, Texts


@dataclass(frozen=True)
class Parcel:
    to: str
    weight: int
    stamps: Sequence[str]
    fragile: bool
    sent_by: str


class Posting:
    @route("GET", "/v1/parcels")
    async def list(self) -> tuple[Parcel, ...]:
        """The parcels."""
        return ()

    @route("POST", "/v1/parcels/{to}")
    async def send(
        self,
        caller: Caller,
        to: str,
        weight: Annotated[int, Count(1, 9)],
        stamps: Annotated[Sequence[str], Texts(Text(5, pattern="[a-z]+"), 3)] = (),
        fragile: Annotated[bool, Flag()] = False,
    ) -> Parcel:
        """Send a parcel."""
        if to == "nowhere":
            raise AdminRefusal(404, "there is no such place")
        return Parcel(to, weight, stamps, fragile, caller.actor)

    @route("DELETE", "/v1/parcels/{to}")
    async def lose(self, to: str) -> str:
        """Lose a parcel."""
        return to

    @route("POST", "/v1/parcels/weigh", role=AccessRole.LIMITER)
    async def weigh(self, weight: Annotated[int, Count(1, 9)]) -> int:
        """Weigh a parcel."""
        return weight


ANNA = Caller("anna", AccessRole.OPERATOR)
CALLS = CallTable(Posting())


async def post(body: object, *, uri: str = "/v1/parcels/x", content_type: str = "application/json") -> Any:
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await CALLS.answer("POST", uri, octets, content_type, ANNA)


@pytest.mark.parametrize(
    ("body", "query", "answer"),
    [
        ({"weight": 2}, "", {"weight": 2, "stamps": [], "fragile": False}),
        ({"weight": 2.0}, "", {"weight": 2, "stamps": [], "fragile": False}),
        (
            {"weight": 2, "stamps": ["red", "blue"], "fragile": True},
            "",
            {"weight": 2, "stamps": ["red", "blue"], "fragile": True},
        ),
        ({"stamps": None}, "?weight=3", {"weight": 3, "stamps": [], "fragile": False}),
        (
            b"",
            "?weight=9&stamps=red,blue&fragile=true",
            {"weight": 9, "stamps": ["red", "blue"], "fragile": True},
        ),
    ],
)
@ensureDeferred
async def test_parameters_come_from_the_body_by_their_types(
    body: object, query: str, answer: Mapping[str, Any]
) -> None:
    found = await post(body, uri=f"/v1/parcels/x{query}")
    assert found == {"to": "x", "sent_by": "anna", **answer}


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({}, 400, "weight '' is not a number from 1 to 9"),
        ({"weight": "2"}, 400, "weight is not an integer"),
        ({"weight": True}, 400, "weight is not an integer"),
        ({"weight": 2.5}, 400, "weight '2.5' is not a number from 1 to 9"),
        ({"weight": 10}, 400, "weight '10' is not a number from 1 to 9"),
        ({"weight": 5_000_000_000}, 400, "weight '5000000000' is not a number from 1 to 9"),
        ({"weight": 10**30}, 400, "weight '1000000000000000' is not a number from 1 to 9"),
        ({"weight": [2]}, 400, "weight is not an integer"),
        ({"weight": 2, "fragile": "true"}, 400, "fragile is not a boolean"),
        ({"weight": 2, "stamps": "red"}, 400, "stamps is not an array"),
        ({"weight": 2, "stamps": ["red"] * 4}, 400, "stamps has 4 entries, not 1 to 3"),
        ({"weight": 2, "stamps": ["red", 2]}, 400, "stamps is not a list of texts"),
        ({"weight": 2, "stamps": ["RED"]}, 400, "stamps is missing or too long"),
        ({"weight": 2, "stamps": ["\ud800"]}, 400, "the body has half a character"),
        ({"weight": 2, "wait": 2}, 400, "unknown key 'wait'"),
        ({"weight": 2, "to": "y"}, 400, "unknown key 'to'"),
        ([], 400, "the body is not an object"),
        (b"{", 400, "the body is malformed"),
        (b'{"weight": NaN}', 400, "the body is malformed"),
        (b'{"weight": ' + b"1" * 5000 + b"}", 400, "the body is malformed"),
        (b"[" * 60_000, 400, "the body is malformed"),
        (b'{"weight": 2}' + b" " * 70_000, 413, "a body of more than 65536 octets"),
    ],
)
@ensureDeferred
async def test_a_body_that_is_not_understood_is_refused_with_what_is_wrong(
    body: object, status: int, error: str
) -> None:
    with pytest.raises(AdminRefusal) as refused:
        await post(body)
    assert (refused.value.status, refused.value.error) == (status, error)


@ensureDeferred
async def test_only_json_is_read_and_no_parameter_comes_twice() -> None:
    with pytest.raises(AdminRefusal) as refused:
        await post({"weight": 2}, content_type="application/x-www-form-urlencoded")
    assert refused.value.status == 415
    with pytest.raises(AdminRefusal) as refused:
        await post({"weight": 2}, uri="/v1/parcels/x?weight=3")
    assert refused.value.error == "weight is in the query and in the body"
    assert await CALLS.answer("GET", "/v1/parcels", b"what", "text/plain", ANNA) == []


@pytest.mark.parametrize(
    ("method", "uri", "roles"),
    [
        ("GET", "/v1/parcels", {"viewer", "operator"}),
        ("POST", "/v1/parcels/x?weight=1", {"operator"}),
        ("DELETE", "/v1/parcels/x", {"operator"}),
        ("POST", "/v1/parcels/weigh?weight=1", {"operator", "limiter"}),
    ],
)
@ensureDeferred
async def test_a_call_needs_its_role(method: str, uri: str, roles: set[str]) -> None:
    for role in AccessRole:
        caller = Caller("x", role)
        if role.value in roles:
            await CALLS.answer(method, uri, caller=caller)
        else:
            with pytest.raises(AdminRefusal) as refused:
                await CALLS.answer(method, uri, caller=caller)
            assert refused.value.status == 403


@ensureDeferred
async def test_each_change_and_each_refusal_of_one_is_audited() -> None:
    seen: list[dict[str, Any]] = []

    def keep(event: dict[str, Any]) -> None:
        if str(event.get("event", "")).startswith("audit."):
            names = ("event", "actor", "role", "action", "target", "status")
            seen.append({name: event[name] for name in names if name in event})

    globalLogPublisher.addObserver(keep)
    try:
        await post({"weight": 1})
        await CALLS.answer("DELETE", "/v1/parcels/y%20z", caller=ANNA)
        await CALLS.answer("GET", "/v1/parcels", caller=ANNA)
        await CALLS.answer("POST", "/v1/parcels/weigh?weight=1", caller=ANNA)
        for caller, uri in (
            (Caller("bob", AccessRole.VIEWER), "/v1/parcels/x?weight=1"),
            (ANNA, "/v1/parcels/nowhere?weight=1"),
        ):
            with pytest.raises(AdminRefusal):
                await CALLS.answer("POST", uri, caller=caller)
    finally:
        globalLogPublisher.removeObserver(keep)
    anna = {"actor": "anna", "role": "operator"}
    assert seen == [
        {"event": "audit.change_made", **anna, "action": "parcels", "target": "x"},
        {"event": "audit.change_made", **anna, "action": "parcels.delete", "target": "y z"},
        {
            "event": "audit.change_refused",
            "actor": "bob",
            "role": "viewer",
            "action": "parcels",
            "target": "x",
            "status": 403,
        },
        {"event": "audit.change_refused", **anna, "action": "parcels", "target": "nowhere", "status": 404},
    ]


@pytest.mark.parametrize("text", ["9007199254740993", "9" * 21, "0" * 30, "-1", "1.0", "", "٣"])
def test_a_number_beyond_its_bound_is_refused_however_long_it_is(text: str) -> None:
    count = Count(0, 2**53)
    assert count.parse("size", "9007199254740992") == 2**53
    with pytest.raises(AdminRefusal):
        count.parse("size", text)


class Pushing:
    @route("POST", "/v1/sets/push")
    async def push(self, toml: str, note: str = "", dry_run: Annotated[bool, Flag()] = False) -> str:
        """Take a set."""
        if "password" in toml:
            raise AdminRefusal(400, "this is no set")
        return note


async def targets_of(*bodies: dict[str, Any]) -> list[str]:
    """What the audit log says that pushes of these were made to, or refused."""
    targets: list[str] = []

    def keep(event: dict[str, Any]) -> None:
        if str(event.get("event", "")).startswith("audit."):
            targets.append(event["target"])

    calls = CallTable(Pushing())
    globalLogPublisher.addObserver(keep)
    try:
        for body in bodies:
            with suppress(AdminRefusal):
                await calls.answer(
                    "POST", "/v1/sets/push", json.dumps(body).encode(), "application/json", ANNA
                )
    finally:
        globalLogPublisher.removeObserver(keep)
    return targets


@ensureDeferred
async def test_a_file_that_is_refused_is_not_in_the_audit_log() -> None:
    refused = {"toml": "password = 1"}
    assert await targets_of({**refused, "note": "sale"}, refused, {**refused, "dry_run": True}) == [
        "toml=(12 characters) note=sale",
        "(12 characters)",
        "toml=(12 characters) dry_run=True",
    ]


@ensureDeferred
async def test_the_audit_log_has_the_tables_that_were_taken_without_their_comments() -> None:
    text = '# of secrets\n[[limit]]\nname = "a#b" # secret\nexcept = ["192.0.2.0/24"]\n'
    tables = '{ limit = [{ name = "a#b", except = ["192.0.2.0/24"] }] }'
    assert await targets_of({"toml": text}, {"toml": text, "note": "sale"}) == [
        tables,
        f"toml={tables} note=sale",
    ]


@ensureDeferred
async def test_a_dry_run_is_no_change_in_the_audit_log() -> None:
    given = {"toml": "[[limit]]"}
    assert await targets_of({**given, "dry_run": True}, {**given, "dry_run": False}) == [
        "toml={ limit = [{  }] } dry_run=False"
    ]
