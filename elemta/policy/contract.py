"""The version of the plugin contract, and how a plugin of another version is known."""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import signature
from typing import cast

CONTRACT_VERSION = "2.1"
"""The version of the plugin contract, MAJOR.MINOR."""

_VERSION = re.compile(r"([0-9]{1,4})(?:\.([0-9]{1,4}))?")


def contract_problem(wanted: object) -> str:
    """Why a plugin that names this contract can't be used; "" where it can.

    A plugin of an older contract works unchanged, so only a newer one is a problem.
    """
    found = _VERSION.fullmatch(wanted) if isinstance(wanted, str) else None
    if found is None:
        return f'its contract is no version such as "{CONTRACT_VERSION}": {wanted!r:.80}'
    major, minor = (int(part) for part in CONTRACT_VERSION.split("."))
    if (int(found[1]), int(found[2] or 0)) > (major, minor):
        return f"it needs contract {wanted}, and this Elemta has {CONTRACT_VERSION}: upgrade Elemta"
    return ""


def takes(method: object, number: int) -> bool:
    """Whether a method can be called with so many arguments."""
    try:
        signature(cast(Callable[..., object], method)).bind(*range(number))
    except (TypeError, ValueError):
        return False
    return True
