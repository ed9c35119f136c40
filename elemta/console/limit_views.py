"""The pages about limits and verdicts: the board of limits, and what would happen to a client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from ipaddress import ip_network
from typing import Any

from elemta.console.limit_networks import groups_by_network, percent_full, wider_networks
from elemta.console.mail_views import PAGE_ROWS
from elemta.console.pushed_limits import pushed_history
from elemta.console.visit import Page, Visit, silent_nodes
from elemta.ctl.explain import not_refused, reached_stage
from elemta.ip import IPNetwork
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Json

MOST_IDENTITIES = "1000"


async def limits(visit: Visit) -> Page:
    """The board of limits: the fullest identities first, and the limits in force."""
    chosen = visit.query.get("limit", "")
    sought = visit.query.get("id", "").strip()
    in_force = await visit.get("/v1/limits")
    if sought:
        listing = await visit.get("/v1/limits/show", {"id": sought})
    else:
        listing = await visit.get("/v1/limits/top", {"count": PAGE_ROWS, "limit": chosen})
    overrides: Any = {"overrides": []}
    may_override = visit.calls.has("GET", "/v1/limits/overrides")
    if may_override:
        overrides = await visit.get("/v1/limits/overrides")
    values = {
        "pushed": await pushed_history(visit),
        "overrides": overrides["overrides"],
        "may_override": may_override,
        "limits": [_with_fill(each) for each in listing["limits"]],
        "counted_in": listing["counted_in"],
        "complete": listing["complete"],
        "silent": silent_nodes(listing),
        "in_force": in_force["limits"],
        "chosen": chosen,
        "sought": sought,
        "by_network": _of_networks(in_force),
        "done": visit.query.get("done", ""),
    }
    return Page("limits.html", values)


async def networks(visit: Visit) -> Page:
    """The fullest identities of a limit by network, from /8 to /32 and from /32 to /64."""
    limit = visit.query.get("limit", "")
    in_force = await visit.get("/v1/limits")
    names = _of_networks(in_force)
    limit = limit or next(iter(names), "")
    within = _network(visit.query.get("within", ""))
    listing: Any = {"limits": (), "complete": True, "counted_in": ""}
    if limit:
        listing = await visit.get("/v1/limits/top", {"limit": limit, "count": MOST_IDENTITIES})
    values = {
        "limit": limit,
        "names": names,
        "within": within,
        "wider": () if within is None else tuple(wider_networks(within)),
        "groups": groups_by_network(listing["limits"], within),
        "complete": listing["complete"] and len(listing["limits"]) < int(MOST_IDENTITIES),
    }
    return Page("networks.html", values)


def _of_networks(in_force: Mapping[str, Any]) -> list[str]:
    """The limits whose identities are addresses or networks, and nothing else."""
    return [each["name"] for each in in_force["limits"] if each["per"] in (["ip"], ["network"])]


def _network(text: str) -> IPNetwork | None:
    try:
        return ip_network(text.strip(), strict=False) if text.strip() else None
    except ValueError:
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, "this is no network", "such as 198.51.0.0/16") from None


def _with_fill(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An identity with its fullest bound in percent."""
    return {**entry, "percent": percent_full(entry)}


# RFC 5321 §4.1.2: in quotes a local part may have blanks and commas, which part addresses elsewhere.
_ADDRESS = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s,])+')
EXPLAINED = ("ip", "listener", "helo", "user", "from", "to")


async def explain(visit: Visit) -> Page:
    """What would happen to a client and its message: the form, and the conversation that it comes to."""
    given = {name: visit.query.get(name, "").strip() for name in EXPLAINED}
    explanation, reached = None, ""
    if given["ip"]:
        wanted: dict[str, Json] = {name: value for name, value in given.items() if value and name != "to"}
        if recipients := _ADDRESS.findall(given["to"]):
            wanted["to"] = list(recipients)
        explanation = await visit.post_document("/v1/explain", wanted)
        reached = reached_stage(explanation)
    so_far = not_refused(reached) if reached else ""
    return Page("explain.html", {"given": given, "explanation": explanation, "so_far": so_far})
