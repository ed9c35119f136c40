"""What shells offer as the next word, by the grammar and by the daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from elemta.ctl.completion import candidates
from elemta.ctl.exit_codes import CommandFailed
from elemta.ctl.main import parser

ROOT = Path(__file__).parents[2]
TARGET = "smtp://hop.test:25"


class Daemon:
    """A daemon that has one of each."""

    answers = {
        ("queue",): {"messages": [{"queue_id": "32XZASS01HVZ8F1KRY"}]},
        ("destinations",): {"destinations": [{"name": TARGET}, {"name": "example.org"}]},
        ("limits",): {"limits": [{"name": "mail-per-sender"}]},
        ("limits", "top"): {"limits": [{"limit": "ip", "identity": "192.0.2.1"}]},
        ("plugins",): {"plugins": [{"name": "relay"}, {"name": ""}]},
        ("spools",): {"spools": [{"directory": "/shared/mx2"}]},
    }

    def get(self, *segments: str, **_: str) -> Any:
        return self.answers[segments]


class Down:
    def get(self, *_: str, **__: str) -> Any:
        raise CommandFailed(69, "the daemon is not running")


def completed(*words: str, daemon: Any = Daemon()) -> Sequence[str]:  # noqa: B008
    return candidates(words, parser(), lambda config, socket: daemon)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("dest",), ["destinations"]),
        (("--conf",), ["--config"]),
        (("queue", "re"), ["retry", "release"]),
        (("queue", "list", "--state", "un"), ["undeliverable"]),
        (("queue", "show", "32"), ["32XZASS01HVZ8F1KRY"]),
        (("queue", "delete", "X", "32"), ["32XZASS01HVZ8F1KRY"]),
        (("queue", "cat", "3"), ["32XZASS01HVZ8F1KRY"]),
        (("find", "3"), ["32XZASS01HVZ8F1KRY"]),
        (("--json", "queue", "cat", "--headers", "3"), ["32XZASS01HVZ8F1KRY"]),
        (("--socket", "/x", "destinations", "pause", "smtp:"), [TARGET]),
        (("queue", "list", "--destination", "exa"), ["example.org"]),
        (("--json", "queue", "list", "--state=hold", "--destination", "exa"), ["example.org"]),
        (("limits", "top", "mail"), ["mail-per-sender"]),
        (("limits", "override", "mail"), ["mail-per-sender"]),
        (("limits", "override", "mail-per-sender", "192"), ["192.0.2.1"]),
        (("limits", "reset", "i"), ["ip:192.0.2.1"]),
        (("limits", "show", "mail"), ["mail-per-sender"]),
        (("limits", "show", "ip", "192"), ["192.0.2.1"]),
        (("plugins", "show", ""), ["relay"]),
        (("spool", "give-back", "/s"), ["/shared/mx2"]),
        (("queue", "cat", "32XZASS01HVZ8F1KRY", "3"), []),
        (("config", "dump", "--file", ""), []),
        (("no", "such", "c"), ["config"]),
    ],
)
def test_the_next_word_is_known(words: tuple[str, ...], wanted: list[str]) -> None:
    found = completed(*words)
    assert [word for word in found if not word.startswith("-") or words[-1].startswith("-")] == wanted


def test_a_daemon_that_is_not_there_costs_only_what_it_would_have_said() -> None:
    assert "--headers" in completed("queue", "cat", "", daemon=Down())
    assert completed("queue", "cat", "3", daemon=Down()) == []


@pytest.mark.parametrize("written", [("--socket", "/x", "--config", "/y"), ("--socket=/x", "--config=/y")])
def test_the_daemon_that_is_asked_is_the_one_that_was_named(written: tuple[str, ...]) -> None:
    asked = []

    def client(config: str | None, socket: str | None) -> Any:
        asked.append((config, socket))
        return Daemon()

    assert candidates((*written, "queue", "cat", "3"), parser(), client) == ["32XZASS01HVZ8F1KRY"]
    assert asked == [("/y", "/x")]


def test_an_option_of_a_command_is_offered_behind_it_and_those_of_all_commands_everywhere() -> None:
    assert {"--watch", "--count", "--json", "--config"} <= set(completed("limits", "top", "-"))
    assert "--watch" not in completed("limits", "list", "-")


def test_a_daemon_that_does_not_answer_is_given_up_soon(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "stuck.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        began = time.monotonic()
        done = elemtactl("__complete", "--socket", str(path), "queue", "show", "3")
    assert (done.returncode, done.stdout) == (0, "")
    assert time.monotonic() - began < 30


def elemtactl(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("elemtactl")), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def shell(program: str, script: str) -> list[str]:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [program, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PATH": path},
    )
    return sorted(done.stdout.split())


BASH = (
    "source etc/bash-completion/elemtactl\n"
    "COMP_LINE='@@'; COMP_POINT=${#COMP_LINE}; _elemtactl; printf '%s\\n' \"${COMPREPLY[@]}\""
)
FISH = "source etc/fish/elemtactl.fish; complete -C '@@'"
ZSH = """
compadd() { shift; print -l -- "$@" }
words=(@@); CURRENT=${#words}; PREFIX=${words[-1]}
source etc/zsh/_elemtactl
"""


@pytest.mark.parametrize(("program", "script"), [("bash", BASH), ("fish", FISH), ("zsh", ZSH)])
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("elemtactl destinations p", ["pause", "probe"]),
        ("elemtactl queue list --state qu", ["quarantine"]),
        ("elemtactl undr", ["undrain"]),
    ],
)
def test_shells_complete_a_line(program: str, script: str, line: str, wanted: list[str]) -> None:
    assert shell(program, script.replace("@@", line)) == wanted
