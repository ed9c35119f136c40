"""What an operator changes, rotates and reads while the daemon runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

from tests.support.daemon import Daemon

MakeDaemon = Callable[..., Daemon]

DEBUG = '[logging]\nlevel = "debug"\n'


def reload(daemon: Daemon) -> str:
    return daemon.ctl("reload").stdout


def test_a_reload_changes_the_level_of_the_log(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.noop()
    assert daemon.records("session.closed") == []
    daemon.configure(DEBUG)
    assert reload(daemon) == "reloaded\n"
    with daemon.client() as client:
        client.noop()
    daemon.wait_for("session.closed")


def test_what_needs_a_restart_is_told_until_there_was_one(daemon: Daemon) -> None:
    daemon.configure(spool='retry = ["1m"]')
    daemon.config.write_text(daemon.config.read_text().replace('name = "mx"', 'name = "other"'))
    told = "listener changed and takes effect after a restart"
    assert told in reload(daemon)
    assert told in reload(daemon)
    assert told in daemon.ctl("status").stdout
    assert told in daemon.ctl("config", "dump", "--running").stderr


def test_a_reload_that_opens_the_relay_says_so(daemon: Daemon) -> None:
    daemon.configure()
    words = daemon.config.read_text().replace("[domains]", '[domains]\nrelay_from = ["0.0.0.0/0"]', 1)
    daemon.config.write_text(words)
    reload(daemon)
    warned = daemon.wait_for("config.warning_given")
    assert (warned["file"], warned["key"]) == (str(daemon.config), "domains.relay_from[1]")
    notes = json.loads(daemon.ctl("--json", "status").stdout)["notes"]
    assert "domains.relay_from[1]" in [note["key"] for note in notes]


def test_a_log_that_was_rotated_away_goes_on_in_a_new_file_after_a_hang_up(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    rotating = daemon.directory / "rotating.log"
    daemon.launch(options=["--logfile", str(rotating)])
    daemon.log, daemon.log_start = rotating, 0
    while not rotating.exists():
        pass
    daemon.wait_until_ready()
    old = rotating.rename(daemon.directory / "rotating.log.1")
    daemon.log = old
    daemon.signal(signal.SIGHUP)
    while not rotating.exists():
        pass
    daemon.log = rotating
    daemon.wait_for("config.reloaded")
    assert "daemon.ready" in old.read_text()
    assert "config.reloaded" not in old.read_text()


def test_every_policy_in_force_has_its_breaker_in_the_metrics(daemon: Daemon) -> None:
    metrics = daemon.get("/metrics")
    for policy in ("limits", "relay"):
        sample = f'elemta_policy_breaker_open{{node_id="mx.example.test",policy="{policy}"}} 0.0'
        assert sample in metrics
