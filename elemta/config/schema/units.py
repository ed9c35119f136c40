"""Factors of the numbers in the schema: sizes are in bytes, times in seconds."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024**2
MINUTE: Final = 60.0
HOUR: Final = 3600.0
DAY: Final = 86400.0
