"""Notifies systemd of the daemon's state (sd_notify(3)). Without systemd it does nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elemta.runtime import Runtime

_log = Logger()

_MAX_STATUS = 200


class Notifier:
    """Speaks to the socket that ``NOTIFY_SOCKET`` in ``environ`` names; without one it does nothing.

    Where ``WATCHDOG_USEC`` is set (and ``WATCHDOG_PID``, if given, is this process), signs of life are sent
    twice as often as systemd wants them: proof that the event loop turns. While ``alive`` gives False there
    is none.
    """

    def __init__(
        self, environ: Mapping[str, str], runtime: Runtime, alive: Callable[[], bool] = lambda: True
    ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        micros = environ.get("WATCHDOG_USEC", "")
        meant = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog = int(micros) / 1e6 if meant and micros.isdecimal() else 0.0
        self._alive = alive
        self._beat = LoopingCall(self._send_beat)
        self._beat.clock = runtime.reactor
        self._monotonic = runtime.monotonic

    def ready(self, status: str = "") -> None:
        """The start, or a reload, is finished; signs of life begin."""
        self._send("READY=1", *_status(status))
        if self._address and self._watchdog and not self._beat.running:
            self._beat.start(self._watchdog / 2)

    def reloading(self) -> None:
        """A reload has begun; :meth:`ready` ends it."""
        # sd_notify(3): CLOCK_MONOTONIC in microseconds, which Type=notify-reload needs.
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(self._monotonic() * 1e6)}")

    def stopping(self, status: str = "") -> None:
        """The daemon is on its way out. Signs of life go on until :meth:`close`: a drain takes time."""
        self._send("STOPPING=1", *_status(status))

    def status(self, text: str) -> None:
        """One line that ``systemctl status`` shows."""
        self._send(*_status(text))

    def failed(self, reason: str) -> None:
        """The start has failed, and the daemon ends."""
        self.status(f"could not start: {reason}")

    def extend(self, seconds: float) -> None:
        """Ask for so much more time to start, reload or stop: a long recovery is no hang."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def close(self) -> None:
        """No more signs of life."""
        if self._beat.running:
            self._beat.stop()

    def _send_beat(self) -> None:
        if self._alive():
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address or not lines:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:  # systemd is not obliged to listen
            _log.debug("systemd could not be notified", event="notify.failed", error=str(error))


def _status(text: str) -> list[str]:
    return [f"STATUS={' '.join(text.split())[:_MAX_STATUS]}"] if text else []
