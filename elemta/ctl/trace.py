"""``trace``: live conversations, until it is interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from elemta.ctl.context import CommandContext
from elemta.ctl.exit_codes import EX_OK

_SIGNS = {"client": ">", "server": "<", "": "-"}


def trace(invocation: CommandContext) -> int:
    args = invocation.args
    invocation.refuse_empty({"ip": "--ip", "to": "--to"})
    wanted: dict[str, Any] = {"one": args.one}
    if args.ip is not None:
        wanted["ip"] = args.ip
    if args.to is not None:
        wanted["to"] = args.to
    client = invocation.client()
    name = client.send("trace", body=wanted)["id"]
    invocation.note("watching; interrupt it to end")
    invocation.stderr.flush()
    ended = False
    try:
        while not ended:
            page = client.get("trace", name)
            ended = page["ended"]
            _give(invocation, page)
    finally:
        if not ended:
            # The answer that was waited for never comes over this connection.
            client.close()
            client.delete("trace", name)
    return EX_OK


def _give(invocation: CommandContext, page: Mapping[str, Any]) -> None:
    if invocation.json:
        if page["lines"] or page["lost"]:
            invocation.give(page)
    else:
        if page["lost"]:
            invocation.note(f"{page['lost']} lines were lost: they were not read in time")
        invocation.say(*map(trace_line, page["lines"]))
    invocation.stdout.flush()


def trace_line(line: Mapping[str, Any]) -> str:
    """A line of a conversation: its time, direction, conversation and peer, and what was said."""
    # In this host's zone, as the times of all other commands.
    at = datetime.fromtimestamp(line["at"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    where = f"{line['direction']:<3} {line['conversation']} {line['peer']}"
    return f"{at} {where} {_SIGNS[line['sent_by']]} {line['text']}"
