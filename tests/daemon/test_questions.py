"""The page with questions and answers: each command, page and query of it is tried beside a busy daemon."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import smtplib
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from elemta.ctl.main import main
from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon
from tests.support.logql import selected
from tests.support.valkey import ValkeyServer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")

TABLES = """
[auth]
checkers = ["elemta-users:{directory}/users"]
require_tls = false
[[listener]]
name = "submission"
role = "submission"
endpoint = "tcp:0:interface=127.0.0.1"
[[limit]]
name = "mail-per-user"
per = ["user"]
counts = "messages"
rates = ["1/1h"]
[[limit]]
name = "recipients-per-user"
per = ["user"]
counts = "recipients"
rates = ["1/1h"]
mode = "observe"
[[route]]
domains = ["example.net"]
to = "smtp://127.0.0.1:1"
[[route]]
domains = ["parked.example"]
to = "hold:"
"""
# What the page says, and what it is here; `Fleet.here` has more.
HERE = {
    "192.0.2.7": "127.0.0.2",
    "203.0.113.9": "127.0.0.3",
    "smtp://10.0.0.9:25": "smtp://127.0.0.1:1",
}
# Something that must be in what a command prints, by the beginning of the command.
PRINTED = {
    "elemtactl find 20260131": ["Your order 4711", "<bob@example.net> deferred"],
    "elemtactl queue show": ["refused"],
    "elemtactl queue stats": ["deferred"],
    "elemtactl queue list --state deferred": ["bob@example.net", "refused"],
    "elemtactl destinations": ["smtp://127.0.0.1:1"],
    "elemtactl queue list --state hold": ["the route says hold"],
    "elemtactl queue cat": ["Subject: Your order 4711"],
    "elemtactl find anna": ["<anna@example.org> delivered"],
    "curl": ["Relay access denied"],
    "elemtactl explain": ["554 5.7.1 Relay access denied"],
    "elemtactl find bert": ["Cheap watches"],
    "elemtactl queue hold": ["held"],
    "elemtactl limits top guesses": ["127.0.0.0/24"],
    "elemtactl limits top": ["bert", "1/1 in 1h"],
    "elemtactl limits show": ["1/1 in 1h"],
    "elemtactl limits overrides": ["newsletter"],
    "elemtactl limits push": ["mail-per-user"],
    "elemtactl trace": ["127.0.0.2 > EHLO"],
    "elemtactl nodes --all": ["gone (left)"],
    "elemtactl nodes": ["mx1 (this)", "Valkey"],
    "elemtactl status": ["counted in Valkey", "DAYS LEFT"],
    "elemtactl config dump": ["mail-per-user"],
    "openssl": ["Protocol version: TLSv1.3"],
}


@dataclass
class Question:
    """One heading with what stands below it."""

    title: str
    commands: list[str]
    pages: list[str]
    journal: str
    loki: str


def questions() -> list[Question]:
    found = []
    for text in PAGE.split("\n### ")[1:]:
        blocks = dict(re.findall(r"```(console|sh|logql)\n(.*?)```", text, re.DOTALL))
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        found.append(
            Question(
                text.splitlines()[0],
                re.findall(r"^\$ (.*)$", blocks["console"], re.MULTILINE),
                re.findall(r"`(/[a-z]*(?:[/?][^`]*)?)`", prose),
                blocks["sh"],
                blocks["logql"],
            )
        )
    return found


QUESTIONS = questions()
SELECTED = re.compile(r"jq -[cr]R '(fromjson\? \| select\(.*\))\s*\|([^']*)'", re.DOTALL)


@dataclass
class Fleet:
    """A node that has seen what the page asks about, and the programs of its host."""

    daemon: Daemon
    bin: Path
    queue_id: str = ""
    token: str = ""

    def client(self, address: str, listener: str = "mx") -> smtplib.SMTP:
        port = self.daemon.port_of(listener)
        return smtplib.SMTP("127.0.0.1", port, "mail.client.example", timeout=60, source_address=(address, 0))

    def here(self, text: str) -> str:
        """The page's text with the names of this test."""
        names = {
            **HERE,
            "3367Z4M5V0DXMQ8RSF": self.queue_id,
            "/var/spool/elemta/admin.sock": f"{self.daemon.spool}/admin.sock",
            "mx1.example.org:25": f"127.0.0.1:{self.daemon.port}",
        }
        for name, one in names.items():
            text = text.replace(name, one)
        return text

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        program, *words = shlex.split(self.here(command))
        if program == "elemtactl":
            # In this process: the start of Python is most of what a command takes.
            said, complained = io.StringIO(), io.StringIO()
            with contextlib.chdir(self.daemon.directory):
                code = main(words, said, complained, {"ELEMTA_CONFIG": str(self.daemon.config)})
            return subprocess.CompletedProcess(command, code, said.getvalue(), complained.getvalue())
        process = self.start(command)
        out, error = process.communicate("", timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, out, error)

    def start(self, command: str) -> subprocess.Popen[str]:
        environ = {
            **os.environ,
            "PATH": f"{self.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ELEMTA_CONFIG": str(self.daemon.config),
        }
        words = ["bash", "-euo", "pipefail", "-c", self.here(command)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            words, env=environ, cwd=self.daemon.directory, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )

    def get(self, path: str) -> int:
        request = urllib.request.Request(self.daemon.console + self.here(path))
        request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=90) as answer:
            return int(answer.status)


def _mail(client: smtplib.SMTP, sender: str, *recipients: str, subject: str, id_: str = "") -> str:
    """Send a message; its queue id."""
    client.mail(sender)
    for recipient in recipients:
        client.rcpt(recipient)
    named = f"Message-ID: <{id_}>\r\n" if id_ else ""
    reply = client.data(f"From: {sender}\r\nSubject: {subject}\r\n{named}\r\nhello\r\n")[1].decode()
    return reply.split()[-1]


def _configure(daemon: Daemon, node: str, valkey: ValkeyServer) -> None:
    certificate = make_certificate(daemon.directory, f"{node}.example.org", days=20)
    daemon.configure(
        TABLES.format(directory=daemon.directory) + certificate.table,
        server=f'node_id = "{node}"',
        domains='relay_from = ["127.0.0.2"]',
    )
    daemon.open_console(daemon.directory / "console-users")
    daemon.count_in(valkey.url)
    text = daemon.config.read_text()
    for old, new in {
        "mx.example.test": f"{node}.example.org",
        '"example.test"': '"example.org"',
    }.items():
        assert old in text
        text = text.replace(old, new)
    daemon.config.write_text(text)
    (daemon.directory / "users").touch(mode=0o600)


def _past(fleet: Fleet) -> None:
    """What the questions are about."""
    with fleet.client("127.0.0.2") as client:
        client.ehlo()
        fleet.queue_id = _mail(
            client,
            "shop@client.example",
            "anna@example.org",
            "bob@example.net",
            subject="Your order 4711",
            id_="20260131.4711@client.example",
        )
        _mail(client, "shop@client.example", "carl@parked.example", subject="Parked")
    login, wrong = (base64.b64encode(each).decode() for each in (b"\0bert\0pass word", b"\0admin\0admin"))
    with fleet.client("127.0.0.4", "submission") as client:
        client.ehlo()
        assert client.docmd("AUTH PLAIN", login)[0] == 235
        _mail(client, "bert@example.org", "anna@example.org", "bob@example.net", subject="Cheap watches")
        assert client.mail("bert@example.org")[0] == 450
    with fleet.client("127.0.0.3", "submission") as client:
        client.ehlo()
        assert client.docmd("AUTH PLAIN", wrong)[0] == 535
    with fleet.client("127.0.0.3") as client:
        client.ehlo()
        client.docmd("STARTTLS")
        assert client.sock is not None
        client.sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        client.sock.recv(100)
        client.close()
    with fleet.client("127.0.0.3") as client:
        client.ehlo()
        client.mail("news@sender.example")
        assert client.rcpt("someone@elsewhere.example")[0] == 554
    fleet.daemon.wait_for("tls.handshake_failed")
    fleet.daemon.wait_for("delivery.attempted", recipient="anna@example.org")
    fleet.daemon.wait_for("delivery.destination_blocked")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("questions")
    valkey = ValkeyServer()
    fleet = Fleet(Daemon(directory / "mx1"), directory / "bin")
    daemon, other = fleet.daemon, Daemon(directory / "mx2")
    try:
        _configure(daemon, "mx1", valkey)
        _configure(other, "mx2", valkey)
        daemon.add_user("bert", "pass word")
        made = daemon.ctl("token", "add", "test", "--role", "viewer").stdout
        fleet.token = re.findall(r"elemta_\S+", made)[0]
        limits = TABLES[TABLES.index("[[limit]]") : TABLES.index("[[route]]")]
        (daemon.directory / "limits.toml").write_text(limits.replace("1/1h", "2/1h"))
        fleet.bin.mkdir()
        journalctl = fleet.bin / "journalctl"
        # The journal of that unit, and no other way to call it.
        journalctl.write_text(f'#!/bin/sh\n[ "$1 $2 $3 $4" = "-u elemta -o cat" ] && cat "{daemon.log}"\n')
        journalctl.chmod(0o755)
        daemon.start()
        daemon.wait_for("limits.mode_changed", mode="local")
        valkey.start()
        daemon.wait_for("limits.mode_changed", mode="cluster")
        other.start()
        daemon.wait_for("nodes.joined", name="mx2")
        other.stop()
        daemon.wait_for("nodes.left", name="mx2")
        _past(fleet)
        yield fleet
    finally:
        daemon.kill()
        other.kill()
        valkey.stop()


def test_there_are_twenty_questions_each_with_all_kinds_of_an_answer() -> None:
    assert len(QUESTIONS) == 20
    for each in QUESTIONS:
        assert each.commands, each.title
        assert each.pages, each.title


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
@pytest.mark.parametrize("question", QUESTIONS, ids=[each.title for each in QUESTIONS])
def test_an_answer_holds(fleet: Fleet, question: Question) -> None:
    for command in question.commands:
        _run(fleet, command)
    for page in question.pages:
        assert fleet.get(page) == 200, page
    printed = fleet.run(question.journal)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout.strip(), question.journal
    # What jq selects, and what Loki would.
    select, shown = re.findall(
        r"jq -[cr]R '(fromjson\? \| select\(.*\))\s*\|([^']*)'", question.journal, re.DOTALL
    )[0]
    lines = [line for line in fleet.daemon.output().splitlines() if line.startswith("{")]
    filtering = fleet.start(f"jq -cR '{select}'")
    chosen = filtering.communicate("\n".join(lines), timeout=120)[0].splitlines()
    found, by = selected(fleet.here(question.loki), lines)
    assert chosen
    assert [json.loads(line) for line in found] == [json.loads(line) for line in chosen]
    known = {name for line in found for name in json.loads(line)}
    assert set(by) <= known
    named = set(re.findall(r"(?<![\w\"])\.(\w+)", shown)) | set(re.findall(r"[{,]\s*(\w+)(?=\s*[,}])", shown))
    assert named <= known, named - known


def _run(fleet: Fleet, command: str) -> None:
    ran = (_trace if command.startswith("elemtactl trace") else Fleet.run)(fleet, command)
    expected = 1 if command.startswith("elemtactl explain") else 0
    assert ran.returncode == expected, (command, ran.stdout, ran.stderr)
    wanted = next((words for begin, words in PRINTED.items() if command.startswith(begin)), [])
    for words in wanted:
        assert words in ran.stdout + ran.stderr, (command, ran.stdout)


def _trace(fleet: Fleet, command: str) -> subprocess.CompletedProcess[str]:
    """It ends with the first conversation that it sees; until it has begun it sees none.

    Where it began in the middle of one, it saw no EHLO, and is started again.
    """
    out = error = ""
    for _ in range(9):
        tracing = fleet.start(command)
        while tracing.poll() is None:
            with fleet.client("127.0.0.2") as client:
                client.ehlo()
        out, error = tracing.communicate(timeout=120)
        if "EHLO" in out:
            break
    return subprocess.CompletedProcess(command, tracing.returncode, out, error)
