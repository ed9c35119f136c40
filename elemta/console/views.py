"""What the pages show."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from elemta.console.visit import Page, Visit, segment
from elemta.ops.admin_errors import AdminRefusal

PAGE_ROWS = "100"
# What a page acts on at once.
MOST_TOGETHER = 1000
QUEUE_FILTERS = ("state", "from", "to")
ACTIONS = ("hold", "release", "retry", "bounce", "delete")


async def overview(visit: Visit) -> Page:
    """The daemon at one moment, and what needs attention first."""
    status = await visit.get("/v1/status")
    nodes = await visit.get("/v1/nodes")
    top = await visit.get("/v1/limits/top", {"count": "10"})
    refused = [each for each in top["limits"] if each["retry_after"] != 0 and each["mode"] == "enforce"]
    return Page(
        "overview.html",
        {"status": status, "nodes": nodes, "refused": refused, "attention": tuple(_attention(status, nodes))},
    )


def _attention(status: Mapping[str, Any], nodes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an operator looks at first: how grave it is, and what it is."""
    found = [("bad", f"This node takes no mail: {why}.") for why in status["not_ready"]]
    valkey = status["valkey"]
    if valkey is not None and status["limiter"] == "local":
        why = f": {valkey['trouble']}" if valkey["trouble"] else ""
        found.append(("bad", f"Valkey is away, so limits are counted by this node alone{why}."))
    if not status["spool"]["healthy"]:
        found.append(("bad", "The disk of the spool has failed."))
    for each in status["certificates"]:
        if each["days_left"] < 14:
            grave = "bad" if each["days_left"] < 3 else "warn"
            names = ", ".join(each["names"])
            found.append((grave, f"The certificate of {names} has {each['days_left']} days left."))
    if not nodes["complete"] and valkey is not None:
        found.append(("warn", "Other nodes can't be seen now."))
    if status["needs_restart"]:
        found.append(("warn", f"Waiting for a restart: {', '.join(status['needs_restart'])}."))
    found += [("warn", f"{each['key']}: {each['problem']}") for each in status["notes"]]
    return found


async def queue(visit: Visit) -> Page:
    """A page of the queue; its filters are in the URL."""
    filters = _filters(visit.query)
    page = await visit.get(
        "/v1/queue", {**filters, "limit": PAGE_ROWS, "after": visit.query.get("after", "")}
    )
    stats = await visit.get("/v1/queue/stats")
    following = urlencode({**filters, "after": page["next"]}) if page["next"] else ""
    values = {
        "messages": page["messages"],
        "stats": stats,
        "filters": {name: filters.get(name, "") for name in QUEUE_FILTERS},
        "following": following,
        "done": visit.query.get("done", ""),
        "actions": ACTIONS,
        "extra": QUEUE_FILTERS[3:],
    }
    return Page("queue.html", values)


def _filters(given: Mapping[str, str]) -> dict[str, str]:
    return {name: given[name].strip() for name in QUEUE_FILTERS if given.get(name, "").strip()}


async def matching(visit: Visit, filters: Mapping[str, str]) -> tuple[list[str], bool]:
    """The ids of messages that filters let through, and whether these are all."""
    ids: list[str] = []
    after = ""
    while True:
        page = await visit.get("/v1/queue", {**filters, "limit": "1000", "after": after})
        ids += [message["queue_id"] for message in page["messages"]]
        if page["next"] is None or len(ids) >= MOST_TOGETHER:
            complete = page["next"] is None and len(ids) <= MOST_TOGETHER
            return ids[:MOST_TOGETHER], complete
        after = page["next"]


async def confirm(visit: Visit) -> Page:
    """How many messages an action would change, before it does."""
    action = visit.query.get("action", "")
    if action not in ACTIONS:
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, "unknown action", f"known: {', '.join(ACTIONS)}")
    filters = _filters(visit.query)
    ids, complete = await matching(visit, filters)
    values = {"action": action, "filters": filters, "count": len(ids), "complete": complete}
    return Page("confirm.html", values)


async def message(visit: Visit) -> Page:
    """One message: where it came from, where it goes, and what was tried."""
    record = await visit.get(f"/v1/queue/{segment(visit.parts['id'])}")
    return Page("message.html", {"message": record, "done": visit.query.get("done", ""), "actions": ACTIONS})


async def limits(visit: Visit) -> Page:
    """The board of limits: the fullest identities first, and the limits in force."""
    chosen = visit.query.get("limit", "")
    sought = visit.query.get("id", "").strip()
    in_force = await visit.get("/v1/limits")
    if sought:
        listing = await visit.get("/v1/limits/show", {"id": sought})
    else:
        listing = await visit.get("/v1/limits/top", {"count": PAGE_ROWS, "limit": chosen})
    values = {
        "limits": [_with_fill(each) for each in listing["limits"]],
        "counted_in": listing["counted_in"],
        "complete": listing["complete"],
        "in_force": in_force["limits"],
        "chosen": chosen,
        "sought": sought,
        "done": visit.query.get("done", ""),
    }
    return Page("limits.html", values)


def _with_fill(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An identity with its fullest bound in percent."""
    fullest = max(
        (bound["used"] / bound["limit"] for bound in entry["bounds"] if bound["limit"]), default=0.0
    )
    return {**entry, "percent": min(100, round(100 * fullest))}


async def fleet(visit: Visit) -> Page:
    """The nodes."""
    return Page("fleet.html", {"listing": await visit.get("/v1/nodes")})


async def policies(visit: Visit) -> Page:
    """The chain of policies and the plugins that are installed."""
    status = await visit.get("/v1/status")
    plugins = await visit.get("/v1/plugins")
    return Page("policies.html", {"chain": status["policies"], "plugins": plugins["plugins"]})


async def configuration(visit: Visit) -> Page:
    """The configuration in force, without secrets."""
    status = await visit.get("/v1/status")
    config = await visit.get("/v1/config")
    return Page("configuration.html", {"config": config, "status": status})
