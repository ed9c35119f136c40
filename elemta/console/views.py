"""The pages about the daemon and the fleet."""

from __future__ import annotations

from typing import Any

from elemta.console.attention import attention
from elemta.console.traffic_chart import traffic_chart
from elemta.console.visit import Page, Visit, silent_nodes


async def overview(visit: Visit) -> Page:
    """The daemon at one moment, and what needs attention first."""
    status = await visit.get("/v1/status")
    nodes = await _nodes(visit)
    destinations = await visit.get("/v1/destinations", {"limit": "1000"})
    top = await visit.get("/v1/limits/top", {"count": "10"})
    chain = await visit.get("/v1/policies")
    traffic = await visit.get("/v1/traffic")
    refused = [each for each in top["limits"] if each["retry_after"] != 0 and each["mode"] == "enforce"]
    return Page(
        "overview.html",
        {
            "status": status,
            "workers": status.get("workers", ()),
            "nodes": {**nodes, "nodes": [each for each in nodes["nodes"] if each["state"] != "gone"]},
            "refused": refused,
            "attention": attention(
                status, nodes, chain["policies"], destinations["destinations"], more=destinations["next"]
            ),
            "charts": (
                traffic_chart("Last hour", traffic["hour"]),
                traffic_chart("Last 24 hours", traffic["day"]),
            ),
            "done": visit.query.get("done", ""),
            "undrains": visit.calls.has("POST", "/v1/undrain"),
        },
    )


async def _nodes(visit: Visit) -> Any:
    """The nodes, with those that are gone."""
    every = {"all": "true"} if visit.takes("GET", "/v1/nodes", "all") else {}
    return await visit.get("/v1/nodes", every)


async def fleet(visit: Visit) -> Page:
    """The nodes."""
    listing = await _nodes(visit)
    gone = sum(node["state"] == "gone" for node in listing["nodes"])
    return Page("fleet.html", {"listing": listing, "gone": gone})


async def sessions(visit: Visit) -> Page:
    """The open sessions of this node."""
    client = visit.query.get("client", "").strip()
    listing = await visit.get("/v1/sessions", {"limit": "500", "client": client})
    values = {"listing": listing, "client": client, "problems": listing.get("problems", ())}
    return Page("sessions.html", values)


async def refused(visit: Visit) -> Page:
    """What the nodes refused lately, with the reply."""
    filters = {name: visit.query.get(name, "").strip() for name in ("policy", "limit", "client")}
    listing = await visit.get("/v1/refused", {**filters, "count": "200"})
    explains = visit.calls.has("POST", "/v1/explain")
    values = {"listing": listing, "filters": filters, "explains": explains, "silent": silent_nodes(listing)}
    return Page("refused.html", {**values, "many": len(listing.get("nodes", ())) > 1})


async def policies(visit: Visit) -> Page:
    """The chain of policies and the plugins that are installed."""
    chain = await visit.get("/v1/policies")
    plugins = await visit.get("/v1/plugins")
    return Page("policies.html", {"chain": chain["policies"], "plugins": plugins["plugins"]})


async def configuration(visit: Visit) -> Page:
    """The configuration in force, without secrets."""
    status = await visit.get("/v1/status")
    config = await visit.get("/v1/config")
    return Page("configuration.html", {"config": config, "status": status})
