"""What an operator looks at first: faults, what waits, and what ends soon; the worst comes first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elemta.ctl.text import age

SOON_DAYS = 14
"""With fewer days than these left a certificate is shown."""

VANISHED_SECONDS = 86_400.0
"""How long a node that vanished is shown."""

_VERY_SOON_DAYS = 3
# A certificate that expires is shown with its names.
_EXPIRY = ("the certificate expires", "the certificate has expired")

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class AttentionItem:
    """One thing: ``bad`` or ``warn``, what it is, and the page about it, or empty."""

    grave: str
    text: str
    page: str = ""


def attention(
    status: Mapping[str, Any],
    nodes: Mapping[str, Any],
    chain: Rows,
    destinations: Rows,
    *,
    more: object = None,
) -> list[AttentionItem]:
    """All of it, by the answers of the API; ``more``: there are more destinations than these."""
    found = [
        *_of_daemon(status),
        *_of_policies(chain),
        *_of_certificates(status["certificates"]),
        *_of_nodes(status, nodes),
        *_of_destinations(destinations, "or more " if more else ""),
        *_of_settings(status),
    ]
    # Otherwise the order stays.
    return sorted(found, key=lambda each: each.grave != "bad")


def _of_daemon(status: Mapping[str, Any]) -> Iterator[AttentionItem]:
    for why in status["not_ready"]:
        yield AttentionItem("bad", f"This node takes no mail: {why}.")
    if not status["spool"]["healthy"]:
        yield AttentionItem("bad", "The disk of the spool has failed.", "/queue")
    valkey = status["valkey"]
    if valkey is not None and status["limiter"] == "local":
        why = f": {valkey['trouble']}" if valkey["trouble"] else ""
        yield AttentionItem(
            "bad", f"Valkey is away, so limits are counted by this node alone{why}.", "/limits"
        )
    for each in status.get("workers", ()):
        if each["state"] != "running":
            why = each["trouble"] or each["state"]
            yield AttentionItem("warn", f"Worker {each['number']} does not run: {why}.")
        elif each["trouble"]:
            yield AttentionItem("warn", f"Worker {each['number']} takes no mail: {each['trouble']}.")
    for problem in status.get("problems", ()):
        yield AttentionItem("warn", f"{problem}.")


def _of_policies(chain: Rows) -> Iterator[AttentionItem]:
    for each in chain:
        why = each["last_failure"]
        reason = f": {why['reason']}" if why else ""
        if not each["asked"]:
            yield AttentionItem("bad", f"The policy {each['name']} has not started{reason}.", "/policies")
        elif each["breaker"] == "open":
            yield AttentionItem("bad", f"The policy {each['name']} answers no client{reason}.", "/policies")


def _of_certificates(certificates: Rows) -> Iterator[AttentionItem]:
    for each in certificates:
        if each["days_left"] < SOON_DAYS:
            grave = "bad" if each["days_left"] < _VERY_SOON_DAYS else "warn"
            names = ", ".join(each["names"])
            yield AttentionItem(grave, f"The certificate of {names} has {each['days_left']} days left.")


def _of_nodes(status: Mapping[str, Any], nodes: Mapping[str, Any]) -> Iterator[AttentionItem]:
    if not nodes["complete"] and status["valkey"] is not None:
        yield AttentionItem("warn", "Other nodes can't be seen now.", "/fleet")
    for each in nodes["nodes"]:
        if each["state"] != "gone" or each["left"] or each["seen_ago"] > VANISHED_SECONDS:
            continue
        text = f"The node {each['node_id']} vanished {age(each['seen_ago'])} ago"
        if each["queued"]:
            yield AttentionItem("bad", f"{text} with {each['queued']} messages in its queue.", "/fleet")
        else:
            yield AttentionItem("warn", f"{text}.", "/fleet")


def _of_destinations(destinations: Rows, more: str) -> Iterator[AttentionItem]:
    blocked = sorted(
        (each for each in destinations if each["state"] == "blocked" and each["waiting"]),
        key=lambda each: -int(each["waiting"]),
    )
    if not blocked:
        return
    waiting = sum(each["waiting"] for each in blocked)
    first = blocked[0]
    number = "1 destination is" if len(blocked) == 1 else f"{len(blocked)} {more}destinations are"
    most = "" if len(blocked) == 1 else f", most of them for {first['name']}"
    yield AttentionItem(
        "warn",
        f"{number} blocked, and {waiting} messages wait{most}: {first['last_error'] or first['name']}",
        "/destinations",
    )


def _of_settings(status: Mapping[str, Any]) -> Iterator[AttentionItem]:
    if status["needs_restart"]:
        waiting = ", ".join(status["needs_restart"])
        yield AttentionItem("warn", f"Waiting for a restart: {waiting}.", "/configuration")
    for each in status["notes"]:
        if not each["problem"].startswith(_EXPIRY):
            yield AttentionItem("warn", f"{each['key']}: {each['problem']}", "/configuration")
