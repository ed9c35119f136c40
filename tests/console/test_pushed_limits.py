"""The form that pushes limits to the fleet: what was checked is pushed, and a refusal loses no text."""

from __future__ import annotations

from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from twisted.logger import globalLogPublisher

from elemta.auth.roles import Caller
from elemta.daemon.admin_operations import ConfigInForce
from elemta.daemon.push_operations import PushHistory, PushOperations, PushReport
from elemta.errors import Fault, PushedMeanwhile, StoreUnavailable
from elemta.ops.admin_calls import CallTable, route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Count, Flag, Text
from elemta.ops.openapi import ApiOperations
from tests.support.console import Console

TABLE = '[[limit]]\nname = "few"\nper = ["ip"]\ncounts = "connections"\nrates = ["2/1h"]\n'
SCRIPT = "<script>alert(1)</script></textarea><img src=x>"


class Sets:
    """Keeps what is pushed; ``trouble`` is raised instead, where there is one."""

    def __init__(self) -> None:
        self.pushed: list[dict[str, Any]] = []
        self.trouble: Exception | None = None

    @route("GET", "/v1/config")
    async def config(self) -> ConfigInForce:
        """The configuration."""
        secret = '[resources]\nvalkey_url = "valkey://***@x"\n'
        return ConfigInForce(f'{secret}[[limit]]\nname = "old"\nper = []\nrates = ["1/1m"]\n', ())

    @route("GET", "/v1/limits/history")
    async def history(self) -> PushHistory:
        """The versions."""
        return PushHistory((), 4, 4)

    @route("POST", "/v1/limits/push", max_body=1_000_000)
    async def push(
        self,
        *,
        toml: Annotated[str, Text(500_000, "", r"(?s:.*)")],
        caller: Caller,
        dry_run: Annotated[bool, Flag()] = False,
        base: Annotated[int | None, Count(0, 100)] = None,
        note: str | None = None,
    ) -> PushReport:
        """Push them."""
        if self.trouble is not None:
            raise self.trouble
        self.pushed.append({"toml": toml, "note": note, "dry_run": dry_run, "base": base})
        return PushReport(0 if dry_run else 5, 4, dry_run, 1, (SCRIPT,), (), (), (), complete=True)


def table(operations: object) -> CallTable:
    """These calls and those about the caller."""
    api = ApiOperations()
    api.calls = CallTable(operations, api)
    return api.calls


class Operator:
    """An operator with a session in a browser."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.cookie, self.csrf = console.log_in("operator")

    def get(self, path: str) -> Any:
        return self.console.ask("GET", path, cookie=self.cookie)

    def post(self, path: str, **fields: str) -> Any:
        return self.console.post(path, {"csrf": self.csrf, **fields}, cookie=self.cookie)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sets, Operator]:
    sets = Sets()
    return sets, Operator(Console(tmp_path_factory.mktemp("console"), table(sets)))


@pytest.fixture
def sets(shared: tuple[Sets, Operator]) -> Sets:
    sets, _ = shared
    sets.pushed.clear()
    sets.trouble = None
    return sets


@pytest.fixture
def operator(shared: tuple[Sets, Operator], sets: Sets) -> Operator:
    return shared[1]


def typed(reply: Any) -> str:
    """The text in the form of a page."""
    found = reply.text.partition("<textarea")[2].partition(">\n")[2].partition("</textarea>")[0]
    return unescape(found)


def test_the_form_begins_with_the_limits_in_force(operator: Operator) -> None:
    reply = operator.get("/limits/push")
    assert reply.status == 200
    assert typed(reply) == '[[limit]]\nname = "old"\nper = []\nrates = ["1/1m"]\n'


def test_what_was_checked_is_pushed_in_place_of_what_it_was_compared_with(
    operator: Operator, sets: Sets
) -> None:
    checked = operator.post("/limits/push/check", toml=TABLE.replace("\n", "\r\n"), note="sale")
    assert checked.status == 200
    assert typed(checked) == TABLE
    assert '<input type="hidden" name="base" value="4">' in checked.text
    pushed = operator.post("/limits/push", toml=TABLE.replace("\n", "\r\n"), note="sale", base="4")
    assert (pushed.status, pushed.headers["location"]) == (303, "/limits?done=push")
    assert sets.pushed == [
        {"toml": TABLE, "note": "sale", "dry_run": True, "base": None},
        {"toml": TABLE, "note": "sale", "dry_run": False, "base": 4},
    ]


@pytest.mark.parametrize(
    ("trouble", "status", "words"),
    [
        (
            AdminRefusal(
                400,  # type: ignore[arg-type]
                "these limits can't be used",
                "correct the faults",
                faults=(Fault("", "limit[1].rates", f"is {SCRIPT}"), Fault("", "limit[2].per", "is wrong")),
            ),
            400,
            ("limit[1].rates", "is &lt;script&gt;", "limit[2].per", "is wrong"),
        ),
        (StoreUnavailable("connection refused"), 503, ("could not be asked: connection refused",)),
        (PushedMeanwhile(7), 409, ("version 7 was pushed meanwhile",)),
    ],
)
@pytest.mark.parametrize("path", ["/limits/push/check", "/limits/push"])
def test_a_refusal_says_why_and_keeps_what_was_typed(
    operator: Operator, sets: Sets, path: str, trouble: Exception, status: int, words: tuple[str, ...]
) -> None:
    sets.trouble = trouble
    text = f"# {SCRIPT}\n{TABLE}"
    reply = operator.post(path, toml=text, note=SCRIPT, base="4")
    assert reply.status == status
    assert typed(reply) == text
    assert "<script>alert" not in reply.text
    assert "<img" not in reply.text
    assert [each for each in words if each not in reply.text] == []
    assert 'action="/limits/push/check"' in reply.text
    assert sets.pushed == []


@pytest.mark.parametrize("base", ["", "x", "-1", "٣", "9" * 30])
def test_limits_that_were_not_checked_are_not_pushed(operator: Operator, sets: Sets, base: str) -> None:
    reply = operator.post("/limits/push", toml=TABLE, base=base)
    assert reply.status == 400
    assert typed(reply) == TABLE
    assert sets.pushed == []


def test_what_cannot_be_seen_is_pushed_as_it_is_shown(operator: Operator, sets: Sets) -> None:
    hidden = "name = 'a\u202eb\u200bc'\x00\x0b # \ufeff"
    checked = operator.post("/limits/push/check", toml=hidden, note="\u2066x")
    shown = typed(checked)
    assert shown == r"name = 'a\u202eb\u200bc'\x00\x0b # \ufeff"
    operator.post("/limits/push", toml=shown, note="\u2066x", base="4")
    assert {each["toml"] for each in sets.pushed} == {shown}
    assert {each["note"] for each in sets.pushed} == {r"\u2066x"}


def test_the_text_goes_back_into_the_form(operator: Operator, sets: Sets) -> None:
    reply = operator.post("/limits/push/edit", toml=f"\n\n{TABLE}{SCRIPT}", note='"quoted"')
    assert typed(reply) == f"\n\n{TABLE}{SCRIPT}"
    assert 'value="&#34;quoted&#34;"' in reply.text
    assert "readonly" not in reply.text
    assert sets.pushed == []


def test_a_large_set_is_taken(operator: Operator, sets: Sets) -> None:
    text = TABLE * 3000
    assert len(text) > 200_000
    assert operator.post("/limits/push", toml=text, base="4").status == 303
    assert sets.pushed[0]["toml"] == text


def test_a_viewer_gets_no_form_and_pushes_nothing(operator: Operator, sets: Sets) -> None:
    console = operator.console
    cookie, csrf = console.log_in("viewer")
    assert console.ask("GET", "/limits/push", cookie=cookie).status == 403
    for path in ("/limits/push", "/limits/push/check", "/limits/push/edit"):
        fields = {"csrf": csrf, "toml": TABLE, "base": "4"}
        assert console.post(path, fields, cookie=cookie).status == 403
    assert sets.pushed == []


@pytest.fixture
def audited() -> Iterator[list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []

    def keep(event: dict[str, Any]) -> None:
        if str(event.get("event", "")).startswith("audit.change"):
            seen.append(event)

    globalLogPublisher.addObserver(keep)
    yield seen
    globalLogPublisher.removeObserver(keep)


def test_a_push_and_no_check_is_in_the_audit_log_without_comments(
    operator: Operator, sets: Sets, audited: list[dict[str, Any]]
) -> None:
    text = f"# hunter2\n{TABLE}"
    operator.post("/limits/push/check", toml=text, note="sale")
    operator.post("/limits/push", toml=text, note="sale", base="4")
    sets.trouble = PushedMeanwhile(7)
    operator.post("/limits/push", toml=text, note="sale", base="4")
    made, refused = audited
    assert (made["event"], made["actor"], made["action"]) == ("audit.change_made", "operator", "limits.push")
    assert 'name = "few"' in made["target"]
    assert refused["event"] == "audit.change_refused"
    assert f"toml=({len(text)} characters)" in refused["target"]
    assert "hunter2" not in f"{made['target']} {refused['target']}"


def test_without_a_valkey_the_page_says_that_there_is_no_fleet(tmp_path: Path) -> None:
    fleet: Any = SimpleNamespace(pushed=None)
    components: Any = SimpleNamespace()
    operator = Operator(Console(tmp_path, table(PushOperations(lambda: components, fleet))))
    for reply in (
        operator.get("/limits/push"),
        operator.post("/limits/push/check", toml=TABLE),
        operator.post("/limits/push", toml=TABLE, base="0"),
    ):
        assert reply.status == 409
        assert "no valkey_url is configured" in reply.text
        assert "change the [[limit]] tables of the file, and reload" in reply.text
