"""How the process of a worker is started: its command, its environment, and what it inherits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol

from elemta.daemon.listeners import Listeners
from elemta.daemon.worker_orders import WorkerOrders

# Descriptors 0 to 2 are the standard streams.
_CHANNEL = 3

# What systemd says to the supervisor alone.
_NOT_INHERITED = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "JOURNAL_STREAM",
)


class ProcessLauncher:
    """Starts workers as children of this process, on the sockets that ``listeners`` has bound.

    ``config_text`` gives the text of the configuration in force. ``reactor_name`` is what twistd was asked
    for, "" for Twisted's choice; ``journald`` says whether the log goes to the journal. Raises
    :class:`~elemta.errors.ListenFailed` for a listener that has no descriptor.
    """

    def __init__(
        self,
        listeners: Listeners,
        reactor: ReactorBase,
        *,
        count: int,
        config_path: str | None,
        config_text: Callable[[], str | None],
        environ: Mapping[str, str],
        journald: bool,
        reactor_name: str = "",
    ) -> None:
        self._reactor = reactor
        self._count = count
        # twistd changes to another directory.
        self._config_path = None if config_path is None else os.path.abspath(config_path)
        self._config_text = config_text
        self._environ = {key: value for key, value in environ.items() if key not in _NOT_INHERITED}
        # A plugin of a site may be anywhere where this process finds it.
        self._environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._journald = journald
        self._reactor_name = reactor_name
        self._smtp = {listener.name: listener.descriptors for listener in listeners.smtp}
        self._policy_services = {each.name: each.descriptors for each in listeners.policy_services}

    def __call__(self, number: int, channel: int, protocol: ProcessProtocol) -> IProcessTransport:
        """Start worker ``number``; ``channel`` is its end of the channel. Raises OSError."""
        text = os.memfd_create("elemta.toml")
        try:
            return self._start(number, channel, text, protocol)
        finally:
            os.close(text)

    def _start(self, number: int, channel: int, text: int, protocol: ProcessProtocol) -> IProcessTransport:
        octets = (self._config_text() or "").encode()
        while octets:
            octets = octets[os.write(text, octets) :]
        os.lseek(text, 0, os.SEEK_SET)
        given = [channel, text]

        def places(sockets: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
            found = {}
            for name, descriptors in sockets.items():
                found[name] = tuple(_CHANNEL + len(given) + place for place in range(len(descriptors)))
                given.extend(descriptors)
            return found

        orders = WorkerOrders(
            number=number,
            count=self._count,
            channel=_CHANNEL,
            config=self._config_path,
            text=_CHANNEL + 1,
            listeners=places(self._smtp),
            policy_services=places(self._policy_services),
            journald=self._journald,
            reactor=self._reactor_name,
        )
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            streams: dict[int, Any] = {0: nothing, 1: "r", 2: 2}
            return self._reactor.spawnProcess(  # type: ignore[attr-defined,no-any-return]
                protocol,
                sys.executable,
                [sys.executable, "-P", "-m", "elemta.daemon.worker", orders.encode()],
                env=self._environ,
                childFDs={**streams, **{_CHANNEL + place: each for place, each in enumerate(given)}},
            )
        finally:
            os.close(nothing)
