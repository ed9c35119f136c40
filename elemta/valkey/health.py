"""How Valkey is: INFO of every primary, every few seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elemta.errors import ValkeyError
from elemta.metrics import ValkeyMetrics
from elemta.valkey.info import ValkeyInfo

if TYPE_CHECKING:
    from elemta.valkey.client import Valkey

_log = Logger()

POLL_SECONDS = 5.0
_DEADLINE_SECONDS = 1.0


class Health:
    """Asks for INFO while Valkey is up, and shows it in the metrics; says so when keys may be evicted."""

    def __init__(self, valkey: Valkey, reactor: Any, metrics: ValkeyMetrics) -> None:
        self._valkey = valkey
        self._metrics = metrics
        self.info = ValkeyInfo()
        self._said = ""
        self._polling = LoopingCall(self._poll)
        self._polling.clock = reactor

    def start(self) -> None:
        self._polling.start(POLL_SECONDS)

    def stop(self) -> None:
        if self._polling.running:
            self._polling.stop()

    def changed(self, up: bool) -> None:
        """Valkey came or went."""
        self.answers(up)
        if up and self._polling.running:
            self._polling.reset()
            self._poll()

    def answers(self, up: bool) -> None:
        """Valkey answers, or does not, whether or not there are connections."""
        self._tell(replace(self.info, up=up))

    def _poll(self) -> None:
        if self._valkey.up:
            asked = self._valkey.each_primary("INFO", deadline=_DEADLINE_SECONDS)
            asked.addCallbacks(self._answered, self._refused)

    def _answered(self, replies: Sequence[Any]) -> None:
        self._tell(_sum([_lines(reply) for reply in replies], up=self._valkey.answers))
        info = self.info
        if info.maxmemory_policy in ("", "noeviction") or not info.maxmemory:
            self._said = ""
        elif self._is_news(info.maxmemory_policy):
            _log.warn(
                "Valkey's maxmemory-policy may evict counts; set noeviction",
                event="valkey.eviction_possible",
                policy=info.maxmemory_policy,
            )

    def _refused(self, failure: Any) -> None:
        failure.trap(ValkeyError)
        if self._valkey.up and self._is_news(str(failure.value)):
            _log.warn("Valkey does not answer INFO", event="valkey.info_failed", reason=str(failure.value))

    def _tell(self, info: ValkeyInfo) -> None:
        self.info = info
        if info.primaries:
            self._show(info)

    def _show(self, info: ValkeyInfo) -> None:
        metrics = self._metrics
        metrics.commands_processed.set(info.commands_processed)
        metrics.used_memory.set(info.used_memory)
        metrics.maxmemory.set(info.maxmemory)
        metrics.keys.set(info.keys_db0)
        metrics.evicted_keys.set(info.evicted_keys)
        metrics.connected_clients.set(info.connected_clients)

    def _is_news(self, words: str) -> bool:
        """Whether something else was said last."""
        before, self._said = self._said, words
        return words != before


def _lines(reply: Any) -> Mapping[str, str]:
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _sum(servers: Sequence[Mapping[str, str]], *, up: bool) -> ValkeyInfo:
    def total(name: str) -> int:
        return sum(_number(server.get(name, "")) for server in servers)

    def first(*names: str) -> str:
        return next((server[name] for server in servers for name in names if name in server), "")

    policies = {server.get("maxmemory_policy", "") for server in servers} - {"", "noeviction"}
    return ValkeyInfo(
        up=up,
        commands_processed=total("total_commands_processed"),
        used_memory=total("used_memory"),
        maxmemory=total("maxmemory"),
        keys_db0=sum(_keys(server.get("db0", "")) for server in servers),
        evicted_keys=total("evicted_keys"),
        connected_clients=total("connected_clients"),
        primaries=len(servers),
        role=first("role"),
        version=first("valkey_version", "redis_version"),
        maxmemory_policy=min(policies, default=first("maxmemory_policy")),
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _keys(text: str) -> int:
    """The number in ``keys=1,expires=0,avg_ttl=0``."""
    return _number(text.partition("keys=")[2].partition(",")[0])
