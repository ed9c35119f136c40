"""``elemtactl user``: the users file by hand, safely."""

from __future__ import annotations

import getpass
import io
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from elemta.auth.hashes import argon2_installed
from elemta.auth.users import UsersFile
from elemta.ctl.main import main
from elemta.runtime import ProcessRuntime


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(*argv: str, stdin: str = "", terminal: bool = False, **environ: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    source = Terminal(stdin) if terminal else io.StringIO(stdin)
    code = main(argv, out, err, environ, source)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users"


def add(path: Path, name: str, password: str, *more: str) -> tuple[int, str, str]:
    return run("user", "add", name, "--password-stdin", "--file", str(path), *more, stdin=password + "\n")


def test_a_user_that_was_added_can_log_in(path: Path) -> None:
    assert add(path, "Anna@Example.com", "secret")[0] == 0
    assert (
        UsersFile(str(path), ProcessRuntime.of_system()).verify("anna@example.com", b"secret")
        == "anna@example.com"
    )
    assert "secret" not in path.read_text()


def test_a_new_file_is_not_for_others(path: Path) -> None:
    add(path, "anna", "secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_mode_comments_and_other_lines_survive(path: Path) -> None:
    add(path, "anna", "secret")
    path.write_text("# people\n\n" + path.read_text() + "# end\n")
    path.chmod(0o600)
    before = path.read_text().splitlines()
    add(path, "berta", "other")
    after = path.read_text().splitlines()
    assert after[:-1] == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not [name for name in os.listdir(path.parent) if name != path.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_owner_survives(path: Path) -> None:
    add(path, "anna", "secret")
    os.chown(path, 1234, 5678)
    add(path, "berta", "other")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


def test_the_file_is_replaced_as_a_whole(path: Path) -> None:
    add(path, "anna", "secret")
    inode = path.stat().st_ino
    with path.open() as reader:
        add(path, "berta", "other")
        assert "berta" not in reader.read()
    assert path.stat().st_ino != inode


def test_what_a_symbolic_link_points_to_is_replaced_and_the_link_stays(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    real.mkdir()
    add(real / "users", "anna", "secret")
    path.symlink_to(real / "users")
    assert add(path, "berta", "other")[0] == 0
    assert path.is_symlink()
    assert "berta" in (real / "users").read_text()


def test_a_known_user_is_refused_whatever_its_case_and_left_alone(path: Path) -> None:
    add(path, "anna", "secret")
    before = path.read_text()
    code, _, err = add(path, "ANNA", "other")
    assert code == 1
    assert "there already" in err
    assert "--replace" in err
    assert path.read_text() == before


def test_replace_sets_a_new_password_in_the_same_place(path: Path) -> None:
    add(path, "anna", "secret")
    add(path, "berta", "other")
    assert add(path, "anna", "new", "--replace")[0] == 0
    assert [line.partition(":")[0] for line in path.read_text().splitlines()[1:]] == ["anna", "berta"]
    assert UsersFile(str(path), ProcessRuntime.of_system()).verify("anna", b"new") == "anna"
    assert UsersFile(str(path), ProcessRuntime.of_system()).verify("anna", b"secret") is None


def test_delete_removes_only_that_user(path: Path) -> None:
    add(path, "anna", "secret")
    add(path, "anna2", "other")
    assert run("user", "delete", "Anna", "--file", str(path))[0] == 0
    code, out, _ = run("user", "list", "--json", "--file", str(path))
    scheme = "argon2id" if argon2_installed() else "scrypt"
    assert code == 0
    assert json.loads(out)["users"] == [{"name": "anna2", "scheme": scheme}]


def test_deleting_who_is_not_there_is_an_answer_of_no(path: Path) -> None:
    add(path, "anna", "secret")
    code, _, err = run("user", "delete", "berta", "--file", str(path))
    assert code == 1
    assert "no user berta" in err


def test_the_list_shows_names_and_schemes_and_no_hash(path: Path) -> None:
    add(path, "anna", "secret")
    code, out, _ = run("user", "list", "--file", str(path))
    assert code == 0
    assert "anna" in out
    assert "$" not in out


@pytest.mark.parametrize("name", ["a b", "a:b", "#anna", "", "a\x1b[1m"])
def test_a_name_that_would_break_the_file_is_wrong_use(path: Path, name: str) -> None:
    code, _, err = add(path, name, "secret")
    assert code == 2
    assert "\x1b" not in err
    assert not path.exists()


@pytest.mark.parametrize("password", ["", "a\0b", "x" * 1025])
def test_a_password_that_nobody_could_use_is_wrong_use(path: Path, password: str) -> None:
    assert add(path, "anna", password)[0] == 2
    assert not path.exists()


def test_the_password_is_asked_for_twice_on_a_terminal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["secret", "secret"])
    monkeypatch.setattr(getpass, "getpass", lambda _: next(answers))
    assert run("user", "add", "anna", "--file", str(path), terminal=True)[0] == 0
    assert UsersFile(str(path), ProcessRuntime.of_system()).verify("anna", b"secret") == "anna"


def test_two_different_passwords_change_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["secret", "secre"])
    monkeypatch.setattr(getpass, "getpass", lambda _: next(answers))
    code, _, err = run("user", "add", "anna", "--file", str(path), terminal=True)
    assert code == 1
    assert "differ" in err
    assert not path.exists()


def test_without_a_terminal_the_password_must_come_from_stdin_by_name(path: Path) -> None:
    code, _, err = run("user", "add", "anna", "--file", str(path))
    assert code == 2
    assert "--password-stdin" in err


def test_the_file_is_found_in_the_configuration(path: Path, tmp_path: Path) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text(f'[auth]\ncheckers = ["memory:x:y", "elemta-users:{path}"]\n')
    code, out, err = run(
        "user", "add", "anna", "--password-stdin", stdin="secret\n", ELEMTA_CONFIG=str(config)
    )
    assert (code, err) == (0, "")
    assert str(path) in out
    assert "anna" in path.read_text()


def test_a_configuration_without_a_users_file_says_what_to_do(tmp_path: Path) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text("[auth]\ncheckers = []\n")
    code, _, err = run("--config", str(config), "user", "list")
    assert code == 78
    assert "--file" in err


def test_a_broken_file_is_told_with_its_line(path: Path) -> None:
    path.write_text("anna:plain\n")
    code, _, err = run("user", "list", "--file", str(path))
    assert code == 1
    assert "line 1" in err


def test_a_directory_that_is_not_there_is_a_plain_error(tmp_path: Path) -> None:
    code, _, err = add(tmp_path / "absent" / "users", "anna", "secret")
    assert code == 1
    assert "No such file" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
@pytest.mark.parametrize("command", [("add", "berta", "--password-stdin"), ("delete", "anna"), ("list",)])
def test_who_may_not_change_or_read_the_file_gets_permission_denied(command: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "users"
        add(path, "anna", "secret")
        path.chmod(0o600)
        Path(name).chmod(0o755)
        before = path.read_text()
        argv = ["user", *command, "--file", str(path)]
        script = (
            "import io, os, sys; from elemta.ctl.main import main; os.setgid(65534); os.setuid(65534)\n"
            f"sys.exit(main({argv!r}, sys.stdout, sys.stderr, {{}}, io.StringIO('x\\n')))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 77, done.stderr
        assert "permission denied" in done.stderr
        assert path.read_text() == before
