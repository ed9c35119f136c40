"""What every daemon is to twistd, to signals and to operators: one process, a worker, or a supervisor."""

from __future__ import annotations

import atexit
import enum
import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType
from typing import TypeVar

from twisted.application.service import IServiceCollection, Service
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from elemta.config import Config
from elemta.daemon.components import Components, SharedResources, needs_restart
from elemta.daemon.listeners import Listeners
from elemta.daemon.membership import Membership
from elemta.daemon.reload import ConfigReloader, ReloadReport, refused, say_cautions
from elemta.deferred_value import MaybeDeferred, Steps, run, value_of
from elemta.errors import ElemtaError, Fault, ListenFailed
from elemta.limits.push_registry import PushRegistry
from elemta.ops.log import LogObserver
from elemta.ops.systemd import Notifier

_log = Logger()

Changed = TypeVar("Changed")

# sysexits.h: EX_TEMPFAIL; another try may succeed, so a supervisor should restart us.
EX_TEMPFAIL = 75

CLOSING_SECONDS = 60.0
"""What a stop may take after the grace: the last commits, the files."""


class DaemonState(enum.Enum):
    """Where the daemon is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


class DaemonService(Service):
    """Binds before privileges go, starts, reloads and stops; what these are to a daemon, its class says.

    ``config_path`` and ``environ`` are read again at a reload. ``in_background``: twistd forks, and its first
    process waits to hear how the start went.
    """

    name = "elemta"

    def __init__(
        self,
        *,
        shared: SharedResources,
        components: Components,
        notifier: Notifier,
        config_path: str | None,
        environ: Mapping[str, str],
        log_observer: LogObserver | None,
        in_background: bool,
    ) -> None:
        self.shared = shared
        self.components = components
        self.state = DaemonState.STARTING
        self.listeners = Listeners(shared, components.config.resources.max_connections)
        self._started = shared.runtime.monotonic()
        self._started_with = components
        self._notifier = notifier
        self._log_observer = log_observer
        self._in_background = in_background
        self._reloading = ConfigReloader(
            config_path,
            environ,
            shared,
            self._put_into_force,
            notifier=notifier,
            log_observer=log_observer,
        )
        # One reload, or the start, puts a configuration into force at a time.
        self._changing = DeferredLock()
        self._starting: Deferred[None] | None = None

    @property
    def config(self) -> Config:
        return self.components.config

    @property
    def fleet(self) -> Membership:
        return self.shared.fleet

    @property
    def reactor(self) -> ReactorBase:
        return self.shared.runtime.reactor

    @property
    def started_at(self) -> float:
        """When it was started, in seconds since the epoch: by the time of day as that is set now."""
        runtime = self.shared.runtime
        return runtime.wall() - (runtime.monotonic() - self._started)

    @property
    def state_name(self) -> str:
        return self.state.value

    @property
    def draining(self) -> bool:
        """Whether it takes no new session, and serves those that are open."""
        return self.state in (DaemonState.DRAINING, DaemonState.STOPPING)

    @property
    def needs_restart(self) -> tuple[str, ...]:
        """The keys of settings that reloads have changed and only a restart puts into force."""
        return needs_restart(self._started_with, self.components)

    # What each daemon says or does in its own way

    @property
    def sessions(self) -> int:
        raise NotImplementedError

    def why_not_ready(self) -> tuple[str, ...]:
        """Why mail would not be accepted now; empty when it would."""
        raise NotImplementedError

    def _bind(self) -> None:
        """Open every socket while that is still allowed. Raises ListenFailed."""
        raise NotImplementedError

    async def _start(self) -> None:
        raise NotImplementedError

    async def _stop_parts(self, grace: float) -> None:
        """End the start where it is under way, and what it has opened; sessions have the grace."""
        raise NotImplementedError

    def _put_into_force(self, components: Components) -> Steps[tuple[str, ...] | None]:
        """As :class:`~elemta.daemon.reload.ConfigReloader` has it."""
        raise NotImplementedError

    # What twistd calls

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Become part of twistd's application, and give it our log observer."""
        if self._log_observer is not None and isinstance(parent, Componentized):
            Componentized.setComponent(parent, ILogObserver, self._log_observer)
        Service.setServiceParent(self, parent)

    def privilegedStartService(self) -> None:
        """Bind every socket while that is still allowed; exits with the reason when one can't be bound."""
        Service.privilegedStartService(self)
        try:
            self._bind()
        except ListenFailed as error:
            _log.critical("a socket could not be opened", event="listener.failed", error=str(error))
            if self._in_background:
                # twistd passes any other error on to the process that waits, and lets that wait for ever
                # after a SystemExit.
                raise
            raise SystemExit(f"elemta: {error}") from None

    def startService(self) -> None:
        Service.startService(self)

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    # Start

    def _begin(self) -> None:
        if self.state is not DaemonState.STOPPING:
            self._starting = Deferred.fromCoroutine(self._start())
            self._starting.addErrback(self._start_failed)

    def _start_failed(self, failure: Failure) -> None:
        self._notifier.failed(failure.getErrorMessage())
        _log.critical(
            "the daemon could not start",
            event="daemon.start_failed",
            error=failure.getErrorMessage(),
            log_failure=None if failure.check(ElemtaError) else failure,
        )
        # twistd exits with 0 after a plain stop; its own cleaning (pid file) must still happen first.
        atexit.register(exit_with, EX_TEMPFAIL)
        if self.state is not DaemonState.STOPPING:
            self.reactor.callWhenRunning(self.reactor.stop)

    def _say_ready(self) -> None:
        """Say in the log that mail is taken, where, and what is remarkable about the configuration."""
        config, listeners = self.config, self.listeners
        say_cautions(self.components.cautions(self.shared.runtime.wall()))
        for note in config.without_effect():
            _log.warn(
                "a setting has no effect", event="config.effect_missing", key=note.key, note=note.problem
            )
        _log.info(
            "ready",
            event="daemon.ready",
            config=config.source,
            listeners=[f"{listener.name} {listener.address}" for listener in listeners.smtp],
            policy_services=[f"{each.name} {each.address}" for each in listeners.policy_services],
            metrics=[listener.address for listener in listeners.monitoring],
            console=[listener.address for listener in listeners.console],
            spool=config.spool.directory,
            policies=list(config.policies.chain),
        )

    # Reload

    def _reload_on_hang_up(self) -> None:
        """Reload at each SIGHUP from now on."""
        signal.signal(signal.SIGHUP, self._hang_up)

    def _hang_up(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.reactor.callFromThread(self._reload_unwaited)

    def _reload_unwaited(self) -> None:
        log_reload_failure(Deferred.fromCoroutine(value_of(self.reload())))

    def reload(self, text: str | None = None) -> MaybeDeferred[ReloadReport]:
        """Read the configuration again and put it into force as a whole, or leave everything as it is.

        ``text`` is the file's where another process has read it. What needs a new socket or spool stays as it
        was and is named in the result. It takes time only where a policy takes time to start, or another
        reload is under way.
        """
        return run(self._in_turn(self._reload(text)))

    def _in_turn(self, change: Steps[Changed]) -> Steps[Changed]:
        """Do one change when no other is under way."""
        yield self._changing.acquire()
        try:
            return (yield from change)
        finally:
            self._changing.release()

    def _reload(self, text: str | None) -> Steps[ReloadReport]:
        if self.state is DaemonState.STOPPING:
            return refused((Fault(self.config.source, "", "the daemon is stopping"),))
        report = yield from self._reload_in_turn(text)
        pushed = self.shared.fleet.pushed
        if not report.faults and isinstance(pushed, PushRegistry):
            pushed.try_again()
        return report

    def _reload_in_turn(self, text: str | None) -> Steps[ReloadReport]:
        """A reload, while no other changes anything."""
        return (yield from self._reloading.reload(text))

    @property
    def shares_limits(self) -> bool:
        return self.components.own_config.limit_sharing.shared

    async def take_limits(self) -> None:
        await value_of(run(self._in_turn(self._take_limits())))

    def _take_limits(self) -> Steps[None]:
        if self.state is not DaemonState.STOPPING:
            yield from self._reloading.rebuild(self.components.own_config)

    # End

    def _begin_drain(self) -> bool:
        """Whether there was no drain before."""
        if self.state is not DaemonState.SERVING:
            return False
        self.state = DaemonState.DRAINING
        _log.info("draining", event="daemon.draining", sessions=self.sessions)
        return True

    def _end_drain(self) -> bool:
        """Whether there was a drain."""
        if self.state is not DaemonState.DRAINING:
            return False
        self.state = DaemonState.SERVING
        _log.info("serving again", event="daemon.undrained", sessions=self.sessions)
        return True

    async def _stop(self) -> None:
        grace = self.config.server.shutdown_grace
        self.state = DaemonState.STOPPING
        self._notifier.stopping("draining")
        # The unit's own timeout may be less than the grace that was set.
        self._notifier.extend(grace + CLOSING_SECONDS)
        await self._stop_parts(grace)
        await self.fleet.stop()
        if self.components.mail is not None:
            await self.components.mail.authenticator.stop()
        self._notifier.close()
        _log.info("stopped", event="daemon.stopped")


def log_reload_failure(reloading: Deferred[object]) -> None:
    """Say in the log where a reload that nothing waits for ends with an internal error."""
    reloading.addErrback(
        lambda failure: _log.failure(
            "a reload failed with an internal error", failure, event="config.reload_failed"
        )
    )


def exit_with(status: int) -> None:
    """End the process at once."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
