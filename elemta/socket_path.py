"""Paths of Unix sockets, also those that are longer than an address of a socket can be."""

from __future__ import annotations

import os
from pathlib import Path

# unix(7): sun_path has 108 octets with the NUL at the end
_MAX_OCTETS = 107


class SocketPath:
    """The path of a Unix socket: ``text`` is what to bind or connect to, until :meth:`close`.

    Of a path that is too long it is a short name of the same file, which lasts as long as the directory is
    open. Raises OSError where that is not there.
    """

    __slots__ = ("_directory", "text")

    def __init__(self, path: Path) -> None:
        self.text = str(path)
        self._directory: int | None = None
        if len(os.fsencode(self.text)) > _MAX_OCTETS:
            self._directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.text = f"/proc/self/fd/{self._directory}/{path.name}"

    def close(self) -> None:
        """The name is needed no more. A second call does nothing."""
        directory, self._directory = self._directory, None
        if directory is not None:
            os.close(directory)
