"""The users file: its lines, its changes, and that it does not tell which users exist."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher

from elemta.auth.hashes import PasswordHash, Scrypt
from elemta.auth.names import canonical_password
from elemta.auth.users import Users, UsersFile, parse_users
from elemta.errors import UsersFileError
from elemta.runtime import SYSTEM_RANDOMNESS, ProcessRuntime, Runtime


def cheap(password: bytes, ln: int = 4) -> Scrypt:
    import hashlib

    salt = b"0123456789abcdef"
    digest = hashlib.scrypt(canonical_password(password), salt=salt, n=2**ln, r=8, p=1, dklen=32)
    return Scrypt(ln, 8, 1, salt, digest)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text(f"# people\n\nanna:{cheap(b'secret')}\nBerta@Example.com:{cheap(b'other')}\n")
    return path


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_a_user_with_the_right_password_is_known_under_the_canonical_name(path: Path) -> None:
    users = UsersFile(str(path), ProcessRuntime.of_system())
    assert users.verify("ANNA", b"secret") == "anna"
    assert users.verify("berta@example.com", b"other") == "berta@example.com"


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("anna", b"Secret"),
        ("anna", b""),
        ("nobody", b"secret"),
        ("", b"secret"),
        ("an na", b"secret"),
        ("anna", b"secret" + b"x" * 2000),
        ("anna\x00", b"secret"),
    ],
)
def test_anything_else_is_nobody(path: Path, name: str, password: bytes) -> None:
    assert UsersFile(str(path), ProcessRuntime.of_system()).verify(name, password) is None


def test_an_overlong_password_is_refused_even_when_its_beginning_is_right(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(f"anna:{cheap(b'x' * 1024)}\n")
    users = UsersFile(str(path), ProcessRuntime.of_system())
    assert users.verify("anna", b"x" * 1024) == "anna"
    assert users.verify("anna", b"x" * 1025) is None


@pytest.mark.parametrize("name", ["anna", "nobody", "", "in valid", "x" * 300])
def test_known_unknown_and_impossible_names_cost_exactly_one_verification_of_the_same_cost(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs: list[tuple[int, int, int]] = []
    real = Scrypt.matches

    def counted(self: Scrypt, password: bytes) -> bool:
        costs.append((self.ln, self.r, self.p))
        return real(self, password)

    monkeypatch.setattr(Scrypt, "matches", counted)
    assert UsersFile(str(path), ProcessRuntime.of_system()).verify(name, b"wrong") is None
    assert costs == [(4, 8, 1)]


def test_an_empty_file_costs_an_unknown_user_what_a_new_user_would_cost() -> None:
    from elemta.auth.hashes import new_hash

    stand_in = Users({}, SYSTEM_RANDOMNESS).hash_for("nobody")
    assert str(stand_in).split("$")[:-2] == str(new_hash(b"x", SYSTEM_RANDOMNESS)).split("$")[:-2]


def test_in_a_mixed_file_an_unknown_name_has_one_steady_cost_and_many_names_have_all_costs() -> None:
    users = Users({"old": cheap(b"a", 4), "new": cheap(b"b", 5)}, SYSTEM_RANDOMNESS)
    drawn: dict[str, PasswordHash] = {name: users.hash_for(name) for name in map(str, range(200))}
    assert all(users.hash_for(name) is known for name, known in drawn.items())
    assert {known.ln for known in drawn.values() if isinstance(known, Scrypt)} == {4, 5}


def test_every_bad_line_is_named_with_its_number() -> None:
    text = f"anna:{cheap(b'a')}\nno colon\nberta:plain\n\n an na:{cheap(b'a')}\nANNA:{cheap(b'b')}\n"
    with pytest.raises(UsersFileError) as caught:
        parse_users(text, "/etc/elemta/users")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["/etc/elemta/users", f"line {number}"] for number in (2, 3, 5, 6)
    ]
    assert "is on line 1 already" in lines[3]
    assert "plain" not in lines[1]


def test_a_file_of_garbage_gives_a_bounded_error() -> None:
    with pytest.raises(UsersFileError) as caught:
        parse_users("garbage\n" * 5000, "users")
    assert len(str(caught.value).splitlines()) == 21
    assert "and 4980 more" in str(caught.value)


def test_an_argon2_line_without_the_library_stops_the_start_with_line_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from elemta.auth import hashes

    path = tmp_path / "users"
    path.write_text("# argon2\nanna:$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0c2Fs$" + "A" * 43 + "\n")
    monkeypatch.setattr(hashes, "_argon2", None)
    with pytest.raises(UsersFileError, match=r"users: line 2: .*argon2-cffi.*user add --replace"):
        UsersFile(str(path), ProcessRuntime.of_system())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsersFileError, match=r"absent: No such file.*\(elemtactl user add makes it\)"):
        UsersFile(str(tmp_path / "absent"), ProcessRuntime.of_system())


def test_a_directory_or_a_fifo_is_no_users_file(tmp_path: Path) -> None:
    with pytest.raises(UsersFileError):
        UsersFile(str(tmp_path), ProcessRuntime.of_system())


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_bytes(b"# fine\nann\xe9:x\n")
    with pytest.raises(UsersFileError, match="line 2: not UTF-8"):
        UsersFile(str(path), ProcessRuntime.of_system())


def test_a_changed_file_is_in_force_a_second_later_and_not_looked_at_before(path: Path) -> None:
    clock = Clock()
    users = UsersFile(str(path), Runtime.of(clock))
    replace(path, f"carla:{cheap(b'third')}\n")
    clock.advance(0.9)
    assert users.verify("anna", b"secret") == "anna"
    clock.advance(0.2)
    assert users.verify("anna", b"secret") is None
    assert users.verify("carla", b"third") == "carla"


def test_a_file_written_in_place_with_its_old_size_is_seen(path: Path) -> None:
    clock = Clock()
    users = UsersFile(str(path), Runtime.of(clock))
    text = path.read_text().replace("anna", "emma")
    path.write_text(text)
    os.utime(path, ns=(1, 1))
    clock.advance(1)
    assert users.verify("emma", b"secret") == "emma"


def test_a_broken_new_version_leaves_the_old_one_in_force_and_is_logged_once(path: Path) -> None:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        clock = Clock()
        users = UsersFile(str(path), Runtime.of(clock))
        replace(path, "anna:not a hash\n")
        for _ in range(3):
            clock.advance(1)
            assert users.verify("anna", b"secret") == "anna"
        broken = [event for event in events if event.get("event") == "auth.users_file_broken"]
        assert len(broken) == 1
        assert "line 1" in broken[0]["problem"]
        replace(path, f"anna:{cheap(b'mended')}\n")
        clock.advance(1)
        assert users.verify("anna", b"mended") == "anna"
    finally:
        globalLogPublisher.removeObserver(events.append)


def test_a_file_that_vanished_leaves_its_users_in_force(path: Path) -> None:
    clock = Clock()
    users = UsersFile(str(path), Runtime.of(clock))
    path.unlink()
    clock.advance(1)
    assert users.verify("anna", b"secret") == "anna"
