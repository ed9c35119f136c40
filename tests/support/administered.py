"""A daemon for tests of its admin API: a real spool and real limits, and the rest as the test says."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock

from elemta.certificates import Certificate
from elemta.config import ListenerTLS, Role
from elemta.daemon.activity_operations import ActivityOperations
from elemta.daemon.admin_operations import (
    ConfigInForce,
    DaemonOperations,
    DaemonStatus,
    PluginListing,
)
from elemta.daemon.check_operations import CheckOperations
from elemta.daemon.destination_operations import DestinationOperations
from elemta.daemon.explain_operations import ExplainOperations
from elemta.daemon.explainer import Explainer
from elemta.daemon.find_operations import FindOperations
from elemta.daemon.limit_operations import LimitOperations
from elemta.daemon.node_operations import NodeListing, NodeOperations
from elemta.daemon.override_operations import OverrideOperations
from elemta.daemon.push_operations import PushOperations
from elemta.daemon.queue_operations import QueueOperations
from elemta.daemon.reload import ReloadReport
from elemta.daemon.session_operations import SessionOperations
from elemta.daemon.spool_operations import SpoolOperations
from elemta.daemon.trace_operations import TraceOperations
from elemta.delivery.notices import return_to_sender
from elemta.errors import Fault
from elemta.message.notice import NoticeSettings
from elemta.metrics import Metrics
from elemta.net.registry import ConnectionRegistry
from elemta.ops.admin_calls import CallTable
from elemta.ops.openapi import ApiOperations
from elemta.ops.traffic import TrafficHistory
from elemta.outcome import ReturnedMessage
from elemta.policy.chain import PolicyChain
from elemta.policy.discovery import PluginInfo
from elemta.spool.combined_queue import CombinedQueue
from tests.support.adopted import Adopted
from tests.support.destined import Destined
from tests.support.overseen import Overseen
from tests.support.runtime import simulated_runtime


@dataclass
class Administered:
    """What the operations ask of a daemon. It began ``up`` seconds ago."""

    spool: Any
    state_name: str = "serving"
    reloaded: ReloadReport = field(default_factory=ReloadReport)
    overseen: Overseen = field(default_factory=Overseen)
    destined: Destined = field(default_factory=Destined)
    spools: Adopted = field(default_factory=Adopted)
    installed: tuple[PluginInfo, ...] = ()
    toml: str = ""
    up: float = 100.0
    now: float = field(default_factory=time.time)
    broken: bool = False
    sessions: int = 3
    queued: int = 0

    @property
    def calls(self) -> CallTable:
        api, queue = ApiOperations(), CombinedQueue(self.spool, lambda: ())
        registry = ConnectionRegistry(simulated_runtime(), 10)
        calls = CallTable(
            _Operations(self, self.spool),
            _Nodes(self, time.time),
            QueueOperations(queue, self._give_up, time.time),
            FindOperations(self.spool, list, "mx1"),
            DestinationOperations(queue, lambda: self.destined, time.time, "mx1"),  # type: ignore[arg-type, return-value]
            self.limits,
            PushOperations(lambda: self.overseen, self.overseen),  # type: ignore[arg-type, return-value]
            CheckOperations(lambda: self.overseen.limiter),
            OverrideOperations(lambda: self.overseen, self.overseen),  # type: ignore[arg-type, return-value]
            SpoolOperations(self.spools),
            ActivityOperations(self.traffic, lambda: self.chain, self.metrics.policy, time.monotonic),
            ExplainOperations(Explainer(self)),  # type: ignore[arg-type]
            SessionOperations(registry, "mx1"),
            TraceOperations(simulated_runtime(), registry.trace, registry),
            api,
        )
        api.calls = calls
        return calls

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics("mx1")

    @cached_property
    def traffic(self) -> TrafficHistory:
        return TrafficHistory(self.metrics, wall=time.time, monotonic=time.monotonic)

    @cached_property
    def chain(self) -> PolicyChain:
        return PolicyChain((), Clock(), self.metrics.policy)

    @property
    def limits(self) -> LimitOperations:
        return self.overseen.oversight

    async def _give_up(self, queue_id: str) -> ReturnedMessage:
        return await return_to_sender(self.spool, queue_id, NoticeSettings("mx1.example.org"), time.time)

    # A daemon

    @property
    def components(self) -> Any:
        config = SimpleNamespace(
            source="/etc/elemta.toml",
            server=SimpleNamespace(node_id="mx1", hostname="mx1.example.org"),
            policies=SimpleNamespace(chain=("limits", "relay")),
            spool=SimpleNamespace(directory="/var/spool/elemta"),
            without_effect=lambda: (Fault("/etc/elemta.toml", "server.workers", "has no effect yet"),),
            policy={},
            plugin_of=lambda policy: policy,
        )
        return SimpleNamespace(
            config=config, chain=None, tls=object(), certificates=self.certificates, cautions=lambda _now: ()
        )

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """One that expires in four days and a half."""
        end = time.time() + 4.5 * 86400
        return (Certificate("tls", "/etc/mx.pem", ("mx1.example.org",), "RSA", 0.0, end, (), b""),)

    @property
    def listeners(self) -> Any:
        settings = SimpleNamespace(role=Role.MX, tls=ListenerTLS.STARTTLS)
        return SimpleNamespace(
            smtp=(SimpleNamespace(name="mx", address="127.0.0.1:2525"),),
            factories={"mx": SimpleNamespace(listener=settings, open_sessions=3)},
        )

    @property
    def shared(self) -> Any:
        return SimpleNamespace(runtime=SimpleNamespace(wall=time.time))

    @property
    def fleet(self) -> Overseen:
        return self.overseen

    @property
    def started_at(self) -> float:
        return self.now - self.up

    @property
    def needs_restart(self) -> tuple[str, ...]:
        return self.reloaded.needs_restart

    def why_not_ready(self) -> tuple[str, ...]:
        return () if self.state_name == "serving" else (self.state_name,)

    def reload(self) -> ReloadReport:
        return self.reloaded

    def drain(self) -> None:
        self.state_name = "draining"

    def undrain(self) -> None:
        self.state_name = "serving"


class _Operations(DaemonOperations):
    """What needs more of a daemon than there is, is as the test says."""

    _daemon: Any

    async def status(self) -> DaemonStatus:
        return replace(await super().status(), version="0.1.0", pid=42)

    async def plugins(self) -> PluginListing:
        if self._daemon.broken:
            raise RuntimeError("secret of the inside")
        return PluginListing(self._daemon.installed)

    async def config(self) -> ConfigInForce:
        return ConfigInForce(self._daemon.toml, self._daemon.needs_restart)


class _Nodes(NodeOperations):
    """As the test says, too."""

    _node: Any

    async def nodes(self, all_: bool = False) -> NodeListing:
        overseen = self._node.overseen
        gone = await overseen.gone() if all_ else ()
        return NodeListing((*await overseen.others(), *gone), complete=not overseen.away)
