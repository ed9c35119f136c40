"""The Unix socket of the admin API: only its owner may open it, and only one daemon has it."""

from __future__ import annotations

import errno
import socket
import stat
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from twisted.internet.base import ReactorBase
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IReactorUNIX
from twisted.logger import Logger
from twisted.web.server import Site

from elemta.errors import ListenFailed
from elemta.socket_path import SocketPath

_log = Logger()

SOCKET_NAME = "admin.sock"
MODE = 0o600


class AdminSocket:
    """Listens at ``path`` with ``factory``; the socket file of a daemon that died is replaced."""

    def __init__(self, path: str | Path, factory: Site, reactor: ReactorBase) -> None:
        self.path = Path(path)
        self._factory = factory
        self._reactor = reactor
        self._port: IListeningPort | None = None
        self._place: SocketPath | None = None

    def open(self) -> None:
        """Bind and accept.

        Raises :class:`~elemta.errors.ListenFailed` when another daemon listens there, when the place
        is taken by something else, or when binding fails.
        """
        try:
            _clear_place(self.path)
            self._port = self._listen()
        except (OSError, CannotListenError) as error:
            self._close_place()
            if self._factory.numPorts:
                # Twisted starts a factory before it binds, and leaves it so when that fails.
                self._factory.doStop()
            raise ListenFailed(f"admin socket {self.path}: {error}") from error
        _log.info("the admin socket is open", event="admin.listening", path=str(self.path))

    async def close(self) -> None:
        """Stop listening and remove the socket file. A second call does nothing."""
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        self._close_place()

    def _listen(self) -> IListeningPort:
        # Twisted sets the mode between bind and listen: no client can connect before it is right.
        reactor = IReactorUNIX(self._reactor)
        self._place = SocketPath(self.path)
        return reactor.listenUNIX(self._place.text, cast(Any, self._factory), mode=MODE, wantPID=False)

    def _close_place(self) -> None:
        if self._place is not None:
            self._place.close()


def _clear_place(path: Path) -> None:
    """Remove the socket file that a dead daemon left. Raises :class:`ListenFailed` for anything else."""
    if not path.parent.is_dir():
        raise ListenFailed(f"admin socket {path}: there is no directory {path.parent}")
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenFailed(f"admin socket {path}: there is something that is no socket; move it away")
    if _is_in_use(path):
        raise ListenFailed(f"admin socket {path}: another daemon listens there")
    path.unlink()


def _is_in_use(path: Path) -> bool:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with closing(SocketPath(path)) as place, probe:
        # A full backlog is EAGAIN: a daemon that is busy, not one that is gone.
        return probe.connect_ex(place.text) != errno.ECONNREFUSED
