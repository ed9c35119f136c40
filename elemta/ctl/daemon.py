"""``status``, ``plugins``, ``reload``, ``drain``: the daemon as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elemta.ctl.client import DaemonRefused
from elemta.ctl.context import CommandContext
from elemta.ctl.exit_codes import EX_CONFIG, EX_OK, CommandFailed
from elemta.ctl.text import Column, age, size, where_counted
from elemta.errors import Fault

_LISTENERS = (
    Column("LISTENER", whole=True),
    Column("ROLE"),
    Column("TLS", flexible=True),
    Column("ADDRESS", spare=1, folds=True),
    Column("OPEN", right=True),
)
_CERTIFICATES = (
    Column("CERTIFICATE"),
    Column("NAMES", spare=1, folds=True),
    Column("KEY"),
    Column("DAYS LEFT", right=True),
)
_WORKERS = (
    Column("WORKER", right=True),
    Column("STATE"),
    Column("PID", right=True),
    Column("SESSIONS", right=True),
    Column("QUEUE", right=True),
    Column("STARTS", right=True),
    Column("TROUBLE", spare=1, folds=True),
)
_NODES = (
    Column("NODE", whole=True),
    Column("STATE"),
    Column("HOST", spare=2, folds=True),
    Column("VERSION", spare=3),
    Column("UP", right=True, spare=1),
    Column("SESSIONS", right=True),
    Column("QUEUE", right=True),
    Column("LIMITS"),
    Column("SEEN", right=True),
)
_OPTIONS = (
    Column("OPTION", whole=True),
    Column("TYPE", flexible=True),
    Column("DEFAULT", flexible=True),
    Column("MEANING", flexible=True),
)
_PLUGINS = (
    Column("NAME", whole=True),
    Column("CHAIN"),
    Column("FROM", flexible=True),
    Column("ABOUT", flexible=True),
)


# States that are shown where a message is in them.
_SELDOM = ("quarantine", "undeliverable")


def status(invocation: CommandContext) -> int:
    answer = invocation.client().get("status")
    if invocation.json:
        invocation.give(answer)
        return EX_OK
    invocation.say(
        f"Elemta {answer['version']} on {answer['hostname']}, node {answer['node_id']}, "
        f"pid {answer['pid']}, up {age(answer['uptime'])}"
    )
    ready = "yes" if answer["ready"] else "no: " + ", ".join(answer["not_ready"])
    for name, value in (
        ("state", answer["state"]),
        ("ready", ready),
        ("config", answer["config"]),
        ("policies", ", ".join(answer["policies"]) or "none"),
        ("limits", counted_in(answer)),
        *valkey_lines(answer["valkey"]),
        ("sessions", str(answer["sessions"])),
        *spool_lines(answer["spool"]),
    ):
        invocation.say(f"{name:<10}{value}")
    invocation.say("")
    invocation.give_table(_LISTENERS, [_listener(listener) for listener in answer["listeners"]])
    if answer.get("workers"):
        invocation.say("")
        invocation.give_table(_WORKERS, [_worker(worker) for worker in answer["workers"]])
    if answer["certificates"]:
        invocation.say("")
        rows = [_certificate(certificate) for certificate in answer["certificates"]]
        invocation.give_table(_CERTIFICATES, rows)
    for key in answer["needs_restart"]:
        invocation.say(f"note: {waits_for_restart(key)}")
    for note in answer["notes"]:
        invocation.say(f"note: {fault_of(note)}")
    return EX_OK


def _listener(listener: Mapping[str, Any]) -> Sequence[str]:
    return (
        listener["name"],
        listener["role"],
        listener["tls"],
        listener["address"],
        str(listener["connections"]),
    )


def _worker(worker: Mapping[str, Any]) -> Sequence[str]:
    """One of the processes of ``[server] workers``."""
    return (
        str(worker["number"]),
        worker["state"],
        "" if worker["pid"] is None else str(worker["pid"]),
        str(worker["sessions"]),
        str(worker["queued"]),
        str(worker["starts"]),
        worker["trouble"],
    )


def _certificate(certificate: Mapping[str, Any]) -> Sequence[str]:
    days = certificate["days_left"]
    return (
        certificate["file"],
        ", ".join(certificate["names"]) or "none",
        certificate["kind"],
        "EXPIRED" if days < 0 else str(days),
    )


def spool_lines(spool: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The lines about the spool, as names and values."""
    lines = [("spool", spool["directory"])] if "directory" in spool else []
    if "error" in spool:
        return [*lines, ("", f"not healthy: {spool['error']}")]
    states = ", ".join(
        f"{count['messages']} {state}"
        for state, count in spool["states"].items()
        if count["messages"] or state not in _SELDOM
    )
    total = spool["total"]
    oldest = f", oldest {age(spool['oldest_age'])}" if total["messages"] else ""
    messages = "message" if total["messages"] == 1 else "messages"
    return [
        *lines,
        ("disk", f"{'healthy' if spool['healthy'] else 'NOT HEALTHY'}, {size(spool['free'])} free"),
        ("queue", f"{total['messages']} {messages} ({states}), {size(total['octets'])}{oldest}"),
    ]


def counted_in(answer: Mapping[str, Any]) -> str:
    """Where limits are counted, by the answer of ``status``."""
    nodes, where = answer["live_nodes"], f"counted {where_counted(answer['limiter'])}"
    if answer["limiter"] == "cluster":
        return f"{where}, by {nodes} {'node' if nodes == 1 else 'nodes'}"
    if answer["limiter"] == "local":
        return f"Valkey is away: this node's share of each is 1/{nodes}"
    return where


def valkey_lines(valkey: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The lines about Valkey, as names and values; none where it is not configured."""
    if valkey is None:
        return []
    state = "connected" if valkey["up"] else "DOES NOT ANSWER"
    breaker = "" if valkey["breaker"] == "closed" else f", breaker {valkey['breaker'].replace('_', ' ')}"
    trouble = f": {valkey['trouble']}" if valkey["trouble"] else ""
    return [("valkey", f"{valkey['url']}, {state}{breaker}{trouble}")]


def nodes(invocation: CommandContext) -> int:
    wanted = {"all": "true"} if invocation.args.all else {}
    answer = invocation.client().get("nodes", **wanted)
    if invocation.json:
        invocation.give(answer)
    else:
        invocation.give_table(_NODES, [_node(node) for node in answer["nodes"]])
        if not answer["complete"]:
            invocation.note("Valkey is away: other nodes can't be seen")
    return EX_OK


def _node(node: Mapping[str, Any]) -> Sequence[str]:
    where = where_counted(node["mode"]).removeprefix("in ")
    return (
        f"{node['node_id']} (this)" if node["this"] else node["node_id"],
        f"gone ({'left' if node['left'] else 'lost'})" if node["state"] == "gone" else node["state"],
        node["hostname"],
        node["version"],
        age(node["uptime"]),
        str(node["sessions"]),
        str(node["queued"]),
        f"{where} v{node['limits_version']}" if node.get("limits_version") else where,
        "now" if node["this"] else f"{age(node['seen_ago'])} ago",
    )


def plugins(invocation: CommandContext) -> int:
    answer = invocation.client().get("plugins")
    if invocation.json:
        invocation.give(answer)
        return EX_OK
    rows = [
        (
            plugin["name"] or "?",
            "yes" if plugin["in_chain"] else "",
            plugin["origin"],
            f"can't be used: {plugin['error']}" if plugin["error"] else plugin["words"],
        )
        for plugin in answer["plugins"]
    ]
    invocation.give_table(_PLUGINS, rows)
    return EX_OK


def reload(invocation: CommandContext) -> int:
    try:
        answer = invocation.client().post("reload")
    except DaemonRefused as refused:
        faults = [fault_of(fault) for fault in refused.content.get("faults", ())]
        if not faults:
            raise
        raise CommandFailed(EX_CONFIG, refused.problem, faults=faults) from refused
    return invocation.give_answer(answer, "reloaded", *map(waits_for_restart, answer["needs_restart"]))


def waits_for_restart(key: str) -> str:
    """The line about a setting that a reload could not apply."""
    return f"{key} changed and takes effect after a restart"


def drain(invocation: CommandContext) -> int:
    answer = invocation.client().post("drain")
    words = "draining: no new session; open ones end after their message; undrain ends it"
    return invocation.give_answer(answer, words)


def undrain(invocation: CommandContext) -> int:
    answer = invocation.client().post("undrain")
    return invocation.give_answer(answer, "serving: new sessions are taken again")


def fault_of(value: Mapping[str, Any]) -> Fault:
    """A fault as the daemon reported it."""
    return Fault(value["place"], value["key"], value["problem"], value["hint"])


def plugin(invocation: CommandContext) -> int:
    found = invocation.client().get("plugins", invocation.args.name)
    if invocation.json:
        invocation.give(found)
        return EX_OK
    info = found["info"]
    lines = [
        ("name", info["name"]),
        ("origin", info["origin"]),
        ("error", info["error"]),
        ("contract", found["contract"]),
        ("requires", ", ".join(found["requires"])),
        ("policies", ", ".join(found["instances"]) or "none in the chain"),
        ("interfaces", ", ".join(info["interfaces"])),
    ]
    invocation.say(*(f"{name:<11}{value}" for name, value in lines if value))
    invocation.say("", *found["about"].splitlines(), "")
    invocation.give_table(
        _OPTIONS,
        [
            (option["key"], option["type"], option["default"] or "needed", option["words"])
            for option in found["options"]
        ],
    )
    return EX_OK
