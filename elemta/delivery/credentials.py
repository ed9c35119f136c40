"""The file that holds what a route logs in with: one line ``user:password``."""

from __future__ import annotations

from pathlib import Path

from elemta.errors import ConfigError, Fault
from elemta.smtp.sasl import Credentials

_LONGEST = 4096


def read_credentials(path: str, key: str) -> Credentials:
    """Read a file of credentials; ``key`` names the setting that says where it is.

    Raises :class:`~elemta.errors.ConfigError` without anything of what is in the file.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(_LONGEST + 1)
    except OSError as error:
        raise ConfigError([Fault(path, key, f"can't be read: {error.strerror or error}")]) from error
    problem = "is longer than 4096 octets" if len(text) > _LONGEST else ""
    line = text.removesuffix(b"\n").removesuffix(b"\r")
    username, colon, password = line.partition(b":")
    try:
        name = username.decode("utf-8")
    except UnicodeDecodeError:
        name, problem = "", problem or "has a user name that is not UTF-8"
    if not problem and (not colon or not name or not password):
        problem = "must hold one line user:password"
    if not problem and any(octet < 0x20 or octet == 0x7F for octet in line):
        problem = "must hold one line user:password, without control characters and without a second line"
    if problem:
        raise ConfigError([Fault(path, key, problem)])
    return Credentials(name, password)
