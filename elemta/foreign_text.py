"""Text that came from outside."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text as it may be logged and sent on: what is not printable becomes ``?``."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)
