"""The token of the first start: the way in while the console has no user."""

from __future__ import annotations

import hmac
import os
from contextlib import suppress
from pathlib import Path

from twisted.logger import Logger

from elemta.auth.accounts import new_token
from elemta.runtime import Randomness

FILE_NAME = "console-token"
MODE = 0o600
_MOST_OCTETS = 256

_log = Logger()


class FirstToken:
    """The token in ``console-token`` of the spool directory. All methods block.

    It is made where there is none, and read again after a restart. It ends with the first user.
    """

    def __init__(self, directory: str | Path, randomness: Randomness) -> None:
        self.path = Path(directory) / FILE_NAME
        self._randomness = randomness
        self._text = ""

    @property
    def is_valid(self) -> bool:
        """Whether there is such a token now."""
        return bool(self._text)

    def provide(self) -> None:
        """Read the token, or make one. A failure is logged: then there is no such token."""
        try:
            self._text = self._read() or self._make()
        except OSError as error:
            _log.error(
                "the first token of the console could not be written",
                event="console.token_failed",
                path=str(self.path),
                error=str(error),
            )
            return
        _log.info(
            "the console has no user yet; the token in this file is the way in",
            event="console.token_written",
            path=str(self.path),
        )

    def end(self) -> None:
        """Remove it for good."""
        self._text = ""
        with suppress(FileNotFoundError):
            self.path.unlink()
            _log.info(
                "the console has a user; its first token is removed",
                event="console.token_removed",
                path=str(self.path),
            )

    def matches(self, text: str) -> bool:
        """Whether this is the token."""
        given = text.strip().encode("utf-8", "surrogatepass")
        return bool(self._text) and hmac.compare_digest(self._text.encode(), given)

    def _read(self) -> str:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return ""
        with os.fdopen(descriptor, "rb") as file:
            os.fchmod(file.fileno(), MODE)
            return file.read(_MOST_OCTETS).decode("ascii", "replace").strip()

    def _make(self) -> str:
        text = new_token(self._randomness)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(FileNotFoundError):
            # An empty one, of a start that was interrupted
            self.path.unlink()
        with os.fdopen(os.open(self.path, flags, MODE), "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        return text
