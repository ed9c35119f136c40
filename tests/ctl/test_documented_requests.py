"""Each ``curl`` that a document shows asks a call that is there; those on the admin socket are run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.threads import deferToThread

from elemta.ops.admin_calls import AdminCall
from tests.ctl.test_main import Daemon, daemon
from tests.support.administered import Administered

__all__ = ["daemon"]
ROOT = Path(__file__).parents[2]
SOCKET = "/var/spool/elemta/admin.sock"
# A command with its quoted arguments and continued lines, and what the page shows behind it.
SHOWN = re.compile(r"""^(?:\$ )?(curl (?:'[^']*'|"[^"\n]*"|\\\n|[^\n'"\\])*)\n(.*)$""", re.MULTILINE)
COMMANDS = [
    pytest.param(shlex.split(command.replace("\\\n", "")), answer, id=f"{page.name}-{number}")
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for number, (command, answer) in enumerate(SHOWN.findall(page.read_text(encoding="utf-8")), 1)
]
CALLS = Administered(None).calls.calls


def body_of(command: list[str]) -> str | None:
    """The body that a command sends, if it does."""
    return next((command[at + 1] for at, word in enumerate(command) if word in ("-d", "--json")), None)


def call_of(command: list[str]) -> AdminCall:
    """The call that a command makes."""
    (url,) = (word for word in command if word.startswith("http://"))
    method = "GET" if body_of(command) is None else "POST"
    path = urlsplit(url).path
    calls = [
        each
        for each in CALLS
        if each.method == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", each.path), path)
    ]
    assert calls, path
    return min(calls, key=lambda each: each.path.count("{"))


def test_the_pages_show_commands() -> None:
    texts = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md")]
    shown = sum(len(re.findall(r"^(?:\$ )?curl ", text, re.MULTILINE)) for text in texts)
    assert shown == len(COMMANDS) > 4


@pytest.mark.parametrize(("command", "answer"), COMMANDS)
def test_a_command_asks_a_call_with_parameters_that_it_has(command: list[str], answer: str) -> None:
    call = call_of(command)
    for name in json.loads(body_of(command) or "{}"):
        assert name in {each.name for each in call.parameters}


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(("command", "answer"), [each for each in COMMANDS if SOCKET in each.values[0]])
@ensureDeferred
async def test_a_command_on_the_socket_is_answered_as_the_page_says(
    daemon: Daemon, command: list[str], answer: str
) -> None:
    queue_id = await daemon.queue()
    words = [word.replace(SOCKET, daemon.socket).replace("/ID/", f"/{queue_id}/") for word in command]
    run = await deferToThread(subprocess.run, [*words, "--fail-with-body"], capture_output=True, timeout=30)
    assert run.returncode == 0, run.stdout
    if answer.startswith("{"):
        assert json.loads(run.stdout) == json.loads(answer)
