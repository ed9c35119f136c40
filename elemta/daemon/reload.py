"""A reload: the configuration is read again, and put into force as a whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from twisted.logger import Logger

from elemta.config import Config, load
from elemta.daemon.components import (
    Components,
    SharedResources,
    build_components,
    with_faults_of_parts,
)
from elemta.deferred_value import Steps
from elemta.errors import ConfigError, Fault
from elemta.ops.log import LogObserver
from elemta.ops.systemd import Notifier

_log = Logger()


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload came to: faults, and then nothing was changed; else what still needs a restart."""

    faults: tuple[Fault, ...] = ()
    needs_restart: tuple[str, ...] = ()


class ConfigReloader:
    """Reads ``config_path`` and ``environ`` again at a reload.

    ``put_into_force`` takes what was built from them, and gives the keys that wait for a restart; None where
    the daemon stops meanwhile.
    """

    def __init__(
        self,
        config_path: str | None,
        environ: Mapping[str, str],
        shared: SharedResources,
        put_into_force: Callable[[Components], Steps[tuple[str, ...] | None]],
        *,
        notifier: Notifier,
        log_observer: LogObserver | None = None,
    ) -> None:
        self._config_path = config_path
        self._environ = environ
        self._shared = shared
        self._put_into_force = put_into_force
        self._notifier = notifier
        self._log_observer = log_observer

    def reload(self, text: str | None = None) -> Steps[ReloadReport]:
        """Faults in the configuration are in the result and in the log; nothing was changed then.

        ``text`` is the file's where another process has read it.
        """
        self._notifier.reloading()
        try:
            components = build_components(load(self._config_path, self._environ, text), self._shared)
        except ConfigError as error:
            return refused(with_faults_of_parts(error, lambda _: self._shared).faults)
        finally:
            self._notifier.ready()
        self._renew_log(components.config)
        waiting = yield from self._put_into_force(components)
        if waiting is None:
            return refused((Fault(components.config.source, "", "the daemon is stopping"),))
        say_cautions(components.cautions(self._shared.runtime.wall()))
        _log.info("reloaded", event="config.reloaded", config=components.config.source, needs_restart=waiting)
        return ReloadReport(needs_restart=waiting)

    def rebuild(self, config: Config) -> Steps[None]:
        """Put ``config`` into force with the pushed limits as they are now, and read nothing again.

        Raises ConfigError, and then nothing was changed.
        """
        components = build_components(config, self._shared)
        yield from self._put_into_force(components)

    def _renew_log(self, config: Config) -> None:
        """Level and format as they are set now, in a new file where the old one was rotated away."""
        if self._log_observer is None:
            return
        self._log_observer.configure(config.logging.format, config.logging.level)
        try:
            self._log_observer.reopen()
        except OSError as error:
            _log.error("the log file could not be opened again", event="log.not_reopened", error=str(error))


def refused(faults: Sequence[Fault]) -> ReloadReport:
    """A reload that changed nothing, and says so in the log."""
    for fault in faults:
        _log.error(
            "the configuration can't be used; the reload changed nothing",
            event="config.reload_refused",
            fault=str(fault),
        )
    return ReloadReport(faults=tuple(faults))


def say_cautions(cautions: Sequence[Fault]) -> None:
    """What is allowed and dangerous, in the log."""
    for caution in cautions:
        _log.warn(
            "a setting is dangerous",
            event="config.warning_given",
            file=caution.place,
            key=caution.key,
            note=caution.problem,
        )
