"""The audit records: each change that a person or a program asks for, and what came of it."""

from __future__ import annotations

from twisted.logger import Logger

from elemta.auth.roles import Caller

_log = Logger()

MAX_TARGET = 4096


def change_made(caller: Caller, action: str, target: str) -> None:
    """Log a change that was carried out."""
    _log.info(
        "a change was made",
        event="audit.change_made",
        actor=caller.actor,
        role=caller.role.value,
        action=action,
        target=target[:MAX_TARGET],
    )


def change_refused(caller: Caller, action: str, target: str, *, status: int, problem: str) -> None:
    """Log a change that was asked for and not carried out, or not as a whole."""
    _log.warn(
        "a change was refused",
        event="audit.change_refused",
        actor=caller.actor,
        role=caller.role.value,
        action=action,
        target=target[:MAX_TARGET],
        status=status,
        problem=problem,
    )
