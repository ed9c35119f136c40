"""Every route, asked as each role and without credentials, for another site and without the CSRF token."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from elemta.config import AuthConfig
from elemta.console.pages import CHANGE, MENU, READ
from elemta.console.sessions import IDLE_SECONDS, LIFETIME_SECONDS, MOST_OF_ONE
from elemta.console.site import ConsoleSite
from elemta.ops.admin import DEADLINE_SECONDS
from tests.support.administered import Administered
from tests.support.console import PASSWORD, TOKENS, Console, cheap_hash, harmless
from tests.support.runtime import simulated_runtime

TABLE = harmless(Administered(None).calls)
API = [(call.method, call.path, call.route.role.value) for call in TABLE.calls]
API.append(("GET", "/v1/events", "viewer"))
PAGES = [("GET", path) for path in {**READ, **{each[0]: None for each in MENU}}]
PAGES += [("POST", path) for path in CHANGE] + [("GET", "/logout"), ("POST", "/logout")]
MAY = {
    "viewer": {"viewer"},
    "operator": {"viewer", "operator", "limiter"},
    "limiter": {"limiter"},
}


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Console:
    return Console(tmp_path_factory.mktemp("console"), TABLE)


def filled(path: str) -> str:
    """A path with something in each of its parameters."""
    return "/".join("x" if part.startswith("{") else part for part in path.split("/"))


@pytest.mark.parametrize(("method", "path", "needed"), API)
def test_a_call_is_answered_to_the_roles_that_may_make_it(
    console: Console, method: str, path: str, needed: str
) -> None:
    uri = filled(path)
    unknown = console.ask(method, uri)
    assert (unknown.status, unknown.headers["www-authenticate"]) == (401, 'Bearer realm="elemta"')
    assert console.ask(method, uri, token="elemta_wrong").status == 401
    assert console.ask(method, uri, cookie="wrong").status == 401
    for role, token in TOKENS.items():
        reply = console.ask(method, uri, token=token)
        if needed in MAY[role]:
            assert reply.status in (200, 400), (role, reply.text)
        else:
            assert reply.status == 403, (role, reply.text)


@pytest.mark.parametrize(("method", "path", "needed"), API)
def test_a_session_makes_a_change_with_its_csrf_token_only(
    console: Console, method: str, path: str, needed: str
) -> None:
    uri = filled(path)
    cookie, csrf = console.log_in("operator")
    _, other = console.log_in("viewer")
    allowed = console.ask(method, uri, cookie=cookie, x_csrf_token=csrf)
    assert allowed.status in (200, 400), allowed.text
    for wrong in ("", "wrong", other):
        reply = console.ask(method, uri, cookie=cookie, x_csrf_token=wrong)
        assert reply.status == (allowed.status if method == "GET" else 403), wrong


@pytest.mark.parametrize(
    ("method", "path"), [*((method, path) for method, path, _ in API), *PAGES, ("POST", "/login")]
)
def test_another_site_gets_nothing(console: Console, method: str, path: str) -> None:
    uri = filled(path)
    cookie, csrf = console.log_in("operator")
    known: dict[str, Any] = {"cookie": cookie, "x_csrf_token": csrf}
    for host in (
        "evil.example",
        "mx1.example.org.evil.example",
        "",
        "mx1.example.org evil",
        "evil.example:8025",
    ):
        assert console.ask(method, uri, **known, host=host).status == 400, host
    for origin in ("http://evil.example", "null", "http://mx1.example.org:9999", "mx1.example.org"):
        assert console.ask(method, uri, **known, origin=origin).status == 403, origin


@pytest.mark.parametrize(
    "host",
    ["mx1.example.org", "MX1.example.org:8025", "localhost:9000", "127.0.0.1", "[::1]:8025", "192.0.2.7"],
)
def test_this_host_has_several_names(console: Console, host: str) -> None:
    reply = console.ask("GET", "/v1/session", token=TOKENS["viewer"], host=host, origin=f"https://{host}")
    assert reply.status == 200


@pytest.mark.parametrize(("method", "path"), PAGES)
def test_a_page_leads_to_the_login_without_credentials(console: Console, method: str, path: str) -> None:
    for given in ({}, {"cookie": "wrong"}, {"token": "wrong"}):
        reply = console.ask(method, filled(path), **given)
        assert (reply.status, reply.headers["location"]) == (303, "/login")
    assert console.ask(method, filled(path), token=TOKENS["limiter"]).status == 403


@pytest.mark.parametrize("path", [*CHANGE, "/logout"])
def test_a_form_needs_the_csrf_token_of_its_session(console: Console, path: str) -> None:
    cookie, csrf = console.log_in("viewer")
    for fields in ({}, {"csrf": "wrong"}, {"csrf": console.log_in("operator")[1]}):
        assert console.post(filled(path), fields, cookie=cookie).status == 403
    reply = console.post(filled(path), {"csrf": csrf, "action": "hold"}, cookie=cookie)
    assert reply.status == (303 if path == "/logout" else 403)


def test_every_answer_forbids_scripts_and_frames_of_others(console: Console) -> None:
    for path in ("/login", "/", "/v1/status", "/static/console.css", "/nowhere"):
        headers = console.ask("GET", path).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


@pytest.mark.parametrize(
    "name", ["authorization", "cookie", "origin", "host", "content-type", "x-csrf-token", "x-forwarded-proto"]
)
def test_octets_that_are_no_text_are_no_fault_of_the_console(console: Console, name: str) -> None:
    host = "" if name == "host" else "host: localhost\r\n"
    for line in ("GET / ", "POST /v1/drain ", "POST /login ", "GET /v1/session "):
        head = f"{line}HTTP/1.1\r\n{host}{name}: \udcff=\udcfe\r\ncontent-length: 3\r\n\r\na=b"
        transport = console.connect(head.encode("ascii", "surrogateescape"))
        for _ in range(20):
            console.clock.advance(0)
        transport.protocol.connectionLost(Failure(ConnectionDone()))
        assert transport.value().split()[1] in (b"303", b"400", b"401", b"403", b"415"), line


# Sessions


def test_the_cookie_is_for_this_site_and_no_script(console: Console) -> None:
    fields = {"username": "Operator", "password": PASSWORD}
    assert (
        console.post("/login", fields).headers["set-cookie"].endswith("; Path=/; HttpOnly; SameSite=Strict")
    )
    secure = console.post("/login", fields, x_forwarded_proto="https").headers["set-cookie"]
    assert secure.endswith("; SameSite=Strict; Secure")


def test_a_session_ends_by_itself_and_with_a_logout(tmp_path: Path) -> None:
    console = Console(tmp_path, TABLE)
    cookie, csrf = console.log_in("operator")
    assert console.post("/logout", {"csrf": csrf}, cookie=cookie).status == 303
    assert console.ask("GET", "/v1/session", cookie=cookie).status == 401
    idle, _ = console.log_in("operator")
    console.clock.advance(IDLE_SECONDS - 1)
    assert console.ask("GET", "/v1/session", cookie=idle, x_refresh="1").status == 200
    console.clock.advance(2)
    assert console.ask("GET", "/v1/session", cookie=idle).status == 401
    busy, _ = console.log_in("operator")
    for _ in range(int(LIFETIME_SECONDS // IDLE_SECONDS)):
        assert console.ask("GET", "/v1/session", cookie=busy).status == 200
        console.clock.advance(IDLE_SECONDS)
    console.clock.advance(1)
    assert console.ask("GET", "/v1/session", cookie=busy).status == 401


def test_sessions_of_one_user_are_bounded(tmp_path: Path) -> None:
    console = Console(tmp_path, TABLE)
    cookies = [console.log_in("operator")[0] for _ in range(MOST_OF_ONE + 1)]
    found = [console.ask("GET", "/v1/session", cookie=cookie).status for cookie in cookies]
    assert found == [401] + [200] * MOST_OF_ONE


@pytest.mark.parametrize("change", ["gone", "password", "role"])
def test_a_session_follows_the_accounts(tmp_path: Path, change: str) -> None:
    console = Console(tmp_path, TABLE)
    cookie, csrf = console.log_in("operator")
    lines = {
        "gone": "",
        "password": f"operator:operator:{cheap_hash('another')}\n",
        "role": f"operator:viewer:{cheap_hash(PASSWORD)}\n",
    }
    console.path.write_text(f"viewer:viewer:{cheap_hash(PASSWORD)}\n{lines[change]}")
    console.clock.advance(2)
    reply = console.ask("POST", "/v1/drain", cookie=cookie, x_csrf_token=csrf)
    assert reply.status == (403 if change == "role" else 401)


# The first token


def test_the_first_token_is_the_way_in_until_there_is_a_user(tmp_path: Path) -> None:
    console = Console(tmp_path, TABLE, file="")
    path = tmp_path / "console-token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = path.read_text().strip()
    cookie, csrf = console.log_in("anyone", token)
    for given in ({"token": token}, {"cookie": cookie, "x_csrf_token": csrf}):
        assert console.ask("POST", "/v1/drain", **given).status == 200
    assert Console(tmp_path, TABLE, file="").ask("GET", "/v1/session", token=token).status == 200
    console.path.write_text(f"# users\nanna:viewer:{cheap_hash(PASSWORD)}\n")
    console.clock.advance(2)
    for given in ({"token": token}, {"cookie": cookie, "x_csrf_token": csrf}):
        assert console.ask("POST", "/v1/drain", **given).status == 401
    assert not path.exists()
    assert console.post("/login", {"username": "x", "password": token}, seconds=20).status == 401


def test_the_first_token_ends_with_the_first_user_though_no_request_comes(tmp_path: Path) -> None:
    console = Console(tmp_path, TABLE, file="")
    path = tmp_path / "console-token"
    for _ in range(3):
        console.clock.advance(1.1)
        assert path.exists()
    console.path.write_text(f"anna:viewer:{cheap_hash(PASSWORD)}\n")
    console.clock.pump([1.1] * 2)
    assert not path.exists()
    # Nothing looks at the file again until a request does.
    calls = console.clock.getDelayedCalls()
    console.clock.advance(5)
    assert not path.exists()
    assert console.clock.getDelayedCalls() == calls
    console.wait_for(Deferred.fromCoroutine(console.access.stop()))


def test_there_is_no_first_token_while_the_accounts_cannot_be_read(tmp_path: Path) -> None:
    console = Console(tmp_path, TABLE, file="anna:king:nonsense\n")
    assert not (tmp_path / "console-token").exists()
    assert console.ask("GET", "/v1/session", token="").status == 401


def test_accounts_that_cannot_be_looked_at_stay_in_force(tmp_path: Path) -> None:
    console = Console(tmp_path, TABLE)
    assert console.ask("GET", "/v1/session", token=TOKENS["viewer"]).status == 200
    console.path.unlink()
    console.path.symlink_to(console.path)
    console.clock.advance(2)
    assert console.ask("GET", "/v1/session", token=TOKENS["viewer"]).status == 200
    again = Console(tmp_path, TABLE, file="")
    assert again.ask("GET", "/v1/session", token=TOKENS["viewer"]).status == 401
    assert not (tmp_path / "console-token").exists()


def test_a_link_in_the_place_of_the_first_token_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("chosen\n")
    os.symlink(tmp_path / "elsewhere", tmp_path / "console-token")
    console = Console(tmp_path, TABLE, file="")
    assert console.ask("GET", "/v1/session", token="chosen").status == 401


# Guessing


def test_guesses_are_slowed_and_then_refused(tmp_path: Path) -> None:
    console = Console(
        tmp_path, TABLE, auth=AuthConfig(guesses_per_user="3/15m", guesses_per_network="50/15m")
    )
    wrong = {"username": "operator", "password": "wrong"}
    statuses = [console.post("/login", wrong, seconds=20).status for _ in range(3)]
    assert statuses == [401, 401, 401]
    reply = console.post("/login", {"username": "OPERATOR", "password": PASSWORD}, seconds=20)
    assert reply.status == 429
    assert int(reply.headers["retry-after"]) > 60
    assert console.log_in("viewer")


def test_a_guess_that_misses_the_deadline_stays_charged(tmp_path: Path, monkeypatch) -> None:
    console = Console(tmp_path, TABLE, auth=AuthConfig(guesses_per_user="2/15m"))
    monkeypatch.setattr(console.access._authenticator, "verify", lambda *_, **__: Deferred())
    guess = {"username": "operator", "password": "guess"}
    statuses = [console.post("/login", guess, seconds=DEADLINE_SECONDS + 1).status for _ in range(3)]
    assert statuses == [504, 504, 429]


def test_a_wrong_password_waits_for_its_answer(tmp_path: Path) -> None:
    console = Console(tmp_path, TABLE)
    with pytest.raises(AssertionError, match="no answer"):
        console.post("/login", {"username": "operator", "password": "wrong"}, seconds=0.5)


def test_before_the_daemon_serves_there_is_an_answer() -> None:
    console = Console.__new__(Console)
    console.clock = simulated_runtime().reactor
    console.site = ConsoleSite(console.clock)
    assert console.ask("GET", "/v1/status").status == 503
