"""The admin API of the supervisor: of all its workers as one daemon."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from elemta.daemon.activity_operations import ActivityOperations
from elemta.daemon.admin_operations import DaemonOperations, DrainResult
from elemta.daemon.check_operations import CheckOperations
from elemta.daemon.destination_operations import DestinationOperations
from elemta.daemon.explain_operations import ExplainOperations
from elemta.daemon.find_operations import FindOperations
from elemta.daemon.fleet_calls import FleetCalls
from elemta.daemon.joined_calls import JoinedCalls
from elemta.daemon.limit_operations import LimitOperations
from elemta.daemon.node_operations import NodeOperations
from elemta.daemon.override_operations import OverrideOperations
from elemta.daemon.push_operations import PushOperations
from elemta.daemon.queue_operations import QueueOperations
from elemta.daemon.reload import ReloadReport
from elemta.daemon.session_operations import SessionOperations
from elemta.daemon.spool_operations import SpoolOperations
from elemta.daemon.supervisor import Supervisor
from elemta.daemon.trace_operations import TraceOperations
from elemta.daemon.worker_orders import METRICS_SOCKET, worker_directory
from elemta.daemon.worker_peer import WorkerPeer, WorkersMetrics
from elemta.deferred_value import value_of
from elemta.ops.admin import AdminSite
from elemta.ops.admin_calls import CallTable, declared_calls, route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_socket import SOCKET_NAME, AdminSocket
from elemta.ops.openapi import ApiOperations


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker. ``trouble`` says why it does not run, or takes no mail; ``starts`` counts its processes."""

    number: int
    state: str
    pid: int | None
    sessions: int
    queued: int
    starts: int
    trouble: str


@dataclass(frozen=True, slots=True)
class WorkerListing:
    """The workers of a daemon."""

    state: str
    pid: int
    not_ready: tuple[str, ...]
    workers: tuple[WorkerStatus, ...]


class SupervisorCalls:
    """Shows and controls all workers of one daemon."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    @route("GET", "/v1/workers")
    async def workers(self) -> WorkerListing:
        """The workers, and what each of them does."""
        supervisor = self._supervisor
        return WorkerListing(
            supervisor.state_name,
            os.getpid(),
            supervisor.why_not_ready(),
            tuple(
                WorkerStatus(
                    worker.number,
                    worker.state.value,
                    worker.pid,
                    worker.facts.sessions,
                    worker.facts.queued,
                    worker.starts,
                    worker.problem,
                )
                for worker in supervisor.workers
            ),
        )

    @route("POST", "/v1/reload")
    async def reload(self) -> ReloadReport:
        """Read the configuration again and put it into force, or change nothing."""
        report = await value_of(self._supervisor.reload())
        if report.faults:
            # RFC 9110 §15.5.21
            raise AdminRefusal(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "the configuration can't be used",
                "correct the faults and reload again",
                faults=report.faults,
            )
        return report

    @route("POST", "/v1/drain")
    async def drain(self) -> DrainResult:
        """Take no new session, and end the others as soon as their message is done."""
        await self._supervisor.drain()
        return DrainResult(self._supervisor.state_name)

    @route("POST", "/v1/undrain")
    async def undrain(self) -> DrainResult:
        """End a drain: take new sessions again."""
        if self._supervisor.state_name not in ("draining", "serving"):
            problem = f"the daemon is {self._supervisor.state_name}"
            raise AdminRefusal(HTTPStatus.CONFLICT, problem, "only a drain can be ended")
        await self._supervisor.undrain()
        return DrainResult(self._supervisor.state_name)


def supervisor_calls(supervisor: Supervisor) -> CallTable:
    """The calls of the admin API on a daemon with workers: its own, and those of its workers joined."""
    shared, node_id = supervisor.shared, supervisor.config.server.node_id
    runtime, fleet = shared.runtime, supervisor.fleet
    api = ApiOperations()
    own = CallTable(
        SupervisorCalls(supervisor),
        NodeOperations(supervisor, runtime.wall),
        LimitOperations(lambda: supervisor.components, fleet, node_id, shared.traffic.limits_today),
        OverrideOperations(lambda: supervisor.components, fleet),
        PushOperations(lambda: supervisor.components, fleet),
        CheckOperations(lambda: supervisor.components.limiter),
        api,
    )
    spool = supervisor.config.spool.directory
    peers = [
        WorkerPeer(str(each.number), worker_directory(spool, each.number) / SOCKET_NAME, runtime.reactor)
        for each in supervisor.workers
    ]
    calls = JoinedCalls(own, WORKER_CALLS, lambda: peers, runtime.reactor, partial(own_status, supervisor))
    api.calls = calls
    if fleet.questions is None:
        return calls
    return FleetCalls(calls, fleet, fleet.questions, node_id, runtime)


def own_status(supervisor: Supervisor) -> Mapping[str, Any]:
    """What ``GET /v1/status`` says of the supervisor, in place of what workers say of themselves."""
    not_ready, limiter = supervisor.why_not_ready(), supervisor.fleet.status()
    return {
        "pid": os.getpid(),
        "state": supervisor.state_name,
        "ready": not not_ready,
        "not_ready": list(not_ready),
        "started_at": supervisor.started_at,
        "uptime": max(0.0, supervisor.shared.runtime.wall() - supervisor.started_at),
        "config": supervisor.config.source,
        "limiter": limiter.mode,
        "live_nodes": limiter.live_nodes,
        "valkey": None if limiter.valkey is None else asdict(limiter.valkey),
        "needs_restart": list(supervisor.needs_restart),
    }


WORKER_CALLS = declared_calls(
    DaemonOperations,
    QueueOperations,
    FindOperations,
    DestinationOperations,
    LimitOperations,
    SpoolOperations,
    ExplainOperations,
    ActivityOperations,
    SessionOperations,
    TraceOperations,
)
"""The calls that workers answer."""


class SupervisorOperations:
    """What is open for operators, and for monitoring."""

    def __init__(self, socket: AdminSocket) -> None:
        self._socket = socket

    @classmethod
    async def open(cls, supervisor: Supervisor) -> SupervisorOperations:
        """Open the admin socket in the spool's directory, which the workers have made, and the console."""
        calls = supervisor_calls(supervisor)
        config, shared = supervisor.config, supervisor.shared
        path = Path(config.spool.directory) / SOCKET_NAME
        socket = AdminSocket(path, AdminSite(calls, supervisor.reactor), supervisor.reactor)
        socket.open()
        if supervisor.listeners.daemon_console is not None:
            await supervisor.listeners.daemon_console.open(
                calls, config, lambda: supervisor.components.limiter, shared.runtime
            )
            supervisor.listeners.open_console()
        return cls(socket)

    async def close(self) -> None:
        """Answer nothing more."""
        await self._socket.close()


def join_metrics(supervisor: Supervisor) -> None:
    """Show the metrics of all workers with the supervisor's."""
    spool = supervisor.config.spool.directory

    def sockets() -> Sequence[tuple[str, Path]]:
        return [
            (str(each.number), worker_directory(spool, each.number) / METRICS_SOCKET)
            for each in supervisor.serving
        ]

    shared = supervisor.shared
    shared.exporter.join_with(WorkersMetrics(shared.exporter, shared.metrics, sockets, supervisor.reactor))
