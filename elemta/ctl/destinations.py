"""``destinations``: where mail waits, why, and what is done about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from elemta.ctl.client import AdminClient, nodes_of
from elemta.ctl.context import CommandContext
from elemta.ctl.text import Column, age, due

_PAGE = 500
_DESTINATIONS = (
    Column("NAME"),
    Column("STATE"),
    Column("WAITING", right=True),
    Column("OLDEST", right=True),
    Column("NEXT", right=True),
    Column("ROUTE", spare=3, folds=True),
    Column("LIMIT", spare=1, folds=True),
    Column("LAST ERROR", spare=2, folds=True),
)


def show_list(invocation: CommandContext) -> int:
    pages = list(invocation.client().pages("destinations", limit=str(_PAGE)))
    nodes = nodes_of(pages)
    found = [each for page in pages for each in page["destinations"]]
    found.sort(key=lambda each: -each["waiting"])
    now = invocation.runtime.wall()
    many = len(nodes) > 1
    columns = (*_DESTINATIONS, Column("NODE", whole=True)) if many else _DESTINATIONS
    rows = [(*_row(each, now), each["node_id"]) if many else _row(each, now) for each in found]
    document = {"destinations": found, "nodes": nodes}
    done = invocation.give_listing(document, columns, rows, "no mail waits")
    if not invocation.json:
        invocation.note_silent(nodes)
    return done


def destinations(client: AdminClient) -> Iterator[Mapping[str, Any]]:
    """All destinations, page by page."""
    return client.entries("destinations", limit=str(_PAGE))


def _row(destination: Mapping[str, Any], now: float) -> Sequence[str]:
    oldest = destination["oldest_at"]
    return (
        destination["name"],
        destination["state"],
        str(destination["waiting"]),
        "" if oldest is None else age(now - oldest),
        due(destination["next_attempt_at"], now),
        "" if destination["route"] == destination["name"] else destination["route"],
        destination["paced_by"] or "",
        destination["last_error"],
    )


_DONE = {"probe": "one attempt is made now", "pause": "paused", "resume": "resumed"}


def change(invocation: CommandContext) -> int:
    """``destinations probe|pause|resume NAME``."""
    action = invocation.args.action
    answer = invocation.client().post("destinations", invocation.args.name, action)
    waiting = answer["waiting"]
    messages = "message waits" if waiting == 1 else "messages wait"
    # In a fleet: it is done on the node that was asked, and nowhere else.
    node = f" on node {answer['node_id']}" if "node_id" in answer else ""
    # By mx: each domain is a destination, also one that is mistyped.
    idle = action == "probe" and not waiting
    done = "no mail waits, nothing is attempted" if idle else f"{_DONE[action]}; {waiting} {messages}"
    return invocation.give_answer(answer, f"{answer['name']}{node}: {done}")
