"""The admin API of the supervisor: of all its workers as one daemon."""

from __future__ import annotations

import os
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from elemta.daemon.admin_operations import DrainResult
from elemta.daemon.reload import ReloadReport
from elemta.daemon.supervisor import Supervisor
from elemta.deferred_value import value_of
from elemta.ops.admin import AdminSite
from elemta.ops.admin_calls import CallTable, route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_socket import SOCKET_NAME, AdminSocket


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker. ``trouble`` says why it does not run; ``starts`` counts its processes."""

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
                    worker.trouble,
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
                HTTPStatus.UNPROCESSABLE_ENTITY, "the configuration can't be used", "", faults=report.faults
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


class SupervisorOperations:
    """What is open for operators."""

    def __init__(self, socket: AdminSocket) -> None:
        self._socket = socket

    @classmethod
    async def open(cls, supervisor: Supervisor) -> SupervisorOperations:
        """Open the admin socket in the spool's directory, which the workers have made."""
        calls = CallTable(SupervisorCalls(supervisor))
        path = Path(supervisor.config.spool.directory) / SOCKET_NAME
        socket = AdminSocket(path, AdminSite(calls, supervisor.reactor), supervisor.reactor)
        socket.open()
        return cls(socket)

    async def close(self) -> None:
        """Answer nothing more."""
        await self._socket.close()
