"""The pages about limits and verdicts: the board of limits, and what would happen to a client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elemta.console.mail_views import PAGE_ROWS
from elemta.console.visit import Page, Visit


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
        "overrides": overrides["overrides"],
        "may_override": may_override,
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


EXPLAINED = ("ip", "listener", "helo", "user", "from", "to")


async def explain(visit: Visit) -> Page:
    """What would happen to a client and its message: the form, and the conversation that it comes to."""
    given = {name: visit.query.get(name, "").strip() for name in EXPLAINED}
    explanation = None
    if given["ip"]:
        recipients = ",".join(given["to"].replace(",", " ").split())
        explanation = await visit.post("/v1/explain", {**given, "to": recipients})
    return Page("explain.html", {"given": given, "explanation": explanation})
