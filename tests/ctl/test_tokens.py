"""``elemtactl token`` and ``elemtactl user --console``: the accounts of the console by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from elemta.auth.accounts import MAX_ACCOUNTS, AccountsFile, read_accounts
from elemta.auth.roles import AccessRole
from elemta.ctl.main import main
from elemta.errors import UsersFileError
from elemta.runtime import ProcessRuntime
from tests.support.console import cheap_hash


def run(*argv: str, stdin: str = "") -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return main(argv, out, err, {}, io.StringIO(stdin)), out.getvalue(), err.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "console-users"


def accounts(path: Path) -> AccountsFile:
    file = AccountsFile(str(path), ProcessRuntime.of_system())
    file.look()
    return file


def test_a_token_is_printed_once_and_kept_as_a_digest(path: Path) -> None:
    code, out, _ = run("token", "add", "Postfix", "--role", "limiter", "--file", str(path))
    token = out.strip()
    assert code == 0
    assert token not in path.read_text()
    found = accounts(path).accounts.of_token(token)
    assert found is not None
    assert (found.name, found.role) == ("postfix", AccessRole.LIMITER)
    assert accounts(path).accounts.of_token(token[:-1]) is None
    assert run("token", "add", "postfix", "--role", "viewer", "--file", str(path))[0] == 1
    listed = json.loads(run("--json", "token", "list", "--file", str(path))[1])
    assert listed["tokens"] == [{"name": "postfix", "role": "limiter"}]
    assert run("user", "delete", "postfix", "--console", "--file", str(path))[0] == 1
    assert run("token", "delete", "POSTFIX", "--file", str(path))[0] == 0
    assert read_accounts(str(path)) == ()


def test_a_user_and_a_token_do_not_take_each_others_name(path: Path) -> None:
    file = ("--file", str(path))
    user = ("user", "add", "--console", "--role", "viewer", "--password-stdin", *file)
    assert run("token", "add", "robot", "--role", "operator", *file)[0] == 0
    assert run(*user, "anna", stdin="geheimnis\n")[0] == 0
    before = path.read_text()
    for argv, kind in (
        ((*user, "Robot"), "token"),
        ((*user, "robot", "--replace"), "token"),
        (("token", "add", "ANNA", "--role", "viewer", *file), "user"),
    ):
        code, _, err = run(*argv, stdin="geheimnis\n")
        assert (code, f"is the name of a {kind}" in err) == (1, True)
    assert path.read_text() == before


def test_a_user_of_the_console_has_a_role(path: Path) -> None:
    more = ("--password-stdin", "--file", str(path))
    assert run("user", "add", "Anna", "--console", "--role", "viewer", *more, stdin="secret\n")[0] == 0
    assert accounts(path).verify("anna", b"secret") == "anna"
    assert accounts(path).verify("anna", b"wrong") is None
    again = ("user", "add", "anna", "--console", "--role", "operator", *more)
    assert run(*again, stdin="secret\n")[0] == 1
    assert run(*again, "--replace", stdin="other\n")[0] == 0
    listed = json.loads(run("--json", "user", "list", "--console", "--file", str(path))[1])
    assert [(each["name"], each["role"]) for each in listed["users"]] == [("anna", "operator")]
    assert run("token", "delete", "anna", "--file", str(path))[0] == 1
    assert run("user", "delete", "anna", "--console", "--file", str(path))[0] == 0


@pytest.mark.parametrize("more", [("--console",), ("--role", "viewer")])
def test_a_role_is_for_the_console_and_the_console_needs_one(path: Path, more: tuple[str, ...]) -> None:
    code, _, err = run("user", "add", "anna", *more, "--password-stdin", "--file", str(path), stdin="x\n")
    assert code == 2
    assert "--role" in err
    assert not path.exists()


@pytest.mark.parametrize(
    "line",
    [
        "anna",
        "anna:viewer",
        f"anna:king:{cheap_hash('x')}",
        "anna:viewer:$sha256$abc",
        "anna:viewer:secret",
        f"an na:viewer:{cheap_hash('x')}",
        f"anna:viewer:{cheap_hash('x')}\nAnna:viewer:{cheap_hash('x')}",
        f"anna:viewer:{cheap_hash('x')}:more",
    ],
)
def test_a_bad_line_is_named_and_its_secret_is_not_repeated(path: Path, line: str) -> None:
    path.write_text(f"# accounts\n{line}\n")
    with pytest.raises(UsersFileError, match=r"line [23]") as refused:
        read_accounts(str(path))
    assert "secret" not in str(refused.value)


def test_a_file_that_breaks_keeps_the_last_good_accounts(path: Path) -> None:
    path.write_text(f"anna:viewer:{cheap_hash('x')}\n")
    now = 0.0
    system = ProcessRuntime.of_system()
    file = AccountsFile(str(path), ProcessRuntime(lambda: now, system.wall, system.randomness))
    assert list(file.look().users) == ["anna"]
    path.write_text("nonsense\n")
    now = 2.0
    assert list(file.look().users) == ["anna"]
    assert file.broken
    path.unlink()
    now = 4.0
    assert list(file.look().users) == []


def test_accounts_are_bounded(path: Path) -> None:
    line = f"viewer:{cheap_hash('x')}"
    path.write_text("".join(f"u{number}:{line}\n" for number in range(MAX_ACCOUNTS + 1)))
    with pytest.raises(UsersFileError, match="more than"):
        read_accounts(str(path))
