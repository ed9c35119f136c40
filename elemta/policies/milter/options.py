"""The options of ``milter``."""

from __future__ import annotations

from dataclasses import dataclass

from elemta.policy import setting


@dataclass(frozen=True, slots=True)
class MilterOptions:
    """The keys of [policy.milter]."""

    endpoint: str = setting(
        "unix:/run/opendkim/opendkim.sock",
        "Where the milter listens, as a Twisted client endpoint.",
        not_empty=True,
    )
