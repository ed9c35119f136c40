"""Enums that are looked up for every command or message."""

from __future__ import annotations

import enum


class FastEnum(enum.Enum):
    """Its members are single objects, and hashed as such.

    The hash of `Enum` runs Python code at each look-up in a dictionary.
    """

    __hash__ = object.__hash__
