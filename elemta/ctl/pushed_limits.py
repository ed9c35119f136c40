"""``limits push``, ``limits history`` and ``limits rollback``: limits as data that the fleet shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from elemta.ctl.client import DaemonRefused
from elemta.ctl.context import CommandContext
from elemta.ctl.exit_codes import EX_CONFIG, EX_FAILED, EX_OK, EX_USAGE, CommandFailed
from elemta.ctl.text import Column
from elemta.errors import Fault
from elemta.limits.pushed_limits import MAX_TEXT

_VERSIONS = (
    Column("VERSION", right=True),
    Column("MADE"),
    Column("BY", spare=2, folds=True),
    Column("LIMITS", spare=1, folds=True),
    Column("NOTE", spare=3, folds=True),
)
_REFUSED = (
    Column("LIMIT"),
    Column("IDENTITY", spare=1, folds=True),
    Column("USED"),
    Column("RATES", spare=2, folds=True),
)
_SHOWN = 20


def push(invocation: CommandContext) -> int:
    args = invocation.args
    return _change(invocation, ("limits", "push"), {"toml": _text(invocation, args.file)}, args.file)


def rollback(invocation: CommandContext) -> int:
    return _change(invocation, ("limits", "rollback"), {"version": invocation.args.version}, "the version")


def _text(invocation: CommandContext, name: str) -> str:
    try:
        if name == "-":
            text = invocation.stdin.read(MAX_TEXT + 1)
        else:
            with Path(name).open(encoding="utf-8-sig") as file:
                text = file.read(MAX_TEXT + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8"
        raise CommandFailed(EX_FAILED, f"{name} can't be read: {reason}") from error
    if len(text.encode(errors="replace")) > MAX_TEXT:
        # The daemon ends a connection that sends much more, and that says nothing.
        raise CommandFailed(EX_FAILED, f"{name} has more than {MAX_TEXT} octets")
    return text


def _change(invocation: CommandContext, path: Sequence[str], body: dict[str, Any], file: str) -> int:
    """Show what it changes, ask, and do it."""
    args = invocation.args
    if args.note:
        body["note"] = args.note
    asks = not (args.yes or args.dry_run)
    if asks and (invocation.json or not invocation.stdin.isatty()):
        raise CommandFailed(EX_USAGE, f"limits {path[-1]} without a terminal needs --yes, or --dry-run")
    report = _send(invocation, path, {**body, "dry_run": True}, file)
    if invocation.json and args.dry_run:
        invocation.give(report)
        return EX_OK
    if not invocation.json:
        _say(invocation, report)
    if args.dry_run:
        return EX_OK
    if asks and not invocation.agreed("Let these hold in the whole fleet?"):
        invocation.say("nothing was changed")
        return EX_FAILED
    # In place of the version that was looked at, and of no other.
    made = _send(invocation, path, {**body, "base": report["base"]}, file)
    return invocation.give_answer(made, f"version {made['version']} holds in the fleet")


def _send(invocation: CommandContext, path: Sequence[str], body: Mapping[str, Any], file: str) -> Any:
    try:
        return invocation.client().send(*path, body=body)
    except DaemonRefused as refused:
        found = refused.content.get("faults")
        if not found:
            raise
        faults = [Fault(file, each["key"], each["problem"], each["hint"]) for each in found]
        raise CommandFailed(EX_CONFIG, str(refused.content["error"]), faults=faults) from refused


def _say(invocation: CommandContext, report: Mapping[str, Any]) -> None:
    changes = [
        f"{word}: {', '.join(report[word])}" for word in ("added", "removed", "changed") if report[word]
    ]
    invocation.say(*(changes or ["no limit is another one than now"]))
    refused = report["refused_then"]
    if not refused:
        invocation.say("no identity that passes now would be refused")
        return
    invocation.say(
        f"{len(refused)} {'identity' if len(refused) == 1 else 'identities'} would be refused now:"
    )
    rows = [
        (each["limit"], each["identity"], ", ".join(map(str, each["used"])), " ".join(each["rates"]))
        for each in refused[:_SHOWN]
    ]
    invocation.give_table(_REFUSED, rows)
    if len(refused) > _SHOWN or not report["complete"]:
        invocation.note("there may be more than are shown")


def history(invocation: CommandContext) -> int:
    answer = invocation.client().get("limits", "history")
    if invocation.json:
        invocation.give(answer)
    elif answer["versions"]:
        invocation.give_table(_VERSIONS, [_version(each) for each in answer["versions"]])
        if answer["running"] != answer["version"]:
            running = f"version {answer['running']}" if answer["running"] else "the limits of its own file"
            words = f"this node runs {running}, and the fleet's version is {answer['version']}"
            invocation.note(f"{words}: the log, or [limits] shared, says why")
    else:
        invocation.say("no limits were pushed: each node's own file holds")
    return EX_OK


def _version(version: Mapping[str, Any]) -> Sequence[str]:
    limits = version["limits"]
    made = datetime.fromtimestamp(version["made_at"]).astimezone().strftime("%Y-%m-%d %H:%M")
    return (
        f"{version['version']}{' *' if version['in_force'] else ''}",
        made,
        version["author"],
        "the files' own" if limits is None else " ".join(limits) or "none",
        version["note"],
    )
