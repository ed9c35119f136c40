"""``twistd elemta``: the command line, and the service that it makes.

twistd calls :func:`makeService` before it forks, so nothing here starts a thread or opens a socket.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO, cast

from twisted.application.service import IService
from twisted.internet.base import ReactorBase
from twisted.python import usage

from elemta import __version__
from elemta.config import Config, load
from elemta.daemon.daemon_mode import handles_mail, may_need_tls
from elemta.errors import ConfigError
from elemta.ops.log import LogObserver, observer
from elemta.runtime.plain_transports import import_txredisapi, without_tls

if TYPE_CHECKING:
    from elemta.daemon.components import Components, SharedResources
    from elemta.runtime import Runtime

# sysexits.h: EX_CONFIG. A unit file can tell it from a crash and not restart in a loop.
EX_CONFIG = 78


class Options(usage.Options):
    """The options of ``twistd elemta``."""

    synopsis = "[--config FILE] [--check]"
    longdesc = "Elemta: an ESMTP daemon with policies at every stage and cluster-wide limits."
    optParameters = [
        [
            "config",
            "c",
            None,
            "The configuration file; without it every default holds.",
        ],
    ]
    optFlags = [
        [
            "check",
            None,
            "Read and build everything, open nothing; exit 0, or 78 with every fault.",
        ],
    ]

    def parseArgs(self, *words: str) -> None:
        """Refuse a word that is no option, and say how a file is named."""
        if words:
            raise usage.UsageError(f"{words[0]}: is no option (the configuration is --config {words[0]})")

    def opt_version(self) -> NoReturn:
        """Show the version of Elemta and exit."""
        sys.stdout.write(f"elemta {__version__}\n")
        sys.exit(0)


def makeService(options: Options) -> IService:
    """The daemon as a service; exits with 78 and every fault when the configuration can't be used."""
    # Until the service takes it: what a reload would read is not read yet, and the default is to die of it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        config = load(options["config"], os.environ)
        if handles_mail(config) or may_need_tls(config):
            return _service(options, config)
        with without_tls():
            service = _service(options, config)
            if config.resources.valkey_url:
                # Now: else it is imported with the first connection.
                import_txredisapi()
            return service
    except ConfigError as error:
        sys.stderr.write(f"elemta: the configuration can't be used:\n{_indented(_with_all_faults(error))}\n")
        raise SystemExit(EX_CONFIG) from None


def _with_all_faults(error: ConfigError) -> str:
    """The error with the faults of the parts that the rest of the configuration comes to."""
    from elemta.daemon.components import with_faults_of_parts

    runtime = _runtime()
    return str(with_faults_of_parts(error, lambda config: _shared_resources(config, runtime)))


def _runtime() -> Runtime:
    from twisted.internet import reactor  # twistd has installed the one that was asked for by now

    from elemta.runtime import Runtime

    return Runtime.system(cast(ReactorBase, reactor))


def _shared_resources(config: Config, runtime: Runtime) -> SharedResources:
    from elemta.daemon.components import SharedResources
    from elemta.daemon.worker_orders import worker_count

    if worker_count(config.server.workers) > 1:
        from elemta.daemon.membership_server import supervisor_config

        config = supervisor_config(config)
    return SharedResources.from_config(config, runtime)


def _service(options: Options, config: Config) -> IService:
    """The service, whose parts are imported here. Raises ConfigError."""
    runtime = _runtime()

    from elemta.daemon.admin_operations import admin_calls
    from elemta.daemon.components import build_at_start
    from elemta.daemon.composition import import_modules
    from elemta.daemon.service import Elemta
    from elemta.daemon.worker_orders import worker_count

    count = worker_count(config.server.workers)
    shared = _shared_resources(config, runtime)
    components = build_at_start(config, shared)
    if options["check"]:
        for caution in components.cautions(runtime.wall()):
            sys.stdout.write(f"caution: {caution}\n")
        for note in config.without_effect():
            sys.stdout.write(f"note: {note}\n")
        sys.stdout.write(f"elemta: {config.source}: the configuration is good\n")
        raise SystemExit(0)
    import_modules(shared, console=bool(config.console.endpoint))
    # What is there now stays to the end. Python need not look through it again and again for garbage, while
    # every session waits: that is some 70,000 objects, or most of what a quiet daemon has.
    gc.collect()
    gc.freeze()
    log_observer = _log_observer(config, options.parent, runtime.wall)
    in_background = not _is_in_foreground(options.parent)
    if count > 1:
        return _supervisor(options, config, shared, components, log_observer, in_background=in_background)
    return Elemta(
        shared=shared,
        components=components,
        admin_calls=admin_calls,
        config_path=options["config"],
        environ=os.environ,
        log_observer=log_observer,
        in_background=in_background,
    )


def _supervisor(
    options: Options,
    config: Config,
    shared: SharedResources,
    components: Components,
    log_observer: LogObserver,
    *,
    in_background: bool,
) -> IService:
    """The daemon of several workers."""
    from elemta.daemon.supervisor import Supervisor
    from elemta.daemon.supervisor_operations import SupervisorOperations, join_metrics
    from elemta.daemon.worker_launch import ProcessLauncher
    from elemta.daemon.worker_orders import worker_count

    count = worker_count(config.server.workers)
    supervisor = Supervisor(
        shared=shared,
        components=components,
        count=count,
        launcher=lambda supervisor: ProcessLauncher(
            supervisor.listeners,
            shared.runtime.reactor,
            count=count,
            config_path=options["config"],
            config_text=lambda: supervisor.components.own_config.text,
            environ=os.environ,
            journald=log_observer.journald,
            reactor_name=_reactor_name(options.parent),
        ),
        open_operations=SupervisorOperations.open,
        config_path=options["config"],
        environ=os.environ,
        log_observer=log_observer,
        in_background=in_background,
    )
    join_metrics(supervisor)
    return supervisor


def _reactor_name(twistd: usage.Options | None) -> str:
    """The reactor that twistd was asked for; "" where it was not."""
    return "" if twistd is None else str(twistd.get("reactor") or "")


def _log_observer(config: Config, twistd: usage.Options | None, wall: Callable[[], float]) -> LogObserver:
    """Where twistd would have logged: ``--logfile``, standard output in the foreground, or twistd.log."""
    logfile = twistd["logfile"] if twistd is not None else None
    foreground = _is_in_foreground(twistd)
    stream: TextIO
    if logfile == "-" or (foreground and not logfile):
        stream = sys.stdout
    else:
        # twistd changes to another directory; what a rotation cuts short is appended to.
        path = Path(logfile or "twistd.log").absolute()
        try:
            stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise SystemExit(f"elemta: the log file {path} can't be written: {error.strerror}") from None
    return observer(
        format=config.logging.format,
        level=config.logging.level,
        node_id=config.server.node_id,
        stream=stream,
        wall=wall,
    )


def _is_in_foreground(twistd: usage.Options | None) -> bool:
    return twistd is None or bool(twistd["nodaemon"])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
