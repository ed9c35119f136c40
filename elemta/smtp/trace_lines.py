"""What a watcher may see of a conversation: commands and replies, never a secret and never content."""

from __future__ import annotations

from typing import Protocol


class Trace(Protocol):
    """What follows one conversation while something watches."""

    def said(self, by_client: bool, text: str) -> None:
        """A side said a line."""

    def note(self, text: str) -> None:
        """Something happened that is no line."""

    def recipient(self, domain: str) -> None:
        """A recipient in this domain is about to be named."""

    def ended(self) -> None:
        """The conversation is over."""


HIDDEN = "[not shown]"

_MECHANISMS = frozenset({"PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER", "EXTERNAL"})
_WITH_ARGUMENT = frozenset({"HELO", "EHLO", "LHLO"})
_ADDRESSED = {"MAIL": "FROM:", "RCPT": "TO:"}


def shown_command(verb: str, argument: str, *, known: bool) -> str:
    """A command as a watcher may see it.

    A line that is no command may be a password that was sent at the wrong moment. So may be the argument of
    a command that takes none, or another one.
    """
    if not known:
        return f"{HIDDEN}: no command, {len(verb) + len(argument)} characters"
    shown = _shown_argument(verb, argument) if argument else ""
    return f"{verb} {shown}".rstrip()


def _shown_argument(verb: str, argument: str) -> str:
    if verb == "AUTH":
        mechanism, _, response = argument.partition(" ")
        shown = mechanism.upper() if mechanism.upper() in _MECHANISMS else HIDDEN
        return f"{shown} {HIDDEN}" if response and shown != HIDDEN else shown
    if verb in _ADDRESSED:
        return argument if argument.upper().startswith(_ADDRESSED[verb]) else HIDDEN
    if verb == "BDAT":
        return argument if argument.replace(" ", "").upper().removesuffix("LAST").isdigit() else HIDDEN
    return argument if verb in _WITH_ARGUMENT else HIDDEN


def domain_in(verb: str, argument: str) -> str | None:
    """The domain of the recipient that a command names; None where it names none."""
    if verb != "RCPT":
        return None
    address = argument.partition(":")[2].strip().partition(">")[0].lstrip("<")
    return address.rpartition("@")[2].strip() or None


def shown_line(verb: str, line: bytes) -> tuple[str, str | None]:
    """A command that this host sends, and the domain of the recipient in it."""
    text = line.partition(b"\r\n")[0].decode("utf-8", "replace")
    word, _, argument = text.partition(" ")
    if verb == "AUTH":
        # The lines behind the first are responses alone.
        return (shown_command("AUTH", argument, known=True) if word == "AUTH" else HIDDEN), None
    return text, domain_in(word, argument)
