"""The servers that are measured: each on a directory of its own, keeping what it accepts on hold."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

DOMAIN = "bench.test"
START_SECONDS = 30.0
HOLD_SECONDS = 120.0
TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """The figures would not be true, or can't be had."""


class Server(ABC):
    """One server on a directory of its own."""

    name: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    @abstractmethod
    def pid(self) -> int: ...

    @abstractmethod
    def held(self) -> tuple[int, int]:
        """Messages in the hold queue, and in all others."""

    def wait_until_serving(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
                if client.recv(512).startswith(b"220"):
                    client.sendall(b"QUIT\r\n")
                    return
            time.sleep(0.05)
        raise BenchError(f"{self.name} does not serve on port {self.port}; its log is in {self.directory}")

    def wait_until_held(self, messages: int) -> None:
        """Raises BenchError unless exactly so many messages end up on hold."""
        deadline = time.monotonic() + HOLD_SECONDS
        held, others = self.held()
        while (held < messages or others) and time.monotonic() < deadline:
            time.sleep(0.02)
            held, others = self.held()
        if (held, others) != (messages, 0):
            raise BenchError(f"{self.name} took {messages}, has {held} on hold and {others} elsewhere")


class ElemtaServer(Server):
    name = "Elemta"

    def start(self) -> None:
        config = self.directory / "elemta.toml"
        config.write_text(
            f"""
[server]
hostname = "{DOMAIN}"
[[listener]]
name = "mx"
endpoint = "tcp:{self.port}:interface=127.0.0.1"
[domains]
local = ["{DOMAIN}"]
[resources]
max_connections_per_ip = 1000
max_requests_per_window = 10000000
[[route]]
domains = ["*"]
to = "hold:"
[spool]
directory = "{self.directory}/spool"
[metrics]
endpoint = ""
[console]
endpoint = ""
"""
        )
        twistd = Path(sys.executable).with_name("twistd")
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(twistd), "-n", "--pidfile=", "elemta", "--config", str(config)],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait_until_serving()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def pid(self) -> int:
        return self._process.pid

    def held(self) -> tuple[int, int]:
        (database,) = (self.directory / "spool").rglob("queue.db")
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            states = dict(connection.execute("SELECT state, count(*) FROM message GROUP BY state").fetchall())
        finally:
            connection.close()
        held = states.pop(2, 0)
        return held, sum(states.values())


class PostfixServer(Server):
    name = "Postfix"

    # Every service that is used; nothing in a chroot, and as many processes as there are sessions.
    SERVICES = """
127.0.0.1:{port} inet n - n - {processes} smtpd
cleanup   unix       n - n - 0 cleanup
rewrite   unix       - - n - - trivial-rewrite
pickup    unix       n - n 600 1 pickup
qmgr      unix       n - n 300 1 qmgr
bounce    unix       - - n - 0 bounce
defer     unix       - - n - 0 bounce
trace     unix       - - n - 0 bounce
showq     unix       n - n - - showq
error     unix       - - n - - error
retry     unix       - - n - - error
local     unix       - n n - - local
postlog   unix-dgram n - n - 1 postlogd
"""
    SETTINGS = """
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = {directory}/maillog
maillog_file_prefixes = {directory}
myhostname = {domain}
mydestination = {domain}
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_recipient_maps =
local_header_rewrite_clients =
smtpd_client_restrictions = check_client_access static:HOLD
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_client_message_rate_limit = 0
smtpd_client_recipient_rate_limit = 0
smtpd_tls_security_level = none
receive_override_options = no_address_mappings
default_process_limit = {processes}
max_use = 1000000
max_idle = 600s
in_flow_delay = 0
message_size_limit = 0
mailbox_size_limit = 0
"""

    def start(self) -> None:
        settings = {"directory": self.directory, "domain": DOMAIN, "port": self.port, "processes": 150}
        self._config = self.directory / "config"
        for name in ("config", "queue", "data"):
            (self.directory / name).mkdir()
        shutil.chown(self.directory / "data", "postfix")
        (self._config / "main.cf").write_text(self.SETTINGS.format(**settings))
        (self._config / "master.cf").write_text(self.SERVICES.format(**settings))
        self._postfix("start")
        self.wait_until_serving()

    def stop(self) -> None:
        with suppress(BenchError):
            self._postfix("stop")

    def _postfix(self, command: str) -> None:
        done = subprocess.run(
            ["postfix", "-c", str(self._config), command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            log = self.directory / "maillog"
            said = log.read_text()[-2000:] if log.exists() else ""
            raise BenchError(f"postfix {command} failed: {done.stdout}{done.stderr}{said}")

    def pid(self) -> int:
        return int((self.directory / "queue/pid/master.pid").read_text())

    def held(self) -> tuple[int, int]:
        return self._files("hold"), self._files("incoming") + self._files("active") + self._files("deferred")

    def _files(self, queue: str) -> int:
        return sum(len(files) for _, _, files in os.walk(self.directory / "queue" / queue))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(root: int) -> float:
    """User and system time of a process, its descendants, and the children that they waited for."""
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(entry.name)
        children.setdefault(int(fields[1]), []).append(pid)
        used[pid] = sum(map(int, fields[11:15]))
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        total += used.get(pid, 0)
        waiting.extend(children.get(pid, ()))
    return total / TICKS
