"""``limits``: the identities that are limited, by which limit, how full, until when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elemta.config.values import format_duration
from elemta.ctl.context import CommandContext
from elemta.ctl.exit_codes import EX_USAGE, CommandFailed
from elemta.ctl.text import Column, remaining

_LIMITS = (
    Column("LIMIT"),
    Column("COUNTS"),
    Column("PER", spare=5, folds=True),
    Column("RATES", spare=6, folds=True),
    Column("SCOPE", spare=2),
    Column("THEN", spare=1),
    Column("VALKEY DOWN", spare=4),
    Column("MODE", spare=3),
)
_FILLS = (
    Column("LIMIT"),
    Column("IDENTITY", spare=1, folds=True),
    Column("USED", spare=2, folds=True),
    Column("PASSES"),
    Column("REFUSED BY", spare=3, folds=True),
)
_CLEAR = "\x1b[H\x1b[2J"
WATCH_SECONDS = 2.0


def show_list(invocation: CommandContext) -> int:
    answer = invocation.client().get("limits")
    rows = [_limit(limit) for limit in answer["limits"]]
    return invocation.give_listing(answer, _LIMITS, rows, "no limit")


def _limit(limit: Mapping[str, Any]) -> Sequence[str]:
    return (
        limit["name"],
        limit["counts"],
        " ".join(limit["per"]) or "all",
        " ".join(limit["rates"]),
        limit["scope"],
        limit["on_exceed"],
        limit["when_valkey_is_down"],
        limit["mode"],
    )


def top(invocation: CommandContext) -> int:
    args = invocation.args
    invocation.refuse_empty({"limit": "LIMIT"})
    query = {"limit": args.limit} if args.limit else {}
    client = invocation.client()
    while True:
        answer = client.get("limits", "top", count=str(args.count), **query)
        if args.watch and not invocation.json and invocation.stdout.isatty():
            invocation.stdout.write(_CLEAR)
        done = _give(invocation, answer, "nothing is counted")
        if not args.watch:
            return done
        invocation.stdout.flush()
        # Until the operator interrupts it.
        invocation.runtime.sleep(WATCH_SECONDS)


def show(invocation: CommandContext) -> int:
    identity = _identity(invocation)
    answer = invocation.client().get("limits", "show", id=identity)
    return _give(invocation, answer, f"nothing is counted for {identity}")


def _identity(invocation: CommandContext) -> str:
    """What the daemon is asked for: the identity, behind the limit that was named."""
    name, identity = invocation.args.of, str(invocation.args.id)
    if name is None:
        return identity
    known = [limit["name"] for limit in invocation.client().get("limits")["limits"]]
    if name not in known:
        raise CommandFailed(EX_USAGE, f'no limit is called "{name}": there are {", ".join(known) or "none"}')
    return f"{name}:{identity}"


def _give(invocation: CommandContext, answer: Mapping[str, Any], nothing: str) -> int:
    done = invocation.give_listing(answer, _FILLS, [_fill(fill) for fill in answer["limits"]], nothing)
    if invocation.json:
        return done
    invocation.note_silent(answer.get("nodes", ()))
    if answer["counted_in"] == "local":
        invocation.say(*_shares(answer["limits"]))
        invocation.note("Valkey is away: what other nodes count is not known")
    elif not answer["complete"]:
        invocation.note("there is more than could be looked at")
    return done


def _fill(fill: Mapping[str, Any]) -> Sequence[str]:
    return (
        f"{fill['limit']} on {fill['node_id']}" if fill.get("node_id") else fill["limit"],
        fill["identity"],
        ", ".join(bound_in_words(bound) for bound in fill["bounds"]) + _override(fill),
        when_passes(fill),
        " ".join(fill["refused_by"]),
    )


def _override(fill: Mapping[str, Any]) -> str:
    words = fill.get("override")
    if not words:
        return ""
    return " (exempt)" if words == "exempt" else " (override)"


def _shares(fills: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each limit: how much of it this node admits by itself."""
    lines = {}
    for fill in fills:
        divided = [bound for bound in fill["bounds"] if bound["share"] is not None]
        parts = [f"{bound['share']} of {bound['limit']}" for bound in divided]
        share = f", share {', '.join(parts)}" if parts else ""
        lines[fill["limit"]] = f"{fill['limit']}: as seen by this node alone{share}"
    return list(lines.values())


def bound_in_words(bound: Mapping[str, Any]) -> str:
    """How full a limit's bound is: ``3/100 in 1m``."""
    window = bound["window"]
    most = bound["limit"] if bound.get("share") is None else bound["share"]
    return f"{bound['used']}/{most}" + ("" if window is None else f" in {format_duration(window)}")


def when_passes(fill: Mapping[str, Any]) -> str:
    """When one more would pass: of a limit that is only observed now, and else when."""
    wait = fill["retry_after"]
    if wait == 0:
        return "now"
    if wait is None:
        return "never"
    leases = fill["counts"] == "open_connections"
    passes = "when one closes" if leases else f"in {remaining(wait)}"
    return passes if fill["mode"] == "enforce" else f"now (else {passes})"


def reset(invocation: CommandContext) -> int:
    answer = invocation.client().post("limits", "reset", id=_identity(invocation))
    lines = (f"{done['limit']}: {done['identity']} reset" for done in answer["reset"])
    return invocation.give_answer(answer, *lines)
