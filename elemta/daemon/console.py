"""The console of the daemon: what it is built from, and the state that its events tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.base import ReactorBase

from elemta.auth.accounts import AccountsFile
from elemta.auth.authenticator import Authenticator
from elemta.auth.checker import AccountsChecker
from elemta.config import Config
from elemta.console.access import ConsoleAccess
from elemta.console.first_token import FirstToken
from elemta.console.site import ConsoleSite
from elemta.limits import Limiter
from elemta.ops.admin_calls import CallTable
from elemta.runtime import Runtime

_STATE = ("node_id", "state", "ready", "not_ready", "sessions", "limiter", "live_nodes", "spool")


class DaemonConsole:
    """Its site is bound while the process may still do so, and serves calls once it is opened."""

    def __init__(self, reactor: ReactorBase) -> None:
        self.site = ConsoleSite(reactor)

    async def open(
        self, calls: CallTable, config: Config, limiter: Callable[[], Limiter], runtime: Runtime
    ) -> None:
        """Serve these calls, to callers with credentials."""
        accounts = AccountsFile(config.console.users, runtime)
        access = ConsoleAccess(
            runtime,
            accounts,
            FirstToken(config.spool.directory, runtime.randomness),
            authenticator=Authenticator([AccountsChecker(accounts)], runtime),
            limiter=limiter,
            hostnames=(config.server.hostname, config.server.node_id),
        )
        await access.start()

        async def state() -> dict[str, Any]:
            status: Any = await calls.answer("GET", "/v1/status")
            return {"at": runtime.wall(), **{name: status[name] for name in _STATE}}

        self.site.open(calls, access, runtime.wall, state)
