"""Text for and from the servers that policies ask."""

from __future__ import annotations

from elemta.policy import Message, Services


def printable(text: str) -> str:
    """The text as it may stand in a reply, a request or a log: what is not printable becomes ``?``."""
    return "".join(char if char.isprintable() else "?" for char in text)


def add_field(message: Message, name: str, value: str, services: Services, server: str) -> None:
    """Add a field of a server's, unless it can't stand in a header: the next try would bring the same one."""
    try:
        message.add_header(name, value)
    except ValueError as error:
        services.log.warn("a field of {server}'s is left out: {reason}", server=server, reason=str(error))
