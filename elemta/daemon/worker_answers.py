"""The answers of the workers of one daemon as those of one: numbers summed, rows put together.

``parts`` are what workers answered, in the order of their numbers; there is at least one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from elemta.daemon.joined_answers import Query, whole_names

Part = dict[str, Any]
Parts = Sequence[Part]

_STATES = ("open", "waiting", "blocked", "paused")


def sum_of(parts: Iterable[Mapping[str, Any]], key: str) -> Any:
    """The sum of one number of each."""
    return sum(part[key] for part in parts)


def join_stats(parts: Parts) -> Part:
    """The queue in numbers; all partitions are on one disk."""
    states: dict[str, Part] = {}
    for part in parts:
        for state, size in part["states"].items():
            known = states.setdefault(state, {"messages": 0, "octets": 0})
            states[state] = {name: known[name] + size[name] for name in known}
    total = {name: sum(part["total"][name] for part in parts) for name in ("messages", "octets")}
    return {
        **parts[0],
        "healthy": all(part["healthy"] for part in parts),
        "free": min(part["free"] for part in parts),
        "oldest_age": max(part["oldest_age"] for part in parts),
        "total": total,
        "states": states,
    }


def join_status(parts: Parts) -> Part:
    """The status; ``ready`` where any worker would accept mail."""
    ready = any(part["ready"] for part in parts)
    reasons = dict.fromkeys(reason for part in parts for reason in part["not_ready"])
    return {
        **parts[0],
        "ready": ready,
        "not_ready": [] if ready else list(reasons),
        "started_at": min(part["started_at"] for part in parts),
        "uptime": max(part["uptime"] for part in parts),
        "sessions": sum_of(parts, "sessions"),
        "listeners": _listeners(parts),
        "spool": _spool([part["spool"] for part in parts]),
    }


def _listeners(parts: Parts) -> list[Part]:
    """Each listener once: all workers accept from the same sockets."""
    found: dict[str, Part] = {}
    for each in (each for part in parts for each in part["listeners"]):
        known = found.get(each["name"])
        connections = each["connections"] + (known["connections"] if known else 0)
        found[each["name"]] = {**(known or each), "connections": connections}
    return list(found.values())


def _spool(spools: Parts) -> Part:
    failed = [spool for spool in spools if "error" in spool]
    return failed[0] if failed else join_stats(spools)


def join_queue(query: Query, parts: Parts) -> Part:
    """A page of the listing in the order of arrival; see ``CombinedQueue.find``."""
    limit = int(query.get("limit") or 100)
    place = min((part["next"] for part in parts if part["next"] is not None), default=None)
    rows = [
        row
        for row in heapq.merge(*(part["messages"] for part in parts), key=lambda row: str(row["queue_id"]))
        if place is None or row["queue_id"] <= place
    ]
    if len(rows) > limit:
        place = rows[limit - 1]["queue_id"]
    return {"messages": rows[:limit], "next": place}


def join_destinations(query: Query, parts: Parts) -> Part:
    """Each destination once."""
    rows, following = whole_names(parts, int(query.get("limit") or 100))
    by_name: dict[str, list[Part]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    return {
        **parts[0],
        "destinations": [join_destination(each) for each in by_name.values()],
        "next": following,
    }


def join_destination(rows: Parts) -> Part:
    """One destination of several workers: as the one whose mail is worst off sees it."""
    first = max(rows, key=lambda row: _STATES.index(row["state"]) if row["state"] in _STATES else 0)
    oldest = [row["oldest_at"] for row in rows if row["oldest_at"] is not None]
    attempts = [row["next_attempt_at"] for row in rows if row["next_attempt_at"] is not None]
    return {
        **first,
        "waiting": sum_of(rows, "waiting"),
        "oldest_at": min(oldest, default=None),
        "last_error": first["last_error"]
        or next((row["last_error"] for row in rows if row["last_error"]), ""),
        "next_attempt_at": min(attempts, default=None),
    }


def join_refused(query: Query, parts: Parts) -> Part:
    """The newest refusals."""
    count = int(query.get("count") or 100)
    rows = (row for part in parts for row in part["refused"])
    newest = heapq.nlargest(count, rows, key=lambda row: float(row["at"]))
    return {**parts[0], "refused": newest, "total": sum_of(parts, "total")}


def join_sessions(query: Query, parts: Parts) -> Part:
    """The sessions that are open longest."""
    limit = int(query.get("limit") or 100)
    rows = (row for part in parts for row in part["sessions"])
    oldest = heapq.nlargest(limit, rows, key=lambda row: float(row["seconds"]))
    return {**parts[0], "sessions": oldest, "total": sum_of(parts, "total")}


def join_traffic(parts: Parts) -> Part:
    """The numbers of each slot; what was measured longest."""
    return {name: _series([part[name] for part in parts]) for name in parts[0]}


def _series(series: Parts) -> Part:
    longest = max(len(each["accepted"]) for each in series)
    counts = {
        name: [sum(column) for column in zip(*(_padded(each[name], longest) for each in series), strict=True)]
        for name in ("accepted", "deferred", "refused")
    }
    return {**series[0], "measured": max(each["measured"] for each in series), **counts}


def _padded(numbers: Sequence[int], length: int) -> list[int]:
    """The last number is that of the slot under way."""
    return [*[0] * (length - len(numbers)), *numbers]


def join_policies(parts: Parts) -> Part:
    """Each policy once. Quantiles can't be joined, so they are the largest of any worker."""
    found: dict[str, list[Part]] = {}
    for policy in (policy for part in parts for policy in part["policies"]):
        found.setdefault(policy["name"], []).append(policy)
    return {"policies": [_policy(each) for each in found.values()]}


def _policy(policies: Parts) -> Part:
    stages: dict[str, list[Part]] = {}
    for stage in (stage for policy in policies for stage in policy["stages"]):
        stages.setdefault(stage["stage"], []).append(stage)
    failures = [policy["last_failure"] for policy in policies if policy["last_failure"] is not None]
    return {
        **policies[0],
        "asked": all(policy["asked"] for policy in policies),
        "breaker": _worst(policies),
        "stages": [_stage(each) for each in stages.values()],
        "last_failure": min(failures, key=lambda failure: float(failure["seconds"]), default=None),
    }


def _stage(stages: Parts) -> Part:
    return {
        **stages[0],
        "answers": sum_of(stages, "answers"),
        "p50": _largest(stages, "p50"),
        "p95": _largest(stages, "p95"),
        "verdicts": _sums([stage["verdicts"] for stage in stages]),
        "failures": _sums([stage["failures"] for stage in stages]),
        "breaker": _worst(stages),
    }


def _worst(parts: Parts) -> str:
    return "open" if any(part["breaker"] == "open" for part in parts) else str(parts[0]["breaker"])


def _largest(parts: Parts, key: str) -> float | None:
    return max((part[key] for part in parts if part[key] is not None), default=None)


def _sums(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def join_limits(parts: Parts) -> Part:
    """The limits in force, with the checks of today of all workers."""
    rows = zip(*(part["limits"] for part in parts), strict=False)
    return {"limits": [{**row[0], "today": _sums([each["today"] for each in row])} for row in rows]}


def join_spools(parts: Parts) -> Part:
    """Each spool directory once; all partitions are of one."""
    found: dict[str, Part] = {}
    for spool in (spool for part in parts for spool in part["spools"]):
        known = found.get(spool["directory"])
        found[spool["directory"]] = spool if known is None else _spool_of_two(known, spool)
    return {"spools": list(found.values())}


def _spool_of_two(one: Part, other: Part) -> Part:
    if one["messages"] is None or other["messages"] is None:
        return one if other["messages"] is None else other
    return {
        **one,
        "messages": one["messages"] + other["messages"],
        "states": _sums([one["states"], other["states"]]),
        "left": list(dict.fromkeys([*one["left"], *other["left"]])),
    }


def join_results(parts: Parts) -> Part:
    """What came of each message: where one worker has it, what that one says."""
    results = zip(*(part["results"] for part in parts), strict=False)
    done = []
    for each in results:
        known = [result for result in each if result.get("status") != 404]
        done.append(known[0] if known else each[0])
    return {"results": done}


Joiner = Callable[[Query, Parts], Part]
"""One answer of several, to a call with this query."""


def _without_query(join: Callable[[Parts], Part]) -> Joiner:
    return lambda _, parts: join(parts)


JOINERS: Mapping[str, Joiner] = {
    "/v1/status": _without_query(join_status),
    "/v1/queue": join_queue,
    "/v1/queue/stats": _without_query(join_stats),
    "/v1/destinations": join_destinations,
    "/v1/refused": join_refused,
    "/v1/sessions": join_sessions,
    "/v1/traffic": _without_query(join_traffic),
    "/v1/policies": _without_query(join_policies),
    "/v1/limits": _without_query(join_limits),
    "/v1/spools": _without_query(join_spools),
}
"""How the answers to calls that read become one, beside ``find``, which has places of its own."""
