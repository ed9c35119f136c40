"""A daemon that is a policy service and nothing else: its memory, and the parts that it does not load."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest
from twisted.plugin import IPlugin, getPlugins

from tests.policy_service.test_daemon import Asker
from tests.support.daemon import Daemon
from tests.support.valkey import ValkeyServer, eventually

REPOSITORY = Path(__file__).parents[2]
MEMORY = 60_000
"""Kilobytes. docs/postfix.md has the figures of a quiet machine."""

# Says at SIGUSR1 which modules it has.
WRAPPER = """
import os, signal, sys
def say(*_):
    with open("modules.new", "w") as file:
        print(*sys.modules, file=file)
    os.rename("modules.new", "modules")
signal.signal(signal.SIGUSR1, say)
sys.argv = sys.argv[1:]
from twisted.scripts.twistd import run
run()
"""
UNUSED = (
    "OpenSSL",
    "argon2",
    "cryptography",
    "dns.resolver",
    "elemta.auth.authenticator",
    "elemta.console",
    "elemta.daemon.explainer",
    "elemta.daemon.supervisor",
    "elemta.delivery",
    "elemta.dns.resolver",
    "elemta.net.protocol",
    "elemta.net.tls",
    "elemta.smtp.session",
    "jinja2",
)


def as_shipped(directory: Path, resources: str = "", tables: str = "") -> Daemon:
    """A daemon with the file that is shipped, on ports that the kernel chooses."""
    daemon = Daemon(directory)
    text = (REPOSITORY / "etc" / "elemta-policyd.toml").read_text()
    text = re.sub(r"tcp:\d+", "tcp:0", text).replace("/var/spool/elemta", str(daemon.spool))
    text = text.replace("[server]\n", '[server]\nhostname = "mx.example.test"\n')
    daemon.config.write_text(text.replace("[resources]\n", f"[resources]\n{resources}\n") + tables)
    return daemon


def memory(daemon: Daemon) -> tuple[int, int]:
    """Resident and proportional kilobytes."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    rollup = Path(f"/proc/{daemon.pid}/smaps_rollup").read_text()
    resident, proportional = re.search(r"VmRSS:\s+(\d+)", status), re.search(r"\nPss:\s+(\d+)", rollup)
    assert resident is not None
    assert proportional is not None
    return int(resident[1]), int(proportional[1])


def modules(daemon: Daemon) -> set[str]:
    """What it has loaded."""
    daemon.signal(signal.SIGUSR1)
    path = daemon.directory / "modules"
    eventually(path.exists, "the names of modules")
    return set(path.read_text().split())


@pytest.fixture(scope="module", autouse=True)
def known_plugins() -> None:
    """Without its cache Twisted imports every plugin that is installed, and what those import."""
    list(getPlugins(IPlugin))


@pytest.mark.parametrize("shared", [False, True], ids=["memory", "Valkey"])
def test_it_takes_less_than_60_megabytes_and_loads_nothing_that_it_does_not_use(
    tmp_path: Path, shared: bool
) -> None:
    valkey = ValkeyServer().start() if shared else None
    daemon = as_shipped(tmp_path / "node", f'valkey_url = "{valkey.url}"' if valkey else "")
    daemon.launch([sys.executable, "-c", WRAPPER])
    try:
        daemon.wait_until_ready()
        asker = Asker(daemon)
        answers = {asker.ask(sasl_username=f"user{n}", recipient="a@example.net") for n in range(100)}
        assert answers == {"DUNNO"}
        assert daemon.metric("elemta_policy_service_requests_total") == 100
        assert daemon.get("/readyz")
        daemon.ctl("status")
        daemon.ctl("limits", "list")
        resident, proportional = memory(daemon)
        assert proportional < MEMORY, (resident, proportional)
        asker.close()
        assert sorted(modules(daemon).intersection(UNUSED)) == []
    finally:
        daemon.kill()
        if valkey is not None:
            valkey.stop()


def test_it_says_what_it_can_not_do_and_what_needs_a_restart(tmp_path: Path) -> None:
    daemon = as_shipped(tmp_path / "node").start()
    try:
        (tmp_path / "other").mkdir()
        done = daemon.ctl("spool", "adopt", str(tmp_path / "other"), check=False)
        assert done.returncode != 0
        assert "no listener" in done.stdout + done.stderr
        done = daemon.ctl("explain", "--ip", "192.0.2.1", check=False)
        assert "there is no listener, and so no conversation to explain" in done.stdout + done.stderr
        daemon.ctl("destinations", "list")
        daemon.ctl("queue", "list")
        text = daemon.config.read_text()
        daemon.config.write_text(
            text.replace("listener = []\n", "")
            + '[[listener]]\nname = "mx"\nendpoint = "tcp:0:interface=127.0.0.1"\ntls = "none"\n'
            + '[[limit]]\nname = "added"\nper = ["ip"]\ncounts = "recipients"\nrates = ["1/1h"]\n'
        )
        assert "listener" in daemon.ctl("reload").stdout
        assert "added" in daemon.ctl("limits", "list").stdout
        asker = Asker(daemon)
        answers = [asker.ask(client_address="192.0.2.1", recipient="a@example.net") for _ in range(2)]
        assert [answer == "DUNNO" for answer in answers] == [True, False]
        asker.close()
        daemon.config.write_text(text + '[tls]\ncertificate = "/nowhere.pem"\nprivate_key = "/nowhere.pem"\n')
        assert daemon.ctl("reload", check=False).returncode != 0
    finally:
        daemon.kill()


def test_mail_that_is_queued_has_the_parts_for_its_delivery(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "node", '[[route]]\ndomains = ["*"]\nto = "hold:"\n', mailboxes=False).start()
    try:
        with daemon.client() as client:
            client.sendmail("a@example.org", ["b@example.test"], "Subject: x\r\n\r\nx\r\n")
    finally:
        daemon.stop()
    policyd = as_shipped(tmp_path / "node")
    policyd.launch([sys.executable, "-c", WRAPPER])
    try:
        policyd.wait_until_ready()
        assert "elemta.delivery" in modules(policyd)
        assert "b@example.test" in policyd.ctl("queue", "list").stdout
    finally:
        policyd.kill()
