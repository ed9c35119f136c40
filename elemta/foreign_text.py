"""Text that came from outside: what of it may be shown, and whether it is an IP address."""

from __future__ import annotations

from ipaddress import ip_address


def printable(text: str) -> str:
    """The text as it may be logged and sent on: what is not printable becomes ``?``."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def is_ip_address(text: str) -> bool:
    """Whether the text is an IPv4 or IPv6 address, without brackets."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
