"""Limits as shared data: sets of limits that were pushed to the fleet, version after version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from elemta.config import Config, load_limits

MAX_TEXT = 256 * 1024
"""Octets of one set of limits."""


@dataclass(frozen=True, slots=True)
class PushedLimits:
    """One version: ``toml`` has its ``[[limit]]`` tables; None where each node's own file is to hold.

    ``made_at`` is seconds since the epoch, ``author`` pushed it, and ``note`` says why.
    """

    version: int
    toml: str | None
    author: str = ""
    note: str = ""
    made_at: float = 0.0

    @property
    def source(self) -> str:
        """Its name in faults."""
        return f"pushed limits, version {self.version}"

    def to_json(self) -> str:
        """As it is kept; :meth:`of_json` reads it. The version is beside it."""
        fields = {"toml": self.toml, "author": self.author, "note": self.note, "made_at": self.made_at}
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def of_json(cls, version: int, text: str) -> PushedLimits | None:
        """None for what no node of this version would write."""
        try:
            found: Mapping[str, Any] = json.loads(text)
            toml = found["toml"]
            if toml is not None and not isinstance(toml, str):
                return None
            author, note = str(found.get("author", "")), str(found.get("note", ""))
            return cls(version, toml, author, note, float(found.get("made_at", 0.0)))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None


def with_pushed(config: Config, pushed: PushedLimits | None) -> Config:
    """The configuration with the limits that hold: the pushed ones, unless it is to share none.

    Raises :class:`~elemta.errors.ConfigError` where they can't hold beside its other settings.
    """
    if pushed is None or pushed.toml is None or not config.limit_sharing.shared:
        return config
    return replace(config, limits=load_limits(pushed.toml, pushed.source, config))
