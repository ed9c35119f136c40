"""The pages about the daemon and the fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elemta.console.traffic_chart import traffic_chart
from elemta.console.visit import Page, Visit, silent_nodes

_SOON_DAYS = 14
_EXPIRY = ("the certificate expires", "the certificate has expired")


async def overview(visit: Visit) -> Page:
    """The daemon at one moment, and what needs attention first."""
    status = await visit.get("/v1/status")
    nodes = await visit.get("/v1/nodes")
    top = await visit.get("/v1/limits/top", {"count": "10"})
    chain = await visit.get("/v1/policies")
    traffic = await visit.get("/v1/traffic")
    refused = [each for each in top["limits"] if each["retry_after"] != 0 and each["mode"] == "enforce"]
    attention = [*_attention(status, nodes), *_policies_attention(chain["policies"])]
    # What is worse comes first; otherwise the order stays.
    attention.sort(key=lambda each: each[0] != "bad")
    return Page(
        "overview.html",
        {
            "status": status,
            "workers": status.get("workers", ()),
            "nodes": nodes,
            "refused": refused,
            "attention": attention,
            "charts": (
                traffic_chart("Last hour", traffic["hour"]),
                traffic_chart("Last 24 hours", traffic["day"]),
            ),
            "done": visit.query.get("done", ""),
            "undrains": visit.calls.has("POST", "/v1/undrain"),
        },
    )


def _attention(status: Mapping[str, Any], nodes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an operator looks at first: how grave it is, and what it is."""
    found = [("bad", f"This node takes no mail: {why}.") for why in status["not_ready"]]
    valkey = status["valkey"]
    if valkey is not None and status["limiter"] == "local":
        why = f": {valkey['trouble']}" if valkey["trouble"] else ""
        found.append(("bad", f"Valkey is away, so limits are counted by this node alone{why}."))
    for each in status.get("workers", ()):
        if each["state"] != "running":
            why = each["trouble"] or each["state"]
            found.append(("warn", f"Worker {each['number']} does not run: {why}."))
    found += [("warn", f"{problem}.") for problem in status.get("problems", ())]
    if not status["spool"]["healthy"]:
        found.append(("bad", "The disk of the spool has failed."))
    for each in status["certificates"]:
        if each["days_left"] < _SOON_DAYS:
            grave = "bad" if each["days_left"] < 3 else "warn"
            names = ", ".join(each["names"])
            found.append((grave, f"The certificate of {names} has {each['days_left']} days left."))
    if not nodes["complete"] and valkey is not None:
        found.append(("warn", "Other nodes can't be seen now."))
    if status["needs_restart"]:
        found.append(("warn", f"Waiting for a restart: {', '.join(status['needs_restart'])}."))
    # Those of a certificate that expires are above, with its names.
    notes = (each for each in status["notes"] if not each["problem"].startswith(_EXPIRY))
    found += [("warn", f"{each['key']}: {each['problem']}") for each in notes]
    return found


def _policies_attention(chain: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    found = []
    for each in chain:
        why = each["last_failure"]
        reason = f": {why['reason']}" if why else ""
        if not each["asked"]:
            found.append(("bad", f"The policy {each['name']} has not started{reason}."))
        elif each["breaker"] == "open":
            found.append(("bad", f"The policy {each['name']} answers no client{reason}."))
    return found


async def fleet(visit: Visit) -> Page:
    """The nodes."""
    every = {"all": "true"} if visit.takes("GET", "/v1/nodes", "all") else {}
    listing = await visit.get("/v1/nodes", every)
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
