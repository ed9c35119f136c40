"""A configuration from a text, as a file of it would be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from elemta.config import Config, load
from elemta.errors import ConfigError

Read = Callable[..., Config]
Complaints = Callable[..., list[str]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Load a text with an environment."""

    def read(text: str, environ: Mapping[str, str] | None = None) -> Config:
        path = tmp_path / "elemta.toml"
        path.write_text(text, encoding="utf-8")
        return load(str(path), environ or {})

    return read


@pytest.fixture
def complaints(read: Read, tmp_path: Path) -> Complaints:
    """The faults of a text, each as an operator sees it, without the directory of the file."""

    def complaints(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read(text, environ)
        return [str(fault).replace(f"{tmp_path}/", "") for fault in caught.value.faults]

    return complaints
