"""A daemon under load that is brought to its end again and again, on one spool."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.durability.ledger import Ledger
from tests.durability.load import LOCAL, Clients
from tests.support.daemon import Daemon, DaemonFailed

#: Records that no crash may ever cause: the disk lied, a body is gone, a fault inside Elemta.
_NEVER = ("spool.data_lost", "spool.body_missing", "delivery.internal_error", "session.internal_error")


class Node:
    """One node, its spool, the next hop for part of its mail, and everything that it ever logged as wrong."""

    def __init__(
        self,
        directory: Path,
        ledger: Ledger,
        sink_port: int,
        *,
        spool: str = "",
        retry: str = "1s",
        workers: int = 1,
    ) -> None:
        self.ledger = ledger
        self.daemon = Daemon(
            directory,
            f'[[route]]\ndomains = ["sink.test"]\nto = "smtp://127.0.0.1:{sink_port}"\n',
            server=f"workers = {workers}\n",
            spool=f'retry = ["{retry}"]\n' + spool,
            domains='relay_from = ["127.0.0.0/8"]\n[submission]\nadd_missing = false\n',
        )
        self.faults: list[str] = []
        self.starts = 0
        self.start_seconds = 1.0

    @property
    def mail(self) -> Path:
        """The Maildirs of the local domain."""
        return self.daemon.spool / "mail" / LOCAL

    def launch(self, before: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start without waiting; each life has a log of its own."""
        self.starts += 1
        self.daemon.log = self.daemon.directory / f"elemta-{self.starts}.log"
        return self.daemon.launch(before)

    def start(self, before: Sequence[str] = ()) -> None:
        begun = time.monotonic()
        self.launch(before)
        self.daemon.wait_until_ready()
        self.start_seconds = time.monotonic() - begun

    def kill(self) -> None:
        """kill -9, wherever it is; keeps its log only if there was something wrong."""
        self.daemon.kill()
        self.look_for_faults()

    def stop(self) -> None:
        """SIGTERM, and the end that an operator wants."""
        self.daemon.stop()
        self.look_for_faults()

    def look_for_faults(self) -> None:
        output = self.daemon.output()
        found = [
            line
            for line in output.splitlines()
            if any(f'"{event}"' in line for event in _NEVER) or "Traceback" in line
        ]
        self.faults += found
        if not found:
            self.daemon.log.unlink()

    def is_serving(self, process: subprocess.Popen[bytes], seconds: float = 90.0) -> bool:
        """Whether it became ready, rather than being killed on the way there."""
        deadline = time.monotonic() + seconds
        while not self.daemon.records("daemon.ready"):
            if process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.daemon.output()
            time.sleep(0.02)
        return True

    def is_dead(self, process: subprocess.Popen[bytes], seconds: float) -> bool:
        """Whether the process was killed by itself within so many seconds."""
        try:
            return process.wait(timeout=seconds) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return False

    def readiness(self) -> tuple[int, list[str]]:
        """The status of /readyz, and the reasons if it is not 200."""
        try:
            self.daemon.get("/readyz")
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, json.loads(answer.read())["reasons"]
        return 200, []

    def wait_until_ready_again(self, seconds: float) -> float:
        """Wait until mail would be accepted; how long that took."""
        begun = time.monotonic()
        while (found := self.readiness())[0] != 200:
            if time.monotonic() - begun > seconds:
                raise DaemonFailed(f"still {found}\n{self.daemon.output()[-4000:]}")
            time.sleep(0.05)
        return time.monotonic() - begun

    def wait_until_empty(self, seconds: float) -> None:
        """Wait until nothing is queued any more."""
        deadline = time.monotonic() + seconds
        while queued := self.daemon.metric("elemta_spool_messages"):
            if time.monotonic() > deadline:
                raise DaemonFailed(f"{queued:.0f} messages are still queued\n{self.daemon.output()[-4000:]}")
            time.sleep(0.05)


def run_dry(node: Node, clients: Clients, seconds: float = 60.0, *, take: bool = True) -> None:
    """Let the clients read their last answers and the daemon deliver all; then ``take`` what is delivered."""
    clients.rest()
    clients.wait_until_idle()
    node.wait_until_empty(seconds)
    if take:
        node.ledger.take_mail(node.mail, LOCAL)
        node.ledger.close()


@contextlib.contextmanager
def failing_syncs(pid: int, error: str = "EIO") -> Iterator[None]:
    """Every sync of this process fails with this error."""
    strace = find_strace()
    tracing = [strace, "-f", "-q", "-o", os.devnull, "-p", str(pid)]
    inject = ["-e", "trace=fdatasync,fsync", "-e", f"inject=fdatasync,fsync:error={error}"]
    with subprocess.Popen([*tracing, *inject], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=90)


def find_strace() -> str:
    """The path of a strace that may trace; skips the test where there is none."""
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "-qq", "-o", os.devnull, "true"], check=False).returncode:
        pytest.skip("strace is not installed or not permitted")
    return strace
