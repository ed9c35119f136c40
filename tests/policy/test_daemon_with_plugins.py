"""The daemon with policies from outside this tree: one that refuses, one that hangs, one that raises."""

import json
import os
import shutil
import signal
import smtplib
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MISBEHAVING = """
    from twisted.internet.defer import Deferred
    from twisted.plugin import IPlugin
    from zope.interface import implementer
    from elemta.policy import CONTINUE, IPolicyPlugin, IRcptPolicy, NoOptions

    @implementer(IRcptPolicy)
    class Hang:
        def rcpt(self, session, transaction, recipient):
            return Deferred() if recipient.local == "hang" else CONTINUE

    @implementer(IRcptPolicy)
    class Raise:
        async def rcpt(self, session, transaction, recipient):
            if recipient.local == "raise":
                raise RuntimeError("a plugin's own fault")
            return CONTINUE

    @implementer(IPlugin, IPolicyPlugin)
    class Plugin:
        options = NoOptions

        def __init__(self, name, kind):
            self.name = name
            self.kind = kind

        def build(self, options, services):
            return self.kind()

    hang = Plugin("hang", Hang)
    broken = Plugin("broken", Raise)
"""

CONFIG = """
    [server]
    hostname = "mx.example.com"
    [[listener]]
    name = "mx"
    endpoint = "unix:{place}/smtp.sock"
    role = "mx"
    tls = "none"
    [domains]
    local = ["example.com"]
    [policies]
    chain = ["hang", "broken", "refuse-future", "relay"]
    [policy.hang]
    timeout = "1500ms"
    [policy.broken]
    on_error = "reject"
    [[route]]
    domains = ["example.com"]
    to = "maildir:{{spool}}/mail/{{domain}}/{{local}}"
    create_mailboxes = true
    [spool]
    directory = "{place}/spool"
    [metrics]
    endpoint = "unix:{place}/metrics.sock"
    [console]
    endpoint = ""
"""


class UnixSMTP(smtplib.SMTP):
    def __init__(self, path):
        self._path = path
        super().__init__("localhost", 25, timeout=90)

    def _get_socket(self, host, port, timeout):
        import socket

        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        connection.connect(self._path)
        return connection


@pytest.fixture
def daemon(tmp_path):
    """A running daemon; the path of its socket and the records of its log."""
    place = Path("/tmp") / f"elemta-{os.getpid()}"  # a Unix socket's path is short
    place.mkdir()
    site = place / "site"
    (site / "twisted" / "plugins").mkdir(parents=True)
    shutil.copy(ROOT / "docs/examples/refuse-future/refuse_future.py", site)
    shutil.copy(
        ROOT / "docs/examples/refuse-future-dropin/twisted/plugins/refuse_future_plugin.py",
        site / "twisted/plugins",
    )
    (site / "twisted" / "plugins" / "misbehaving.py").write_text(textwrap.dedent(MISBEHAVING))
    (place / "elemta.toml").write_text(textwrap.dedent(CONFIG).format(place=place))
    code = "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"
    log = place / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                code,
                "-n",
                "--pidfile=",
                "elemta",
                "--config",
                str(place / "elemta.toml"),
            ],
            cwd=place,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])},
            stdout=out,
            stderr=subprocess.STDOUT,
        )

    def records():
        lines = log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    try:
        deadline = time.monotonic() + 60
        while not any(record["event"] == "daemon.ready" for record in records()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield str(place / "smtp.sock"), records
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        shutil.rmtree(place)


def test_a_plugin_refuses_one_recipient_and_those_that_hang_or_raise_cost_only_their_own_verdict(daemon):
    path, records = daemon
    with UnixSMTP(path) as client, UnixSMTP(path) as other:
        for each in (client, other):
            each.ehlo("client.example.org")
            assert each.mail("sender@example.org")[0] == 250
        assert client.rcpt("future-boss@example.com") == (550, b"5.1.1 no such mailbox yet")
        assert client.rcpt("boss@example.com")[0] == 250
        assert client.rcpt("raise@example.com") == (554, b"5.7.1 Refused by local policy")

        answers = []
        waiting = threading.Thread(target=lambda: answers.append(client.rcpt("hang@example.com")))
        waiting.start()
        slowest = 0.0
        for number in range(50):
            before = time.monotonic()
            assert other.rcpt(f"someone-{number}@example.com")[0] == 250
            slowest = max(slowest, time.monotonic() - before)
        assert waiting.is_alive()
        assert slowest < 1.0
        waiting.join(20)
        assert answers == [(451, b"4.3.0 Local trouble, please try again later")]

        assert client.data(b"Subject: hello\r\n\r\nbody\r\n")[0] == 250
    events = [(record["event"], record.get("policy"), record.get("kind")) for record in records()]
    assert ("policy.verdict", "refuse-future", None) in events
    assert ("policy.failed", "broken", "error") in events
    assert ("policy.failed", "hang", "timeout") in events
