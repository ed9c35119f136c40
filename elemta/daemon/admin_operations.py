"""What an administrator may ask of the running daemon and do to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from elemta import __version__
from elemta.config import ListenerTLS, dump
from elemta.daemon.adoption_registry import AdoptionRegistry
from elemta.daemon.cluster import Membership, endpoints
from elemta.daemon.components import Components, SharedResources
from elemta.daemon.limit_operations import LimitService
from elemta.daemon.listeners import Listeners
from elemta.delivery.bounces import NoticeSettings
from elemta.delivery.notices import ReturnedMessage, return_to_sender
from elemta.errors import StoreUnavailable
from elemta.net.listeners import Listener
from elemta.ops.admin_operations import DaemonStatus, ListenerStatus, NodeListing, NodeStatus, ReloadResult
from elemta.policy import PluginInfo, available_plugins
from elemta.spool.combined import CombinedQueue


class DaemonHandle(Protocol):
    """What the operations need of the daemon."""

    listeners: Listeners
    shared: SharedResources

    @property
    def started_at(self) -> float: ...

    @property
    def fleet(self) -> Membership: ...

    @property
    def components(self) -> Components: ...

    @property
    def state_name(self) -> str: ...

    @property
    def needs_restart(self) -> tuple[str, ...]: ...

    @property
    def sessions(self) -> int: ...

    @property
    def queued(self) -> int: ...

    def why_not_ready(self) -> tuple[str, ...]: ...

    def reload(self) -> ReloadResult: ...

    def drain(self) -> None: ...


class DaemonOperations:
    """The operations of the admin API on one daemon and its open spool."""

    def __init__(self, daemon: DaemonHandle, adoptions: AdoptionRegistry) -> None:
        self._daemon = daemon
        self._adoptions = adoptions
        self._limits = LimitService(lambda: daemon.components, daemon.fleet)

    @property
    def spool(self) -> CombinedQueue:
        return self._adoptions.queue

    @property
    def spools(self) -> AdoptionRegistry:
        return self._adoptions

    @property
    def limits(self) -> LimitService:
        return self._limits

    async def nodes(self) -> NodeListing:
        daemon = self._daemon
        config = daemon.components.config
        own = NodeStatus(
            node_id=config.server.node_id,
            hostname=config.server.hostname,
            version=__version__,
            address=endpoints(config),
            started_at=daemon.started_at,
            seen_at=daemon.shared.clocks.wall(),
            sessions=daemon.sessions,
            queue=daemon.queued,
            mode=daemon.fleet.status().mode,
            this=True,
        )
        try:
            others = await daemon.fleet.others()
        except StoreUnavailable:
            return NodeListing((own,), complete=False)
        return NodeListing(tuple(sorted((own, *others), key=lambda node: node.node_id)))

    def status(self) -> DaemonStatus:
        daemon = self._daemon
        config = daemon.components.config
        return DaemonStatus(
            version=__version__,
            node_id=config.server.node_id,
            hostname=config.server.hostname,
            pid=os.getpid(),
            started_at=daemon.started_at,
            state=daemon.state_name,
            not_ready=daemon.why_not_ready(),
            listeners=tuple(self._listener_status(listener) for listener in daemon.listeners.smtp),
            sessions=daemon.sessions,
            policies=tuple(config.policies.chain),
            config_source=config.source,
            spool_directory=config.spool.directory,
            limiter=daemon.fleet.status(),
            needs_restart=daemon.needs_restart,
            notes=(*config.cautions(), *config.without_effect()),
        )

    def _listener_status(self, listener: Listener) -> ListenerStatus:
        factory = self._daemon.listeners.factories[listener.name]
        return ListenerStatus(
            name=listener.name,
            role=factory.listener.role.value,
            tls=_tls_in_words(factory.listener.tls, certificate=self._daemon.components.context is not None),
            address=listener.address,
            connections=factory.open_sessions,
        )

    async def return_to_sender(self, queue_id: str) -> ReturnedMessage:
        settings = NoticeSettings.from_config(self._daemon.components.config)
        spool = await self.spool.of(queue_id)
        return await return_to_sender(spool, queue_id, settings, self._daemon.shared.clocks.wall)

    def plugins(self) -> Sequence[PluginInfo]:
        return available_plugins(self._daemon.components.chain)

    def reload(self) -> ReloadResult:
        return self._daemon.reload()

    def drain(self) -> None:
        self._daemon.drain()

    def config_dump(self) -> str:
        return dump(self._daemon.components.config)


def _tls_in_words(tls: ListenerTLS, *, certificate: bool) -> str:
    return f"{tls.value} (no certificate)" if tls is ListenerTLS.STARTTLS and not certificate else tls.value
