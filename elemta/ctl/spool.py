"""``spool``: the spools that the daemon delivers from, its own and those of nodes that are gone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from elemta.ctl.context import CommandContext
from elemta.ctl.exit_codes import EX_OK
from elemta.ctl.text import Column

_SPOOLS = (
    Column("SPOOL"),
    Column("STATE"),
    Column("QUEUE", right=True),
    Column("WHY", spare=1, folds=True),
)


def show_list(invocation: CommandContext) -> int:
    answer = invocation.client().get("spools")
    if invocation.json:
        invocation.give(answer)
    else:
        invocation.give_table(_SPOOLS, [_row(spool) for spool in answer["spools"]])
    return EX_OK


def _row(spool: Mapping[str, Any]) -> Sequence[str]:
    messages = spool["messages"]
    return (
        spool["directory"],
        spool["state"],
        "" if messages is None else str(messages),
        spool["reason"],
    )


def adopt(invocation: CommandContext) -> int:
    # The daemon stands in another directory.
    directory = os.path.abspath(invocation.args.directory)
    answer = invocation.client().post("spools", "adopt", directory=directory)
    if invocation.json:
        invocation.give(answer)
        return EX_OK
    messages = answer["messages"] or 0
    invocation.say(f"{answer['directory']} adopted: {messages} {'message' if messages == 1 else 'messages'}")
    for left in answer["left"]:
        invocation.note(f"its node had adopted {left}, which has no owner now: adopt it, too")
    return EX_OK


def give_back(invocation: CommandContext) -> int:
    directory = os.path.abspath(invocation.args.directory)
    answer = invocation.client().post("spools", "give-back", directory=directory)
    return invocation.give_answer(answer, f"{answer['directory']} given back")
