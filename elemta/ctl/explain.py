"""``explain``: what would happen to a client and its message."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from elemta.ctl.context import CommandContext
from elemta.ctl.exit_codes import EX_FAILED, EX_OK, CommandFailed
from elemta.ctl.limits import bound_in_words
from elemta.ctl.text import remaining

_STAGE = 10
_COMMANDS = {
    "connect": "the greeting",
    "helo": "EHLO",
    "starttls": "STARTTLS",
    "auth": "AUTH",
    "mail": "MAIL",
    "rcpt": "RCPT",
}
MAX_MESSAGE = 1024 * 1024
"""Octets of a message that the daemon takes for an explanation."""


def explain(invocation: CommandContext) -> int:
    args = invocation.args
    invocation.refuse_empty({"listener": "--listener", "user": "--user"})
    wanted: dict[str, Any] = {"ip": args.ip}
    for name in ("listener", "helo", "user"):
        if getattr(args, name) is not None:
            wanted[name] = getattr(args, name)
    if args.sender is not None:
        wanted["from"] = args.sender or "<>"
    if args.recipients:
        wanted["to"] = args.recipients
    if args.message is not None:
        content = _read(invocation, args.message)
        if len(content) > MAX_MESSAGE:
            raise CommandFailed(EX_FAILED, f"{args.message} has more than 1 MiB", "explain a smaller one")
        wanted["message_base64"] = base64.b64encode(content).decode("ascii")
    answer = invocation.client().send("explain", body=wanted)
    if invocation.json:
        invocation.give(answer)
    else:
        invocation.say(*_lines(answer))
        for each in answer["not_asked"]:
            invocation.note(each)
    return EX_OK if answer["accepted"] else EX_FAILED


def _read(invocation: CommandContext, name: str) -> bytes:
    if name == "-":
        return invocation.stdin.buffer.read(MAX_MESSAGE + 1)
    try:
        with Path(name).open("rb") as file:
            return file.read(MAX_MESSAGE + 1)
    except OSError as error:
        raise CommandFailed(EX_FAILED, f"{name} can't be read: {error.strerror or error}") from error


def _lines(answer: Mapping[str, Any]) -> Iterator[str]:
    for stage in answer["stages"]:
        yield f"{stage['stage']:<{_STAGE}}{_decision(stage)}"
        for limit in stage["limits"]:
            yield f"{'':<{_STAGE}}limit {_limit(limit)}"
        reply = stage["reply"][0] if stage["reply"] else "the connection is closed without a word"
        command = f"{stage['command']} → " if stage["command"] else "→ "
        yield f"{'':<{_STAGE}}{command}{reply}"
    for route in answer["routes"]:
        yield f"{'route':<{_STAGE}}{_route(route)}"
    if answer["held"] is not None:
        yield f"{'held':<{_STAGE}}{answer['held']}"
    if answer["discarded"]:
        yield f"{'discarded':<{_STAGE}}the client reads 250, and nothing is stored"
    reached = reached_stage(answer)
    if reached:
        yield f"{'so far':<{_STAGE}}{not_refused(reached)}"
        return
    for place, line in enumerate(answer["reply"].splitlines() or [""]):
        word = "" if place else "accepted" if answer["accepted"] else "refused"
        yield f"{word:<{_STAGE}}{line}"


def reached_stage(answer: Mapping[str, Any]) -> str:
    """The stage up to which a conversation without a message is accepted; "" where it is at its end."""
    last = str(answer["stages"][-1]["stage"])
    return last if answer["accepted"] and last != "message" else ""


def not_refused(stage: str) -> str:
    """What is known of a conversation that is accepted up to this stage."""
    if stage == "data":
        return "nothing is refused up to DATA: the client would be asked for the message"
    return f"nothing is refused up to {_COMMANDS.get(stage, stage)}, where the explanation ends"


def _decision(stage: Mapping[str, Any]) -> str:
    asked = ", ".join(_answer(answer) for answer in stage["policies"]) or "no policy is asked"
    if not stage["decided_by"]:
        return asked
    option = f" ({stage['option']})" if stage["option"] else ""
    return f"{asked}; decided by {stage['decided_by']}{option}"


def _answer(answer: Mapping[str, Any]) -> str:
    notes = [answer["mode"]] if answer["mode"] == "observe" else []
    if answer["failure"]:
        notes.append(f"failed: {answer['failure']}")
    return f"{answer['policy']}: {answer['verdict']}" + (f" [{', '.join(notes)}]" if notes else "")


def _limit(limit: Mapping[str, Any]) -> str:
    override = limit.get("override", "")
    if override.startswith("exempt"):
        return f"{limit['limit']} {limit['identity']}: {override}"
    used = ", ".join(bound_in_words(bound) for bound in limit["bounds"]) or "not known"
    passes = "passes"
    if not limit["passes"]:
        wait = limit["retry_after"]
        passes = "refuses" if limit["mode"] == "enforce" else "would refuse"
        passes += " for ever" if wait is None else f" for {remaining(wait)}"
    by = f" (override {override})" if override else ""
    return f"{limit['limit']} {limit['identity']}: {used}, {passes}{by}"


def _route(route: Mapping[str, Any]) -> str:
    where = f"{route['recipient']} by {route['route'] or 'no route now'}"
    if route["destination"] not in ("", route["route"]):
        where += f", destination {route['destination']}"
    if route["state"]:
        where += f", {route['state']}"
    return where + (f": {route['last_error']}" if route["last_error"] else "")
