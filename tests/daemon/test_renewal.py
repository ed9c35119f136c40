"""The deploy hook for certbot that the page about TLS shows: a renewed certificate is in use, and is seen."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon.test_certificates import served
from tests.daemon.test_life import MakeDaemon
from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon

PAGE = (Path(__file__).parents[2] / "docs" / "tls.md").read_text(encoding="utf-8")
NAME = "mx1.example.org"


@dataclass
class Host:
    """certbot's directory of one certificate, the directory of Elemta's, and the hook."""

    directory: Path
    daemon: Daemon

    def __post_init__(self) -> None:
        self.lineage = self.directory / "live" / NAME
        self.etc = self.directory / "etc"
        self.programs = self.directory / "bin"
        for each in (self.lineage, self.etc, self.programs):
            each.mkdir(parents=True)
        (block,) = re.findall(r"^   ```sh\n(.*?)^   ```$", PAGE, re.DOTALL | re.MULTILINE)
        self.hook = self.directory / "hook"
        self.hook.write_text(textwrap.dedent(block).replace("/etc/elemta/", f"{self.etc}/"))
        # As systemd does it: ExecReload where the unit is active, and else nothing.
        self._program(
            "systemctl",
            '[ "$*" = "try-reload-or-restart elemta" ] || exit 64\n'
            f"[ -e {self.directory}/active ] || exit 0\n"
            f"exec {Path(sys.executable).with_name('elemtactl')} --config {self.daemon.config} reload\n",
        )
        # There is no group elemta here.
        self._program("chgrp", f'[ "$1" = elemta ] && exec /usr/bin/chgrp {os.getgid()} "$2"\n')

    def _program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(f"#!/bin/sh\n{text}")
        (self.programs / name).chmod(0o755)

    def active(self) -> None:
        (self.directory / "active").touch()

    def renew(self, days: int) -> None:
        files = make_certificate(self.lineage, NAME, days=days)
        files.certificate.rename(self.lineage / "fullchain.pem")
        files.key.rename(self.lineage / "privkey.pem")

    def deploy(self) -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "RENEWED_LINEAGE": str(self.lineage),
            "RENEWED_DOMAINS": NAME,
        }
        return subprocess.run(
            ["sh", str(self.hook)], env=environ, capture_output=True, text=True, check=False, timeout=90
        )

    @property
    def file(self) -> Path:
        return self.etc / f"{NAME}.pem"

    def days_left(self) -> int:
        status = json.loads(self.daemon.ctl("--json", "status").stdout)
        return int(status["certificates"][0]["days_left"])


@pytest.fixture
def host(tmp_path: Path, make_daemon: MakeDaemon) -> Host:
    daemon = make_daemon()
    host = Host(tmp_path / "host", daemon)
    (table,) = re.findall(r'^   \[tls\]\n   certificate = "(.*?)"$', PAGE, re.MULTILINE)
    assert table == f"/etc/elemta/{NAME}.pem"
    daemon.configure(f'[tls]\ncertificate = "{host.file}"\n')
    return host


def test_a_renewed_certificate_is_used_and_seen_without_a_restart(host: Host) -> None:
    host.renew(5)
    assert host.deploy().returncode == 0  # nothing runs yet
    assert stat.S_IMODE(host.file.stat().st_mode) == 0o640
    daemon = host.daemon.start()
    host.active()
    assert host.days_left() == 4
    assert "expires" in daemon.wait_for("config.warning_given", key="tls.certificate")["note"]
    before = served(daemon, None, "mx")
    end = daemon.metric("elemta_certificate_not_after_seconds")
    with daemon.client() as client:
        client.noop()
        host.renew(90)
        ran = host.deploy()
        assert (ran.returncode, ran.stderr) == (0, "")
        assert client.noop()[0] == 250
    assert host.days_left() == 89
    assert daemon.metric("elemta_certificate_not_after_seconds") == pytest.approx(end + 85 * 86400, abs=3600)
    after = served(daemon, None, "mx")
    assert after.serial_number != before.serial_number
    records = daemon.records()
    reloaded = [each.get("event") for each in records].index("config.reloaded")
    warned = [each for each in records[reloaded:] if each.get("event") == "config.warning_given"]
    assert [each["key"] for each in warned if each["key"].startswith("tls")] == []
    assert [each.name for each in host.etc.iterdir()] == [f"{NAME}.pem"]


def test_a_hook_that_fails_leaves_what_there_was(host: Host) -> None:
    host.renew(60)
    assert host.deploy().returncode == 0
    daemon = host.daemon.start()
    host.active()
    # Half a lineage.
    before = host.file.read_bytes()
    (host.lineage / "privkey.pem").unlink()
    assert host.deploy().returncode != 0
    assert host.file.read_bytes() == before
    assert [each.name for each in host.etc.iterdir()] == [f"{NAME}.pem"]
    # A file that the daemon can't use.
    (host.lineage / "privkey.pem").write_text("no key\n")
    ran = host.deploy()
    assert ran.returncode != 0
    assert str(host.file) in ran.stdout + ran.stderr
    assert host.days_left() == 59
    assert served(daemon, None, "mx").serial_number > 0
