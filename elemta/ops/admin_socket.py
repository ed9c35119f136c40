"""The Unix socket of the admin API: only its owner may open it, and only one daemon has it."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any, cast

from twisted.internet.base import ReactorBase
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IReactorUNIX
from twisted.logger import Logger
from twisted.web.server import Site

from elemta.errors import ListenFailed

_log = Logger()

SOCKET_NAME = "admin.sock"
MODE = 0o600
# unix(7): sun_path has 108 octets with the NUL at the end
MAX_PATH_OCTETS = 107


class AdminSocket:
    """Listens at ``path`` with ``factory``; the socket file of a daemon that died is replaced."""

    def __init__(self, path: str | Path, factory: Site, reactor: ReactorBase) -> None:
        self.path = Path(path)
        self._factory = factory
        self._reactor = reactor
        self._port: IListeningPort | None = None
        self._directory: int | None = None

    def open(self) -> None:
        """Bind and accept.

        Raises :class:`~elemta.errors.ListenFailed` when another daemon listens there, when the place
        is taken by something else, or when binding fails.
        """
        try:
            _clear_place(self.path)
            self._port = self._listen()
        except (OSError, CannotListenError) as error:
            self._close_directory()
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
        self._close_directory()

    def _listen(self) -> IListeningPort:
        # Twisted sets the mode between bind and listen: no client can connect before it is right.
        reactor = IReactorUNIX(self._reactor)
        return reactor.listenUNIX(self._bindable_path(), cast(Any, self._factory), mode=MODE, wantPID=False)

    def _bindable_path(self) -> str:
        path = str(self.path)
        if len(os.fsencode(path)) <= MAX_PATH_OCTETS:
            return path
        # The same file by a short name, which lasts as long as the directory is open.
        self._directory = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._directory}/{self.path.name}"

    def _close_directory(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None:
            os.close(directory)


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
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            # A full backlog is EAGAIN: a daemon that is busy, not one that is gone.
            return probe.connect_ex(f"/proc/self/fd/{directory}/{path.name}") != errno.ECONNREFUSED
    finally:
        os.close(directory)
