"""Limits for tests of operations on them: a real limiter over a store in memory, and a fleet of two."""

from __future__ import annotations

import time
from collections.abc import Sequence
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock

from elemta.config import Counts, Identity, LimitConfig, Mode, Rate, ResourcesConfig
from elemta.daemon.limit_operations import LimitOperations
from elemta.daemon.membership import LimiterStatus, NodeStatus, RemoteRefusal, ValkeyStatus
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.limits.override_registry import LocalOverrides
from elemta.limits.store import Request
from elemta.runtime import Runtime
from elemta.smtp.events import Stage

RULES = rules_from_config(
    ResourcesConfig(max_requests_per_window=3, rate_limit_window=60, max_connections_per_ip=2),
    (
        LimitConfig(
            name="watch", per=(Identity.NETWORK,), counts=Counts.CONNECTIONS, rates=(Rate(1, 3600.0),),
            mode=Mode.OBSERVE,
        ),
    ),
)  # fmt: skip


class Overseen:
    """A node whose limits have been counted in, and another one that it hears of."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = LocalStore(self.clock)
        self.overrides = LocalOverrides(Runtime.of(self.clock))
        self.limiter = Limiter(RULES, self.store, overrides=self.overrides.overrides)
        self.oversight = LimitOperations(lambda: self, self, "mx1")  # type: ignore[arg-type, return-value]
        self.elsewhere: list[RemoteRefusal] = []
        self.told: list[Request] = []
        self.mode = "memory"
        self.away = False
        self.ended: list[NodeStatus] = []

    def connect(self, ip: str, times: int = 1) -> None:
        session: Any = SimpleNamespace(client_ip=ip_address(ip), listener="mx", helo="", user=None)
        for _ in range(times):
            charge = self.limiter.charge(Stage.CONNECT, session)
            assert not hasattr(charge, "addCallback")
            self.limiter.release(charge.receipts)  # type: ignore[union-attr]

    # A fleet

    def status(self) -> LimiterStatus:
        if self.mode == "memory":
            return LimiterStatus()
        up = self.mode == "cluster"
        return LimiterStatus(
            self.mode,
            2,
            ValkeyStatus("valkey://cache", up, *(("closed",) if up else ("half_open", "connection refused"))),
        )

    async def others(self) -> Sequence[NodeStatus]:
        if self.away:
            return []
        return [
            NodeStatus(
                node_id="mx2",
                this=False,
                hostname="mx2.example.org",
                version="0.1.0",
                address="127.0.0.1:2526",
                started_at=time.time() - 60,
                uptime=60.0,
                seen_ago=1.0,
                sessions=7,
                queue=11,
                mode="cluster",
                last_seen_at=time.time() - 1.0,
                queued=11,
            )
        ]

    async def gone(self) -> Sequence[NodeStatus]:
        return self.ended

    async def refusals(self) -> Sequence[RemoteRefusal]:
        return self.elsewhere

    async def announce_reset(self, request: Request) -> None:
        self.told.append(request)
