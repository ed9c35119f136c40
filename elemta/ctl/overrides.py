"""``limits override`` and ``limits overrides``: other rates for one identity, for a while."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elemta.ctl.context import CommandContext
from elemta.ctl.exit_codes import EX_USAGE, CommandFailed
from elemta.ctl.text import Column, remaining

_OVERRIDES = (
    Column("LIMIT"),
    Column("IDENTITY", spare=1, folds=True),
    Column("RATES", spare=2, folds=True),
    Column("FOR"),
    Column("BY", spare=3, folds=True),
    Column("WHY", spare=4, folds=True),
)


def show_list(invocation: CommandContext) -> int:
    answer = invocation.client().get("limits", "overrides")
    rows = [_row(each) for each in answer["overrides"]]
    return invocation.give_listing(answer, _OVERRIDES, rows, "no override")


def _row(override: Mapping[str, Any]) -> Sequence[str]:
    return (
        override["limit"],
        override["identity"],
        _rates(override),
        remaining(override["left"]),
        override["author"],
        override["note"],
    )


def _rates(override: Mapping[str, Any]) -> str:
    return "exempt" if override["exempt"] else " ".join(override["rates"])


def change(invocation: CommandContext) -> int:
    """Make an override, or remove it."""
    args = invocation.args
    if args.remove:
        if args.exempt or args.rates or args.duration or args.note:
            raise CommandFailed(EX_USAGE, "--remove goes with no other option")
        answer = invocation.client().call("DELETE", "limits", "overrides", limit=args.limit, identity=args.id)
        return invocation.give_answer(answer, f"{args.limit}: {args.id} has the limit's own rates again")
    if bool(args.rates) == args.exempt:
        raise CommandFailed(EX_USAGE, "name either --exempt or --rates")
    if not args.duration:
        raise CommandFailed(EX_USAGE, "name how long it holds: --for DURATION, such as --for 1h")
    query = {"rates": ",".join(args.rates)} if args.rates else {"exempt": "true"}
    if args.note:
        query["note"] = args.note
    answer = invocation.client().post(
        "limits", "overrides", limit=args.limit, identity=args.id, **{"for": args.duration}, **query
    )
    words = f"{answer['limit']}: {answer['identity']} {_rates(answer)} for {remaining(answer['left'])}"
    return invocation.give_answer(answer, words)
