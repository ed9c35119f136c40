"""The paths of the admin API, each with the call that answers it; nothing here knows a connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from urllib.parse import parse_qsl

from twisted.web import http

from elemta.errors import SpoolError
from elemta.ops.admin_calls import AdminCall, AdminRefusal, Answer
from elemta.ops.admin_json import (
    Json,
    fault_json,
    node_json,
    plugin_json,
    reload_json,
    stats_json,
    status_json,
)
from elemta.ops.admin_limits import LimitCalls
from elemta.ops.admin_operations import Operations
from elemta.ops.admin_queue import QueueCalls
from elemta.ops.admin_spools import SpoolCalls

# RFC 9110 §15.5.21; Twisted 22.4 has no name for it
UNPROCESSABLE = 422


class DaemonCalls:
    """The daemon as a whole."""

    def __init__(self, operations: Operations, now: Callable[[], float]) -> None:
        self._operations = operations
        self._now = now

    async def status(self, call: AdminCall) -> Json:
        call.only()
        try:
            spool = stats_json(await self._operations.spool.stats())
        except SpoolError as error:
            # The status is what one asks for when the disk has failed.
            spool = {"healthy": False, "error": str(error)}
        return status_json(self._operations.status(), spool, self._now())

    async def plugins(self, call: AdminCall) -> Json:
        call.only()
        return {"plugins": [plugin_json(plugin) for plugin in self._operations.plugins()]}

    async def config(self, call: AdminCall) -> Json:
        call.only()
        waiting = list(self._operations.status().needs_restart)
        return {"toml": self._operations.config_dump(), "needs_restart": waiting}

    async def reload(self, call: AdminCall) -> Json:
        call.only()
        result = self._operations.reload()
        if result.faults:
            raise AdminRefusal(
                UNPROCESSABLE,
                "the configuration can't be used; nothing was changed",
                "correct the faults and reload again",
                {"faults": [fault_json(fault) for fault in result.faults]},
            )
        return reload_json(result)

    async def drain(self, call: AdminCall) -> Json:
        call.only()
        self._operations.drain()
        return {"state": self._operations.status().state}

    async def nodes(self, call: AdminCall) -> Json:
        call.only()
        listing = await self._operations.nodes()
        return {
            "nodes": [node_json(node, self._now()) for node in listing.nodes],
            "complete": listing.complete,
        }


class Api:
    """The operations of the daemon as calls with JSON answers. ``now`` gives seconds since the epoch."""

    def __init__(self, operations: Operations, now: Callable[[], float]) -> None:
        daemon = DaemonCalls(operations, now)
        queue = QueueCalls(operations)
        limits = LimitCalls(operations.limits)
        spools = SpoolCalls(operations.spools)
        # Method, path with * for a variable part, and what answers; the first path that fits decides.
        self._routes: Sequence[tuple[str, str, Answer]] = (
            ("GET", "status", daemon.status),
            ("GET", "nodes", daemon.nodes),
            ("GET", "plugins", daemon.plugins),
            ("GET", "config", daemon.config),
            ("POST", "reload", daemon.reload),
            ("POST", "drain", daemon.drain),
            ("GET", "limits", limits.all),
            ("GET", "limits/top", limits.top),
            ("GET", "limits/show", limits.show),
            ("POST", "limits/reset", limits.reset),
            ("GET", "spools", spools.all),
            ("POST", "spools/adopt", spools.adopt),
            ("POST", "spools/give-back", spools.give_back),
            ("GET", "queue", queue.page),
            ("GET", "queue/stats", queue.stats),
            ("GET", "queue/*", queue.show),
            ("DELETE", "queue/*", queue.delete),
            ("POST", "queue/delete", queue.of_many(queue.delete)),
            ("POST", "queue/hold", queue.of_many(queue.hold)),
            ("POST", "queue/release", queue.of_many(queue.release)),
            ("POST", "queue/retry", queue.of_many(queue.retry)),
            ("POST", "queue/*/bounce", queue.bounce),
            ("POST", "queue/*/hold", queue.hold),
            ("POST", "queue/*/release", queue.release),
            ("POST", "queue/*/retry", queue.retry),
        )

    async def answer(self, method: str, uri: str) -> Json:
        """What a request for ``uri`` is answered. Raises :class:`AdminRefusal`, or what the operations
        raise."""
        path, _, query = uri.partition("?")
        answer, parts = self._find(method, path)
        return await answer(AdminCall(parts, _query(query)))

    def _find(self, method: str, path: str) -> tuple[Answer, tuple[str, ...]]:
        segments = path.split("/")
        if segments[:2] != ["", "v1"]:
            raise AdminRefusal(http.NOT_FOUND, "no such path", "every path begins with /v1/")
        allowed: list[str] = []
        for known_method, pattern, answer in self._routes:
            parts = _match(pattern.split("/"), segments[2:])
            if parts is None:
                continue
            if known_method == method:
                return answer, parts
            allowed.append(known_method)
        if allowed:
            raise AdminRefusal(http.NOT_ALLOWED, f"{method[:16]} is not for this path", ", ".join(allowed))
        raise AdminRefusal(http.NOT_FOUND, "no such path")


def _match(pattern: Sequence[str], segments: Sequence[str]) -> tuple[str, ...] | None:
    if len(pattern) != len(segments):
        return None
    pairs = tuple(zip(pattern, segments, strict=True))
    if any(part not in ("*", segment) for part, segment in pairs):
        return None
    return tuple(segment for part, segment in pairs if part == "*")


def _query(text: str) -> Mapping[str, str]:
    try:
        return dict(parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=16))
    except ValueError:
        raise AdminRefusal(http.BAD_REQUEST, "the query is malformed", "NAME=VALUE&NAME=VALUE") from None
