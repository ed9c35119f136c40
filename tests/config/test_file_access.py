"""Secrets that others can read are cautioned about, and no other file is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from elemta.config import load

FOREIGN = 54321


def notes(config: Path, environ: dict[str, str] | None = None) -> list[str]:
    return [f"{note.key}: {note.problem}" for note in load(str(config), environ or {}).cautions()]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("users", "key.pem", "cert.pem", "smarthost", "console", "valkey.key", "secret"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o600)
    (tmp_path / "spool").mkdir(mode=0o700)
    return tmp_path


def configuration(place: Path, more: str = "") -> Path:
    file = place / "elemta.toml"
    file.write_text(
        f"""
[server]
hostname = "mx.example.test"
[tls]
certificate = "{place}/cert.pem"
private_key = "{place}/key.pem"
[auth]
checkers = ["elemta-users:{place}/users"]
[[route]]
domains = ["*"]
to = "smtp://smart.example:587"
tls = "require"
credentials = "{place}/smarthost"
[console]
users = "{place}/console"
[resources]
valkey_url = "valkeys://v.example?certificate={place}/cert.pem&private_key={place}/valkey.key"
[policies]
chain = ["limits", "relay", "other"]
[policy.other]
secret_file = "{place}/secret"
[spool]
directory = "{place}/spool"
{more}
"""
    )
    file.chmod(0o644)
    return file


KEYS = {
    "users": "auth.checkers[1]",
    "key.pem": "tls.private_key",
    "smarthost": "route[1].credentials",
    "console": "console.users",
    "valkey.key": "resources.valkey_url",
    "secret": "policy.other.secret_file",
    "spool": "spool.directory",
}


def test_what_only_the_owner_can_read_is_no_caution(place: Path) -> None:
    assert notes(configuration(place)) == []


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("bits", [0o004, 0o044, 0o007])
def test_a_secret_that_everyone_can_read_is_a_caution_with_key_file_and_mode(
    place: Path, name: str, bits: int
) -> None:
    file = place / name
    mode = (0o700 if file.is_dir() else 0o600) | bits
    file.chmod(mode)
    (note,) = notes(configuration(place))
    assert note.startswith(f"{KEYS[name]}: {file}, ")
    assert note.endswith(f"can be read by all users (mode {mode:04o})")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another group")
@pytest.mark.parametrize("name", KEYS)
def test_a_foreign_group_that_can_read_a_secret_is_a_caution(place: Path, name: str) -> None:
    file = place / name
    file.chmod(0o750 if file.is_dir() else 0o640)
    assert notes(configuration(place)) == []
    os.chown(file, -1, FOREIGN)
    found = notes(configuration(place))
    # The group of the spool directory is the daemon's own.
    assert found == [] if name == "spool" else f"the group {FOREIGN} (mode 0640)" in found[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another group")
def test_the_group_of_the_spool_may_read_everything(place: Path) -> None:
    for name in KEYS:
        (place / name).chmod(0o750 if name == "spool" else 0o640)
        os.chown(place / name, -1, FOREIGN)
    assert notes(configuration(place)) == []


SECRETS = {
    "a password of Valkey": '[resources]\nvalkey_url = "valkey://u:hunter2@v.example"\n',
    "a password parameter": '[resources]\nvalkey_url = "valkey+sentinel://s.example/m?sentinel_password=hunter2"\n',
    "a checker with a password": '[auth]\ncheckers = ["memory:anna:hunter2"]\n',
    "a policy's token": '[policies]\nchain = ["limits", "relay", "p"]\n[policy.p]\napi_key = "hunter2"\n',
    "a nested one": '[policies]\nchain = ["limits", "relay", "p"]\n[[policy.p.zone]]\npassword = "hunter2"\n',
    "a URL of a policy": '[policies]\nchain = ["limits", "relay", "p"]\n[policy.p]\nurl = "http://u:hunter2@h/"\n',
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_configuration_with_a_password_that_everyone_can_read_is_told(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "elemta.toml"
    file.write_text(f'[server]\nhostname = "mx.example.test"\n{SECRETS[kind]}')
    file.chmod(0o644)
    (note,) = [note for note in notes(file) if str(file) in note]
    assert "a configuration with a password, can be read by all users (mode 0644)" in note
    assert "hunter2" not in note
    file.chmod(0o600)
    assert [note for note in notes(file) if str(file) in note] == []


def test_a_password_from_the_environment_is_none_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "elemta.toml"
    file.write_text('[server]\nhostname = "mx.example.test"\n')
    file.chmod(0o644)
    found = notes(file, {"VALKEY_URL": "valkey://u:hunter2@v.example"})
    assert [note for note in found if str(file) in note or "password" in note] == []


def test_both_checks_say_it_and_exit_with_0(place: Path) -> None:
    (place / "key.pem").chmod(0o644)
    file = place / "elemta.toml"
    file.write_text(f'[server]\nhostname = "mx.example.test"\n[spool]\ndirectory = "{place}/spool"\n')
    file.write_text(file.read_text() + f'[auth]\ncheckers = ["elemta-users:{place}/users"]\n')
    (place / "users").write_text("")
    (place / "users").chmod(0o604)
    for command in (
        ["twistd", "-n", "elemta", "--check", "--config", str(file)],
        ["elemtactl", "--config", str(file), "config", "check"],
    ):
        command[0] = str(Path(sys.executable).with_name(command[0]))
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert (
            f"{place}/users, users and their passwords, can be read by all users (mode 0604)" in done.stdout
        )
