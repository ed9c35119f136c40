"""The pages about mail: the queue, one message, what is found, and destinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from elemta.console.visit import Page, Visit, own_node, segment, silent_nodes
from elemta.ctl.queue import STATES_OF_ALL
from elemta.errors import UnknownMessage
from elemta.ops.admin_errors import AdminRefusal, refusal_of

PAGE_ROWS = "100"
# What a page acts on at once.
MOST_TOGETHER = 1000
QUEUE_FILTERS = ("state", "from", "to")
MORE_FILTERS = ("destination", "reason", "older_than")
ACTIONS = ("hold", "release", "retry", "bounce", "delete")


async def queue(visit: Visit) -> Page:
    """A page of the queue; its filters are in the URL."""
    filters = _filters(visit, visit.query)
    page = await visit.get(
        "/v1/queue", {**filters, "limit": PAGE_ROWS, "after": visit.query.get("after", "")}
    )
    stats = await visit.get("/v1/queue/stats")
    following = urlencode({**filters, "after": page["next"]}) if page["next"] else ""
    values = {
        "messages": page["messages"],
        "problems": page.get("problems", ()),
        "stats": stats,
        "filters": {name: filters.get(name, "") for name in known_filters(visit)},
        "following": following,
        "done": visit.query.get("done", ""),
        "actions": ACTIONS,
        "extra": known_filters(visit)[len(QUEUE_FILTERS) :],
    }
    return Page("queue.html", values)


def known_filters(visit: Visit) -> tuple[str, ...]:
    """The filters that the listing of the queue takes."""
    more = tuple(name for name in MORE_FILTERS if visit.takes("GET", "/v1/queue", name))
    return (*QUEUE_FILTERS, *more)


def _filters(visit: Visit, given: Mapping[str, str]) -> dict[str, str]:
    return {name: given[name].strip() for name in known_filters(visit) if given.get(name, "").strip()}


def chosen_action(visit: Visit, given: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """An action, and the filters for the messages that it is about. Raises :class:`AdminRefusal`.

    A misspelt filter must not mean all.
    """
    action, known = given.get("action", ""), known_filters(visit)
    if action not in ACTIONS:
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, "unknown action", f"known: {', '.join(ACTIONS)}")
    for name in given:
        if name not in (*known, "action", "csrf"):
            problem = f"unknown filter {name[:64]!r}"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem, f"known: {', '.join(known)}")
    return action, _filters(visit, given)


def states_of(action: str, filters: Mapping[str, str]) -> Sequence[str]:
    """The states of the messages that an action is for: as in ``elemtactl``; "" stands for any."""
    return (filters["state"],) if "state" in filters else STATES_OF_ALL[action]


async def matching(visit: Visit, action: str, filters: Mapping[str, str]) -> tuple[list[str], bool]:
    """The ids of messages that an action is for and filters let through, and whether these are all."""
    # A message may go from one state to the next meanwhile.
    ids: dict[str, None] = {}
    for state in states_of(action, filters):
        after: str | None = ""
        while after is not None:
            given = {**filters, "state": state, "limit": "1000", "after": after}
            page = await visit.get("/v1/queue", given)
            ids |= dict.fromkeys(message["queue_id"] for message in page["messages"])
            after = page["next"]
            if len(ids) > MOST_TOGETHER:
                return list(ids)[:MOST_TOGETHER], False
    return list(ids), True


async def confirm(visit: Visit) -> Page:
    """How many messages an action would change, before it does."""
    action, filters = chosen_action(visit, visit.query)
    ids, complete = await matching(visit, action, filters)
    states = "" if "state" in filters else ", ".join(states_of(action, filters))
    values = {"action": action, "filters": filters, "count": len(ids), "complete": complete}
    return Page("confirm.html", {**values, "states": states})


async def message(visit: Visit) -> Page:
    """One message: where it came from, where it goes, what was tried, and how it ended."""
    queue_id = visit.parts["id"]
    life = await _life(visit, queue_id)
    try:
        record = await visit.get(f"/v1/queue/{segment(queue_id)}")
    except (UnknownMessage, AdminRefusal) as error:
        # It may be gone from the queue, and is in the history then, or in that of another node.
        if life is None or refusal_of(error).status is not HTTPStatus.NOT_FOUND:
            raise
        record = None
    values = {
        "queue_id": queue_id,
        "message": record,
        "life": life,
        "done": visit.query.get("done", ""),
        "actions": ACTIONS,
        "readable": visit.calls.has("GET", "/v1/queue/{queue_id}/content"),
    }
    return Page("message.html", values)


async def _life(visit: Visit, queue_id: str) -> Any:
    """What the history has of a message; None where it has nothing."""
    if not visit.calls.has("GET", "/v1/find"):
        return None
    found = await visit.get("/v1/find", {"text": queue_id})
    own = [each for each in found["messages"] if each["queue_id"] == queue_id.upper()]
    return own[0] if own else None


async def content(visit: Visit) -> Page:
    """The header of a message, or all of it, as text."""
    queue_id = visit.parts["id"]
    whole = visit.query.get("whole", "") == "1"
    query = {"headers": "false" if whole else "true", "offset": visit.query.get("offset", "")}
    found = await visit.get(f"/v1/queue/{segment(queue_id)}/content", query)
    return Page("content.html", {"content": found, "whole": whole})


async def find(visit: Visit) -> Page | str:
    """What became of messages, by anything that a person knows of them."""
    text = visit.query.get("text", "").strip()
    found: Any = {"messages": [], "next": None}
    if text:
        found = await visit.get("/v1/find", {"text": text, "after": visit.query.get("after", "")})
    following = urlencode({"text": text, "after": found["next"]}) if found["next"] else ""
    values = {"text": text, "messages": found["messages"], "following": following}
    return Page(
        "find.html", {**values, "many": len(found.get("nodes", ())) > 1, "silent": silent_nodes(found)}
    )


async def destinations(visit: Visit) -> Page:
    """Where mail waits, since when, why, and what paces it."""
    found = await visit.get("/v1/destinations", {"limit": PAGE_ROWS, "after": visit.query.get("after", "")})
    following = urlencode({"after": found["next"]}) if found.get("next") else ""
    values = {
        "destinations": found["destinations"],
        "following": following,
        "done": visit.query.get("done", ""),
        "many": len(found.get("nodes", ())) > 1,
        "own": own_node(found),
        "silent": silent_nodes(found),
    }
    return Page("destinations.html", values)
