"""A real daemon for tests: ``twistd -n elemta`` in a process of its own, on ports that the kernel chose."""

from __future__ import annotations

import json
import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.places import HERE, Place

_START_SECONDS = 90.0


class DaemonFailed(AssertionError):
    """The daemon did not do what it was started for; carries its output."""


class Daemon:
    """One node in ``directory``: its configuration, its spool, its log, and where it listens.

    ``tables`` is TOML put behind the common part. A listener ``mx`` and the metrics are there already. Local
    mail goes to Maildirs that are made for any name, unless ``mailboxes`` says otherwise.
    """

    def __init__(
        self,
        directory: Path,
        tables: str = "",
        *,
        listener: str = "",
        spool: str = "",
        server: str = "",
        domains: str = "",
        mailboxes: bool = True,
        environ: dict[str, str] | None = None,
        place: Place = HERE,
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.config = directory / "elemta.toml"
        self.spool = directory / "spool"
        self.log = directory / "elemta.log"
        self._place = place
        self._environ = {**os.environ, **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._mailboxes = mailboxes
        self.configure(tables, listener=listener, spool=spool, server=server, domains=domains)

    def configure(
        self, tables: str = "", *, listener: str = "", spool: str = "", server: str = "", domains: str = ""
    ) -> None:
        self.config.write_text(
            f"""
[server]
hostname = "mx.example.test"
{server}
[domains]
local = ["example.test"]
{domains}
[spool]
directory = "{self.spool}"
minimum_free = "1MiB"
{spool}
[metrics]
endpoint = "tcp:0:interface=127.0.0.1"
[console]
endpoint = ""
[resources]
max_requests_per_window = 0
max_connections_per_ip = 10000
[[listener]]
name = "mx"
endpoint = "tcp:0:interface=127.0.0.1"
{listener}
{tables}
{self._route if self._mailboxes else ""}
"""
        )

    def open_console(self, users: Path) -> None:
        """Have a console for the users in this file, from the next start on."""
        self._replace(
            '[console]\nendpoint = ""',
            f'[console]\nendpoint = "tcp:0:interface=127.0.0.1"\nusers = "{users}"',
        )

    def count_in(self, valkey_url: str) -> None:
        """Count limits in this Valkey, from the next start on."""
        self._replace("[resources]", f'[resources]\nvalkey_url = "{valkey_url}"')

    def _replace(self, old: str, new: str) -> None:
        text = self.config.read_text()
        assert text.count(old) == 1, old
        self.config.write_text(text.replace(old, new))

    @property
    def _route(self) -> str:
        return f"""[[route]]
domains = ["example.test"]
to = "maildir:{self.spool}/mail/{{domain}}/{{local}}"
create_mailboxes = true
"""

    def start(self) -> Daemon:
        """Start and wait until the log says that it is ready."""
        self.launch()
        self.wait_until_ready()
        return self

    def launch(
        self,
        before: Sequence[str] = (),
        *,
        options: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start without waiting.

        ``before`` is a command to put before the daemon's, such as strace -D; ``options`` are twistd's.
        """
        self.log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._place.prefix,
                    *before,
                    str(Path(sys.executable).with_name("twistd")),
                    "-n",
                    "--pidfile=",
                    *options,
                    "elemta",
                    "--config",
                    str(self.config),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={**self._environ, **(environ or {})},
                pass_fds=pass_fds,
            )
        return self._process

    def wait_until_ready(self) -> None:
        self.wait_for("daemon.ready", seconds=_START_SECONDS)

    def wait_for(self, event: str, *, seconds: float = 45.0, **fields: object) -> dict[str, Any]:
        """The first record since the last start with this event and these fields."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for record in self.records(event):
                if all(record.get(name) == value for name, value in fields.items()):
                    return record
            if self._process is not None and self._process.poll() is not None:
                break
            time.sleep(0.02)
        raise DaemonFailed(f"no {event} with {fields} in the log:\n{self.output()}")

    def output(self) -> str:
        return self.log.read_bytes()[self.log_start :].decode("utf-8", "replace")

    def records(self, event: str | None = None) -> list[dict[str, Any]]:
        """The log's JSON records since the last start, of one event or of all."""
        found = []
        for line in self.output().splitlines():
            if not line.startswith("{") or (event is not None and event not in line):
                continue
            try:
                record = json.loads(line)
            except ValueError:  # the daemon is writing it right now
                continue
            if event is None or record.get("event") == event:
                found.append(record)
        return found

    def port_of(self, listener: str = "mx") -> int:
        ready = self.records("daemon.ready")[-1]
        for named in (*ready["listeners"], *ready["policy_services"]):
            name, _, address = named.rpartition(" ")
            if name == listener:
                return int(address.rpartition(":")[2])
        raise DaemonFailed(f"no listener {listener} in {ready}")

    @property
    def port(self) -> int:
        return self.port_of("mx")

    @property
    def metrics_port(self) -> int:
        return int(self.records("daemon.ready")[-1]["metrics"][0].rpartition(":")[2])

    @property
    def console(self) -> str:
        """The URL of its console."""
        return "http://" + str(self.wait_for("daemon.ready")["console"][0])

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def get(self, path: str) -> str:
        url = f"http://127.0.0.1:{self.metrics_port}{path}"
        with self._place.call(lambda: urllib.request.urlopen(url, timeout=90)) as answer:
            return str(answer.read().decode())

    def metric(self, pattern: str) -> float:
        """The sum of the samples whose line begins as the regular expression ``pattern`` says."""
        values = [
            float(line.rpartition(" ")[2])
            for line in self.get("/metrics").splitlines()
            if re.match(pattern, line)
        ]
        return sum(values)

    def client(self, listener: str = "mx", timeout: float = 60.0) -> smtplib.SMTP:
        port = self.port_of(listener)
        return self._place.call(
            lambda: smtplib.SMTP("127.0.0.1", port, local_hostname="client.test", timeout=timeout)
        )

    def socket(self, listener: str = "mx", timeout: float = 60.0) -> socket.socket:
        address = ("127.0.0.1", self.port_of(listener))
        return self._place.call(lambda: socket.create_connection(address, timeout=timeout))

    def ctl(
        self, *arguments: str, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``elemtactl`` against this daemon."""
        done = subprocess.run(
            [str(Path(sys.executable).with_name("elemtactl")), "--config", str(self.config), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=90,
            env=self._environ,
            check=False,
        )
        if check and done.returncode != 0:
            raise DaemonFailed(f"elemtactl {arguments}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def add_user(self, name: str, password: str) -> None:
        """Add a user to the file that the configuration names."""
        self.ctl("user", "add", name, "--password-stdin", stdin=f"{password}\n")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(timeout=90)

    def stop(self, timeout: float = 90.0) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=90)
            raise DaemonFailed(f"did not stop within {timeout} s:\n{self.output()[-4000:]}") from None

    def mailbox(self, local: str, domain: str = "example.test") -> list[Path]:
        """What lies in the default Maildir of a local address, oldest first."""
        new = self.spool / "mail" / domain / local / "new"
        return sorted(new.iterdir(), key=lambda path: path.stat().st_mtime) if new.is_dir() else []

    def wait_for_mail(
        self, local: str, count: int = 1, *, domain: str = "example.test", seconds: float = 60.0
    ) -> list[bytes]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            files = self.mailbox(local, domain)
            if len(files) >= count:
                return [path.read_bytes() for path in files]
            time.sleep(0.02)
        raise DaemonFailed(
            f"{len(self.mailbox(local, domain))} of {count} messages for {local}@{domain}:\n"
            + self.output()[-6000:]
        )
