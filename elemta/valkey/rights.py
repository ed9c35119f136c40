"""What Valkey's access lists refuse: the right that is missing, in the words of an ACL rule."""

from __future__ import annotations

import re
from collections.abc import Callable

from twisted.logger import Logger

from elemta.errors import ValkeyError, ValkeyFailure
from elemta.valkey.resp import kind_of

_log = Logger()

SAY_AGAIN_SECONDS = 60.0
"""A right that is still missing is logged again after so many seconds."""

_MOST_REMEMBERED = 256
# A script is refused in other words: "ERR ACL failure in script: … script: on @user_script:2."
_DENIAL = re.compile(r"NOPERM |ERR ACL failure in script: ")
_COMMAND = re.compile(r"User (?P<user>.+?) has no permissions to run the '(?P<command>[^']*)' command")
_GLOB = str.maketrans({sign: f"\\{sign}" for sign in "*?[]\\"})


class Rights:
    """The rights of one user, as far as its refusals tell of them.

    ``prefix`` is what all keys of ours begin with. ``seconds`` is a steady clock.
    """

    def __init__(self, user: str, prefix: str, seconds: Callable[[], float]) -> None:
        self._user = user or "default"
        self._keys = f"~{prefix.translate(_GLOB)}*"
        self._seconds = seconds
        self._said: dict[str, float] = {}

    def trouble(self, words: str) -> ValkeyError:
        """What an error reply comes to; a missing right is named, and logged once a minute."""
        right = self.missing(words)
        if right is None:
            return ValkeyError(kind_of(words), words)
        now = self._seconds()
        if now - self._said.get(right, -SAY_AGAIN_SECONDS) >= SAY_AGAIN_SECONDS:
            if len(self._said) >= _MOST_REMEMBERED:
                self._said.clear()
            self._said[right] = now
            _log.error(
                "Valkey's access list refuses what Elemta needs",
                event="valkey.denied",
                user=self._user,
                right=right,
                reason=words,
            )
        return ValkeyError(ValkeyFailure.DENIED, f"the user {self._user} lacks the right {right} ({words})")

    def missing(self, words: str) -> str | None:
        """The rule that would allow it; None where no right is missing."""
        if _DENIAL.match(words) is None:
            return None
        command = _COMMAND.search(words)
        if command is not None:
            return f"+{command['command']}"
        if "a channel" in words:
            return "&*"
        return self._keys if "a key" in words else None
