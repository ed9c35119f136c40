"""What a configuration comes to: every part that is built from it, and nothing that is open.

``--check``, the start and a reload all go through :func:`build_components`, so that what one of them accepts
the others do too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.logger import Logger

from elemta.config import Config, OnExceed
from elemta.conversation_trace import ConversationTrace
from elemta.daemon.cluster import ClusterMembership
from elemta.daemon.daemon_mode import handles_mail, is_for_mail, may_need_tls
from elemta.daemon.late_resolver import LateResolver
from elemta.daemon.membership import Membership, SingleNode
from elemta.daemon.worker_orders import decision_seconds
from elemta.domains import Domains
from elemta.errors import ConfigError, Fault, FaultCollector
from elemta.limits import Limiter, rules_from_config
from elemta.limits.pushed_limits import with_pushed
from elemta.metrics import Metrics
from elemta.ops.metrics import MetricsExporter
from elemta.ops.plugin_metrics import PluginMetricsRegistry
from elemta.ops.traffic import TrafficHistory
from elemta.policies.limits import LimitsPolicy
from elemta.policy import Services
from elemta.policy.backends import PolicyBackends
from elemta.policy.chain import PolicyChain
from elemta.policy.discovery import load_chain
from elemta.runtime import Runtime

if TYPE_CHECKING:
    from elemta.certificates import Certificate
    from elemta.daemon.mail_parts import MailParts, SharedMailParts
    from elemta.dns.resolver import DnsResolver


@dataclass(frozen=True, slots=True)
class SharedResources:
    """What outlives a reload: the runtime, counters of limits, metrics, what DNS and next hops said.

    ``mail`` is None where the daemon takes and delivers none: with services that it has for a fleet alone.
    """

    runtime: Runtime
    fleet: Membership
    metrics: Metrics
    exporter: MetricsExporter
    plugin_metrics: PluginMetricsRegistry
    resolver: DnsResolver | LateResolver
    policy_backends: PolicyBackends
    mail: SharedMailParts | None
    trace: ConversationTrace
    traffic: TrafficHistory

    @classmethod
    def from_config(
        cls, config: Config, runtime: Runtime, join: Callable[[Metrics], Membership] | None = None
    ) -> SharedResources:
        """What the daemon begins with; nothing is opened and no thread started.

        ``join`` makes the membership where that is not this process's own.
        """
        metrics = Metrics(config.server.node_id)
        mail = _shared_mail(runtime, metrics) if handles_mail(config) else None
        fleet: Membership = SingleNode(runtime)
        if join is not None:
            fleet = join(metrics)
        elif config.resources.valkey_url:
            fleet = ClusterMembership(runtime, config, metrics)
        return cls(
            runtime,
            fleet,
            metrics,
            MetricsExporter(metrics),
            PluginMetricsRegistry(metrics.registry),
            LateResolver(runtime, metrics.dns) if mail is None else mail.resolver,
            PolicyBackends(runtime.reactor, runtime.threads, fleet.policy_store, runtime),
            mail,
            ConversationTrace(runtime.wall, runtime.monotonic),
            TrafficHistory(metrics, wall=runtime.wall, monotonic=runtime.monotonic),
        )


def _shared_mail(runtime: Runtime, metrics: Metrics) -> SharedMailParts:
    from elemta.daemon.mail_parts import SharedMailParts  # noqa: PLC0415 - only where there is mail

    return SharedMailParts.open(runtime, metrics)


def _mail(config: Config, shared: SharedResources, domains: Domains) -> MailParts | None:
    if shared.mail is None and not is_for_mail(config):
        return None
    from elemta.daemon.mail_parts import MailParts  # noqa: PLC0415 - only where there is mail

    return MailParts.from_config(config, shared.runtime, domains)


@dataclass(frozen=True, slots=True)
class Components:
    """The parts that one configuration comes to.

    ``own_config`` is that configuration before pushed limits took the place of its own.
    """

    config: Config
    own_config: Config
    domains: Domains
    chain: PolicyChain
    limiter: Limiter
    mail: MailParts | None

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """The server's certificates, the default first."""
        tls = None if self.mail is None else self.mail.tls
        return () if tls is None else tls.certificates

    def inherit(self, previous: Components) -> None:
        """Go on with what clients of ``previous`` have tried."""
        if self.mail is not None and previous.mail is not None:
            self.mail.authenticator.inherit(previous.mail.authenticator)

    def cautions(self, now: float) -> tuple[Fault, ...]:
        """What is allowed and dangerous, in the configuration and in the files that it names."""
        return (
            *self.config.cautions(),
            *self.domains.cautions(self.config),
            *(() if self.mail is None else self.mail.cautions(now)),
        )


def build_components(config: Config, shared: SharedResources) -> Components:
    """Build every part from ``config``, opening nothing.

    Raises :class:`~elemta.errors.ConfigError` or :class:`~elemta.errors.PolicyUnavailable`.
    """
    faults = FaultCollector()
    own_config, pushed = config, shared.fleet.pushed
    with faults:
        config = with_pushed(config, None if pushed is None else pushed.in_force)
    metrics = shared.metrics
    # What other parts are built with while the files of recipients or aliases can't be read.
    domains = Domains(
        frozenset(config.domains.local), None, config.domains.relay_from, config.domains.recipient_delimiter
    )
    with faults:
        domains = Domains.from_config(config.domains)
    logins = bool(config.auth.checkers or config.console.endpoint)
    rules = rules_from_config(config.resources, config.limits, config.auth if logins else None)
    limiter = Limiter(
        rules,
        shared.fleet.store,
        metrics.limits,
        shared.runtime.wall,
        domains.mailbox,
        overrides=shared.fleet.overrides.overrides,
    )
    services = Services(
        reactor=shared.runtime.reactor,
        limits=limiter,
        domains=domains,
        resolver=shared.resolver,
        metrics=shared.plugin_metrics,
        log=Logger(namespace="elemta.policies"),
        wall=shared.runtime.wall,
        hostname=config.server.hostname,
        node_id=config.server.node_id,
        backends=shared.policy_backends,
    )
    with faults:
        chain = load_chain(config, services, metrics.policy)
        check_timeouts(config, chain)
    with faults:
        mail = _mail(config, shared, domains)
    faults.check()
    return Components(
        config=config,
        own_config=own_config,
        domains=domains,
        chain=chain,
        limiter=limiter,
        mail=mail,
    )


def with_faults_of_parts(error: ConfigError, shared: Callable[[Config], SharedResources]) -> ConfigError:
    """A configuration's error, with the faults of the parts that the rest of it comes to."""
    if error.rest is not None:
        try:
            build_components(error.rest, shared(error.rest))
        except ConfigError as of_parts:
            return error.with_more(of_parts.faults)
    return error


def build_at_start(config: Config, shared: SharedResources) -> Components:
    """As :func:`build_components`; where kept limits of the fleet do not fit, without them."""
    try:
        return build_components(config, shared)
    except ConfigError as error:
        pushed = shared.fleet.pushed
        if pushed is None or pushed.in_force is None:
            raise
        pushed.give_up(error)
        return build_components(config, shared)


def check_timeouts(config: Config, chain: PolicyChain) -> None:
    """No limit may take longer than its policy may: that would be a failure of the policy, each time."""
    asking = decision_seconds(config)
    shared = bool(config.resources.valkey_url)
    delays = any(limit.on_exceed is OnExceed.DELAY for limit in config.limits)
    for loaded in chain.policies:
        if not isinstance(loaded.policy, LimitsPolicy):
            continue
        timeout = loaded.common.timeout
        must = f"must be less than the policy's timeout, {timeout:g} s,"
        hint = "lower it, or raise the timeout"
        if asking >= timeout and shared:
            key, seconds = "resources.valkey_deadline", asking
            problem = f"{must} so that what limits say then is done"
        elif asking >= timeout:
            # No setting says how long a worker waits.
            key, seconds = f"policy.{loaded.name}.timeout", timeout
            problem = f"must be more than the {asking:g} s that a worker waits for its supervisor"
            hint = "raise it, or set server.workers = 1"
        elif delays and loaded.policy.max_delay + asking >= timeout:
            # The limits of a client that is delayed are checked once more afterwards.
            key, seconds = f"policy.{loaded.name}.max_delay", loaded.policy.max_delay
            of_workers = f" by the {asking:g} s that a worker waits for its supervisor" if asking else ""
            problem = f"{must}{' by one valkey_deadline' if shared else of_workers} because a limit delays"
        else:
            continue
        raise ConfigError([Fault(config.source, key, f"is {seconds:g} s: {problem}", hint)])


def needs_restart(old: Components, new: Components) -> tuple[str, ...]:
    """The settings that changed and can't be changed while running, by their keys."""
    before, after = old.config, new.config
    changed = {
        "server.node_id": before.server.node_id != after.server.node_id,
        "server.workers": before.server.workers != after.server.workers,
        "listener": [(c.name, c.endpoint) for c in before.listeners]
        != [(c.name, c.endpoint) for c in after.listeners],
        "policy_service": [(c.name, c.endpoint) for c in before.policy_services]
        != [(c.name, c.endpoint) for c in after.policy_services],
        "spool.directory": before.spool.directory != after.spool.directory,
        "spool.minimum_free": before.spool.minimum_free != after.spool.minimum_free,
        **{
            f"resources.{name}": getattr(before.resources, name) != getattr(after.resources, name)
            for name in ("valkey_url", "valkey_key_prefix", "valkey_deadline")
        },
        "metrics.endpoint": before.metrics.endpoint != after.metrics.endpoint,
        "console.endpoint": before.console.endpoint != after.console.endpoint,
        "console.users": before.console.users != after.console.users,
        # A daemon that has no use for TLS has transports without it.
        "policies.chain": old.mail is None and may_need_tls(after) and not may_need_tls(before),
    }
    return tuple(key for key, differs in changed.items() if differs)
