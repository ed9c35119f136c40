"""The admin calls about the daemon as a whole, and the table of all admin calls."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from elemta import __version__
from elemta.config import ListenerTLS, dump
from elemta.daemon.activity_operations import ActivityOperations
from elemta.daemon.adoption_registry import AdoptionRegistry
from elemta.daemon.check_operations import CheckOperations
from elemta.daemon.destination_operations import Delivering, DestinationOperations
from elemta.daemon.explain_operations import Explaining, ExplainOperations, NothingToExplain
from elemta.daemon.find_operations import FindOperations
from elemta.daemon.fleet_calls import FleetCalls
from elemta.daemon.limit_operations import LimitOperations
from elemta.daemon.membership import ValkeyStatus
from elemta.daemon.node_operations import NodeOperations
from elemta.daemon.override_operations import OverrideOperations
from elemta.daemon.push_operations import PushOperations
from elemta.daemon.queue_answers import QueueSize, QueueStats
from elemta.daemon.queue_operations import QueueOperations
from elemta.daemon.reload import ReloadReport
from elemta.daemon.service import Elemta
from elemta.daemon.session_operations import SessionOperations
from elemta.daemon.spool_operations import SpoolOperations
from elemta.daemon.trace_operations import TraceOperations
from elemta.deferred_value import value_of
from elemta.errors import Fault, SpoolError
from elemta.message.notice import NoticeSettings
from elemta.net.listeners import Listener
from elemta.ops.admin_calls import CallTable, route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.openapi import ApiOperations
from elemta.outcome import ReturnedMessage
from elemta.policy import PluginInfo, available_plugins
from elemta.policy.discovery import PluginDetails, plugin_details
from elemta.spool.combined_queue import CombinedQueue
from elemta.spool.records import MessageState


def admin_calls(daemon: Elemta, adoptions: AdoptionRegistry) -> CallTable:
    """The calls of the admin API on one daemon and its open spools."""

    async def give_up(queue_id: str) -> ReturnedMessage:
        spool = await adoptions.queue.of(queue_id)
        from elemta.delivery.notices import return_to_sender  # noqa: PLC0415 - only where there is mail

        settings = NoticeSettings.from_config(daemon.components.config, daemon.components.domains)
        return await return_to_sender(spool, queue_id, settings, daemon.shared.runtime.wall)

    def delivering() -> Delivering:
        if daemon.parts is None:
            raise SpoolError("the daemon is starting or stopping")
        return daemon.parts

    now, node_id = daemon.shared.runtime.wall, daemon.config.server.node_id
    api = ApiOperations()
    calls = CallTable(
        DaemonOperations(daemon, adoptions.queue),
        NodeOperations(daemon, daemon.shared.runtime.wall),
        QueueOperations(adoptions.queue, give_up, now),
        FindOperations(adoptions.queue.own, lambda: adoptions.spools, node_id),
        DestinationOperations(adoptions.queue, delivering, now, node_id),
        LimitOperations(lambda: daemon.components, daemon.fleet, node_id, daemon.shared.traffic.limits_today),
        OverrideOperations(lambda: daemon.components, daemon.fleet),
        PushOperations(lambda: daemon.components, daemon.fleet),
        CheckOperations(lambda: daemon.components.limiter),
        SpoolOperations(adoptions),
        ActivityOperations(
            daemon.shared.traffic,
            lambda: daemon.components.chain,
            daemon.shared.metrics.policy,
            daemon.shared.runtime.reactor.seconds,
        ),
        ExplainOperations(_explaining(daemon)),
        SessionOperations(daemon.listeners.registry, node_id),
        TraceOperations(daemon.shared.runtime, daemon.shared.trace, daemon.listeners.registry),
        api,
    )
    api.calls = calls
    questions = daemon.fleet.questions
    if questions is None:
        return calls
    return FleetCalls(calls, daemon.fleet, questions, node_id, daemon.shared.runtime)


def _explaining(daemon: Elemta) -> Explaining:
    if daemon.shared.mail is None:
        return NothingToExplain()
    from elemta.daemon.explainer import Explainer  # noqa: PLC0415 - only where there is mail

    return Explainer(daemon)


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """One listener: name, role and TLS as configured, the address it is bound to, its open connections."""

    name: str
    role: str
    tls: str
    address: str
    connections: int


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """One certificate of the server: its file, its names, the kind of its key, and when it expires.

    ``not_after`` is seconds since the epoch. ``days_left`` are whole days, less than 0 after that.
    """

    file: str
    names: tuple[str, ...]
    kind: str
    not_after: float
    days_left: int


@dataclass(frozen=True, slots=True)
class OwnSpoolStatus:
    """The spool directory of this node, and :class:`QueueStats`."""

    directory: str
    healthy: bool
    free: int
    oldest_age: float
    total: QueueSize
    states: Mapping[MessageState, QueueSize]


@dataclass(frozen=True, slots=True)
class FailedSpoolStatus:
    """The spool directory of this node, and why it can't be read. ``healthy`` is False."""

    directory: str
    healthy: bool
    error: str


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The daemon at one moment.

    ``started_at`` is seconds since the epoch. ``state`` is ``starting``, ``serving``, ``draining`` or
    ``stopping``; ``not_ready`` says why mail would not be accepted now (empty when it would). ``config`` is
    where the configuration came from. ``sessions`` are the open ones on all listeners. ``limiter`` and
    ``live_nodes`` are those of :class:`~elemta.daemon.cluster.LimiterStatus`. ``needs_restart`` are keys that
    reloads changed and only a restart puts into force. ``notes`` are settings that were given and have no
    effect, or are dangerous.
    """

    version: str
    node_id: str
    hostname: str
    pid: int
    state: str
    ready: bool
    not_ready: tuple[str, ...]
    started_at: float
    uptime: float
    config: str
    listeners: tuple[ListenerStatus, ...]
    certificates: tuple[CertificateStatus, ...]
    sessions: int
    policies: tuple[str, ...]
    limiter: str
    live_nodes: int
    valkey: ValkeyStatus | None
    spool: OwnSpoolStatus | FailedSpoolStatus
    needs_restart: tuple[str, ...]
    notes: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class PluginListing:
    """Every installed policy plugin, those that can't be used too."""

    plugins: tuple[PluginInfo, ...]


@dataclass(frozen=True, slots=True)
class ConfigInForce:
    """The configuration as TOML, without secrets; what ``needs_restart`` is in it, too."""

    toml: str
    needs_restart: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DrainResult:
    """The state of the daemon after a drain, or after its end."""

    state: str


class DaemonOperations:
    """Shows and controls one daemon; ``queue`` is its open spool and those that it adopted."""

    def __init__(self, daemon: Elemta, queue: CombinedQueue) -> None:
        self._daemon = daemon
        self._queue = queue

    @route("GET", "/v1/status")
    async def status(self) -> DaemonStatus:
        """The daemon and its queue in numbers."""
        daemon = self._daemon
        config = daemon.components.config
        limiter = daemon.fleet.status()
        not_ready = daemon.why_not_ready()
        return DaemonStatus(
            version=__version__,
            node_id=config.server.node_id,
            hostname=config.server.hostname,
            pid=os.getpid(),
            state=daemon.state_name,
            ready=not not_ready,
            not_ready=not_ready,
            started_at=daemon.started_at,
            uptime=self._uptime(),
            config=config.source,
            listeners=tuple(self._listener_status(listener) for listener in daemon.listeners.smtp),
            certificates=self._certificates(),
            sessions=daemon.sessions,
            policies=tuple(config.policies.chain),
            limiter=limiter.mode,
            live_nodes=limiter.live_nodes,
            valkey=limiter.valkey,
            spool=await self._spool_status(config.spool.directory),
            needs_restart=daemon.needs_restart,
            notes=(*daemon.components.cautions(self._now()), *config.without_effect()),
        )

    @route("GET", "/v1/plugins")
    async def plugins(self) -> PluginListing:
        """The installed policy plugins."""
        return PluginListing(tuple(available_plugins(self._daemon.components.chain)))

    @route("GET", "/v1/plugins/{name}")
    async def plugin(self, name: str) -> PluginDetails:
        """One plugin, or the one that a policy is made of: its options, and the policies made of it."""
        components = self._daemon.components
        details = plugin_details(name, components.config, components.chain)
        if details is None:
            raise AdminRefusal(
                HTTPStatus.NOT_FOUND, f"no plugin is called {name}", "elemtactl plugins lists them"
            )
        return details

    @route("GET", "/v1/config")
    async def config(self) -> ConfigInForce:
        """The configuration in force."""
        return ConfigInForce(dump(self._daemon.components.config), self._daemon.needs_restart)

    @route("POST", "/v1/reload")
    async def reload(self) -> ReloadReport:
        """Read the configuration again and put it into force, or change nothing."""
        report = await value_of(self._daemon.reload())
        if report.faults:
            # RFC 9110 §15.5.21
            raise AdminRefusal(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "the configuration can't be used; nothing was changed",
                "correct the faults and reload again",
                faults=report.faults,
            )
        return report

    @route("POST", "/v1/drain")
    async def drain(self) -> DrainResult:
        """Take no new session, and end the others as soon as their message is done."""
        self._daemon.drain()
        return DrainResult(self._daemon.state_name)

    @route("POST", "/v1/undrain")
    async def undrain(self) -> DrainResult:
        """End a drain: take new sessions again."""
        if self._daemon.state_name not in ("draining", "serving"):
            problem = f"the daemon is {self._daemon.state_name}"
            raise AdminRefusal(HTTPStatus.CONFLICT, problem, "only a drain can be ended")
        self._daemon.undrain()
        return DrainResult(self._daemon.state_name)

    def _now(self) -> float:
        return self._daemon.shared.runtime.wall()

    def _uptime(self) -> float:
        return max(0.0, self._now() - self._daemon.started_at)

    def _certificates(self) -> tuple[CertificateStatus, ...]:
        now = self._now()
        return tuple(
            CertificateStatus(each.file, each.names, each.kind, each.not_after, each.days_left(now))
            for each in self._daemon.components.certificates
        )

    def _listener_status(self, listener: Listener) -> ListenerStatus:
        factory = self._daemon.listeners.factories[listener.name]
        return ListenerStatus(
            name=listener.name,
            role=factory.listener.role.value,
            tls=_tls_in_words(factory.listener.tls, certificate=bool(self._daemon.components.certificates)),
            address=listener.address,
            connections=factory.open_sessions,
        )

    async def _spool_status(self, directory: str) -> OwnSpoolStatus | FailedSpoolStatus:
        try:
            stats = QueueStats.of(await self._queue.stats(as_listed=True))
        except SpoolError as error:
            # The status is what one asks for when the disk has failed.
            return FailedSpoolStatus(directory, healthy=False, error=str(error))
        return OwnSpoolStatus(
            directory, stats.healthy, stats.free, stats.oldest_age, stats.total, stats.states
        )


def _tls_in_words(tls: ListenerTLS, *, certificate: bool) -> str:
    return f"{tls.value} (no certificate)" if tls is ListenerTLS.STARTTLS and not certificate else tls.value
