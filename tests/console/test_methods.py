"""What each address of the console answers to methods that it has not, and to HEAD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from elemta.console.pages import CHANGE, READ
from tests.console.test_access import TABLE, filled
from tests.support.console import TOKENS, Console


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Console:
    return Console(tmp_path_factory.mktemp("console"), TABLE)


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)


def test_a_page_that_is_only_read_or_only_changes_says_which_method_it_has(console: Console) -> None:
    token = TOKENS["operator"]
    for path in READ:
        reply = console.ask("POST", filled(path), token=token)
        if path not in CHANGE and "{id}/" not in path:
            assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD"), path
    for path in CHANGE:
        if path not in READ:
            reply = console.ask("GET", filled(path.replace("{action}", "hold")), token=token)
            assert (reply.status, reply.headers["allow"]) == (405, "POST"), path
            if "{action}" in path:
                assert console.ask("GET", filled(path), token=token).status == 404, path


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_another_method_is_405_and_says_the_right_ones(console: Console, method: str) -> None:
    for path in ("/", "/queue", "/limits/reset", "/login"):
        reply = console.ask(method, path, token=TOKENS["operator"])
        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, POST"), path
    reply = console.ask(method, "/static/console.css")
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
    assert console.ask(method, "/static/nothing.css").status == 404


def test_head_is_get_without_the_content_and_no_record(
    console: Console, logged: list[dict[str, Any]]
) -> None:
    token = TOKENS["viewer"]
    paths = ("/login", "/static/console.css", "/static/nothing.css", "/v1/openapi.json", "/v1/session")
    for path in (*paths, "/v1/queue/stats", "/v1/nowhere", "/v1/status?x=1", "/nowhere"):
        read, head = console.ask("GET", path, token=token), console.ask("HEAD", path, token=token)
        assert (head.status, head.body) == (read.status, b""), path
        assert head.headers["content-length"] == str(len(read.body)), path
        assert head.headers["content-type"] == read.headers["content-type"], path
    assert console.ask("HEAD", "/v1/queue/stats").status == 401
    assert console.ask("HEAD", "/v1/reload", token=TOKENS["operator"]).status == 405
    assert [each for each in logged if "HEAD" in str(each.get("log_format"))] == []


def test_a_change_without_its_csrf_token_has_a_record(console: Console, logged: list[dict[str, Any]]) -> None:
    cookie, csrf = console.log_in("operator")
    logged.clear()
    assert console.ask("POST", "/v1/drain", cookie=cookie).status == 403
    assert console.post("/limits/reset", {"csrf": "wrong"}, cookie=cookie).status == 403
    assert console.ask("POST", "/v1/drain", cookie=cookie, x_csrf_token=csrf).status == 200
    found = [
        (each["event"], each["actor"], each["target"]) for each in logged if "audit" in each.get("event", "")
    ]
    assert found == [
        ("audit.change_refused", "operator", "POST /v1/drain"),
        ("audit.change_refused", "operator", "POST /limits/reset"),
        ("audit.change_made", "operator", ""),
    ]
