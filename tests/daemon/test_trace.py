"""elemtactl trace on a real daemon: a message comes in and goes out, and both conversations are shown."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elemta.ctl.client import AdminClient
from tests.interop.sink import Sink
from tests.support.daemon import Daemon

CONTENT = b"Subject: hello\r\n\r\nsecret content\r\n"


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with Sink("PIPELINING", "CHUNKING") as sink:
        yield sink


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, sink: Sink) -> Iterator[Daemon]:
    daemon = Daemon(
        tmp_path_factory.mktemp("trace") / "node",
        f'[[route]]\ndomains = ["far.example"]\nto = "smtp://127.0.0.1:{sink.port}"\n',
        domains='relay_from = ["127.0.0.0/8"]',
    ).start()
    yield daemon
    daemon.kill()


def send(daemon: Daemon, recipient: str) -> None:
    with daemon.client() as client:
        client.sendmail("alice@example.org", [recipient], CONTENT)


def test_a_message_is_watched_on_its_way_in_and_out(node: Daemon) -> None:
    client = AdminClient(str(node.spool / "admin.sock"))
    name = client.send("trace", body={"to": "far.example"})["id"]
    send(node, "bob@far.example")
    lines: list[dict[str, Any]] = []
    while not any(
        line["direction"] == "out" and line["text"] == "the connection is closed" for line in lines
    ):
        lines += client.get("trace", name)["lines"]
    client.delete("trace", name)
    client.close()
    came = [line["text"] for line in lines if line["direction"] == "in"]
    left = [line["text"] for line in lines if line["direction"] == "out"]
    assert any(text.startswith("RCPT TO:<bob@far.example>") for text in came)
    assert any(text.startswith("RCPT TO:<bob@far.example>") for text in left)
    assert left[0] == "220 sink.test ESMTP"
    assert not any("secret" in text for text in (*came, *left))


def test_the_command_shows_one_conversation_and_ends(node: Daemon) -> None:
    watching = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("elemtactl")),
            "--config",
            str(node.config),
            "trace",
            "--one",
            "--ip",
            "127.0.0.1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stderr is not None
    assert watching.stderr.readline() == "elemtactl: watching; interrupt it to end\n"
    send(node, "bob@example.test")
    out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0
    lines = out.splitlines()
    assert " < 220 mx.example.test ESMTP Elemta" in lines[0]
    assert lines[-1].endswith(" - the connection is closed")
    assert any(" > MAIL FROM:<alice@example.org>" in line for line in lines)
