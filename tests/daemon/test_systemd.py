"""What systemd hears of a real daemon."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

from tests.support.daemon import Daemon

SECONDS = 60.0


class Systemd:
    """The socket that the daemon has to notify, and what was said there."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._said = ""
        self.environ = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "2000000"}

    def hears(self, text: str) -> None:
        """Wait until ``text`` was said, and forget what came before it."""
        deadline = time.monotonic() + SECONDS
        while text not in self._said:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            self._said += self._socket.recv(4096).decode() + "\n"
        self._said = self._said.partition(text)[2]

    def close(self) -> None:
        self._socket.close()


def test_systemd_hears_of_start_queue_life_reload_and_stop(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path / "notify")
    daemon = Daemon(tmp_path / "node", environ=systemd.environ).start()
    try:
        systemd.hears("READY=1")
        systemd.hears("WATCHDOG=1")
        systemd.hears("STATUS=queue 0, sessions 0")
        os.kill(daemon.pid, signal.SIGHUP)
        systemd.hears("RELOADING=1")
        systemd.hears("READY=1")
    finally:
        daemon.stop()
    systemd.hears("STOPPING=1")
    systemd.hears("EXTEND_TIMEOUT_USEC=90000000")
    systemd.close()
