"""A fleet that has something of everything to show, clients that see to it, and a Prometheus that looks."""

from __future__ import annotations

import contextlib
import json
import re
import smtplib
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.cluster.fleet import Fleet
from tests.interop.programs import Server, free_port, program
from tests.support.certificates import make_certificate, unproved_tls
from tests.support.daemon import Daemon

MONITORING = Path(__file__).parents[2] / "monitoring"
PASSWORD = "correct horse battery"
#: From here clients may relay; from elsewhere in 127.0.0.0/8 they may not.
RELAYING = "127.0.0.2"
MOST_CONNECTIONS = 12
"""Connections that a node accepts."""


def next_hop(directory: Path) -> Daemon:
    """Where mail goes to: takes it, over TLS."""
    return Daemon(directory, make_certificate(_made(directory)).table)


def tables(directory: Path, hop: Daemon) -> str:
    """The tables of a node that relays to the next hop, or to a port without a listener."""
    users = directory / "users"
    users.touch(mode=0o600)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = closed.getsockname()[1]
    return f"""
{make_certificate(directory).table}
[auth]
checkers = ["elemta-users:{users}"]
[[listener]]
name = "submission"
endpoint = "tcp:0:interface=127.0.0.1"
role = "submission"
[[limit]]
name = "mails"
per = ["sender"]
counts = "messages"
rates = ["5/1h"]
[[route]]
domains = ["hop.test"]
to = "smtp://127.0.0.1:{hop.port}"
[[route]]
domains = ["down.test"]
to = "smtp://127.0.0.1:{nobody}"
"""


def fleet(directory: Path, valkey_url: str, hop: Daemon) -> Fleet:
    """Three nodes, not started."""
    made = Fleet(
        directory,
        valkey_url,
        resources={
            "max_connections": MOST_CONNECTIONS,
            "max_connections_per_ip": 1000,
            "max_requests_per_window": 0,
        },
        tables=tables(_made(directory), hop),
    )
    for node in made.nodes:
        text = node.config.read_text()
        node.config.write_text(
            text.replace("[domains]\n", f'[domains]\nrelay_from = ["{RELAYING}/32"]\n').replace(
                "[spool]\n", '[spool]\nretry = ["1s"]\n'
            )
        )
    subprocess.run(
        [
            str(Path(sys.executable).with_name("elemtactl")),
            *("--config", str(made.nodes[0].config), "user", "add", "alice", "--password-stdin"),
        ],
        input=PASSWORD + "\n",
        text=True,
        check=True,
        timeout=30,
        capture_output=True,
    )
    return made


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


class Bustle:
    """Clients at all nodes while the with-block lasts: mail in and out, refusals, TLS and logins."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._over = threading.Event()
        self._internal_error: list[BaseException] = []
        self._number = 0
        doings: Sequence[Callable[[int, int], None]] = (self._mails, self._submits, self._crowds)
        self._threads = [threading.Thread(target=self._keep_at, args=(doing,)) for doing in doings]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if error is None:
            assert self._internal_error == []

    def _keep_at(self, doing: Callable[[int, int], None]) -> None:
        number = 0
        ports = self._fleet.ports()
        try:
            while not self._over.is_set():
                # A node that is full says 421 or hangs up; that is some of what is to be seen.
                with contextlib.suppress(OSError, smtplib.SMTPException):
                    doing(number, ports[number % len(ports)])
                number += 1
                self._over.wait(0.05)
        except BaseException as error:
            self._internal_error.append(error)

    def _mails(self, number: int, port: int) -> None:
        """Mail for here, for a next hop and for one that is down; some too much, some not for us."""
        client = RELAYING if number % 4 else "127.0.0.1"
        with smtplib.SMTP(
            "127.0.0.1", port, local_hostname="client.test", timeout=10, source_address=(client, 0)
        ) as smtp:
            if number % 3 == 0:
                smtp.starttls(context=unproved_tls())
            for domain in ("example.test", "hop.test", "down.test"):
                sender = f"s{number // 9}@client.test" if number % 2 else "busy@client.test"
                with contextlib.suppress(smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused):
                    smtp.sendmail(sender, [f"bob@{domain}"], f"Subject: {number}\r\n\r\n{'x' * 3000}\r\n")

    def _submits(self, number: int, _port: int) -> None:
        port = self._fleet.nodes[number % len(self._fleet.nodes)].port_of("submission")
        with smtplib.SMTP("127.0.0.1", port, local_hostname="client.test", timeout=10) as smtp:
            smtp.starttls(context=unproved_tls())
            smtp.login("alice", PASSWORD if number % 2 else "wrong")
        self._over.wait(0.2)

    def _crowds(self, _number: int, port: int) -> None:
        """More connections than a node accepts."""
        with contextlib.ExitStack() as stack:
            for _ in range(MOST_CONNECTIONS + 2):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            self._over.wait(0.1)
        self._over.wait(1.0)


class Prometheus:
    """Debian's Prometheus with the configuration of monitoring/, but for the targets, and often."""

    def __init__(self, directory: Path, targets: Sequence[str]) -> None:
        _made(directory)
        self._server = Server("prometheus", directory / "log")
        self._directory = directory
        self._url = f"http://127.0.0.1:{free_port()}"
        shipped = (MONITORING / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
        config, found = re.subn(r"targets: \[.*\]", f"targets: {json.dumps(list(targets))}", shipped)
        assert found == 1
        config = config.replace("15s", "1s").replace("10s", "1s")
        config = config.replace("- alerts.yml", f"- {MONITORING / 'prometheus' / 'alerts.yml'}")
        (directory / "prometheus.yml").write_text(config, encoding="utf-8")

    def __enter__(self) -> Self:
        self._server.run(
            program("prometheus"),
            f"--config.file={self._directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._directory / 'data'}",
            f"--web.listen-address={self._url.removeprefix('http://')}",
            "--log.level=warn",
            ready=self._is_ready,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()

    def query(self, expression: str) -> list[float]:
        """The values of all series that it comes to now; raises ValueError with its words for a bad query."""
        answer = self.get("query", query=expression)
        return [float(series["value"][1]) for series in answer["result"]]

    def get(self, what: str, **parameters: str) -> Any:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode()) from None

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5):
                return True
        except OSError:
            return False


def until(what: str, done: Callable[[], object], seconds: float) -> None:
    """Until ``done`` gives nothing more to wait for."""
    deadline = time.monotonic() + seconds
    while left := done():
        assert time.monotonic() < deadline, f"{what}: {left}"
        time.sleep(0.5)
