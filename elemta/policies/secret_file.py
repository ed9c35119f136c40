"""Files with secrets that options name."""

from __future__ import annotations

from pathlib import Path

from elemta.policy import ConfigError, Fault


def read_secrets(key: str, file: Path) -> list[bytes]:
    """The lines that are not empty. Raises ConfigError, which names the option, where there is none."""
    try:
        lines = [line.strip() for line in file.read_bytes().splitlines()]
    except OSError as error:
        raise ConfigError([Fault("", key, f"{file}: {error.strerror}")]) from error
    if not any(lines):
        raise ConfigError([Fault("", key, f"{file} has no secret")])
    return [line for line in lines if line]
