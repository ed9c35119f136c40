"""What a configuration comes to: every part that is built from it, and nothing that is open.

``--check``, the start and a reload all go through :func:`build_components`, so that what one of them accepts
the others do too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twisted.logger import Logger

from elemta.auth import Authenticator
from elemta.auth.senders import SenderAddresses
from elemta.certificates import Certificate, certificate_cautions
from elemta.config import BareNewline, Config, EarlyTalkers, ListenerConfig, ListenerTLS, OnExceed, Role
from elemta.conversation_trace import ConversationTrace
from elemta.daemon.cluster import ClusterMembership
from elemta.daemon.membership import Membership, SingleNode
from elemta.daemon.worker_orders import decision_seconds
from elemta.delivery.hop_memory import HopMemory
from elemta.delivery.routes import Route, routes_from_config
from elemta.delivery.settings import DeliverySettings
from elemta.dns import DnsResolver
from elemta.domains import Domains
from elemta.errors import ConfigError, Fault, FaultCollector
from elemta.limits import Limiter, rules_from_config
from elemta.limits.pushed import with_pushed
from elemta.metrics import Metrics
from elemta.net.submission import SubmissionRules
from elemta.net.tls import TLSContexts, load_context
from elemta.ops.metrics import MetricsExporter
from elemta.ops.plugin_metrics import PluginMetricsRegistry
from elemta.ops.traffic import TrafficHistory
from elemta.policies.limits import LimitsPolicy
from elemta.policy import Services
from elemta.policy.backends import PolicyBackends
from elemta.policy.chain import PolicyChain
from elemta.policy.discovery import load_chain
from elemta.runtime import Runtime
from elemta.smtp.session import SessionSettings
from elemta.smtp.settings import LEAST_ENVELOPE, ORDINARY_RECIPIENT


@dataclass(frozen=True, slots=True)
class SharedResources:
    """What outlives a reload: the runtime, counters of limits, metrics, what DNS and next hops said."""

    runtime: Runtime
    fleet: Membership
    metrics: Metrics
    exporter: MetricsExporter
    plugin_metrics: PluginMetricsRegistry
    resolver: DnsResolver
    policy_backends: PolicyBackends
    hop_memory: HopMemory
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
            DnsResolver(runtime, metrics=metrics.dns),
            PolicyBackends(runtime.reactor, runtime.threads, fleet.policy_store, runtime),
            HopMemory(runtime.reactor.seconds),
            ConversationTrace(runtime.wall, runtime.monotonic),
            TrafficHistory(metrics, wall=runtime.wall, monotonic=runtime.monotonic),
        )


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
    authenticator: Authenticator
    tls: TLSContexts | None
    routes: tuple[Route, ...]
    delivery: DeliverySettings
    submission: SubmissionRules

    @property
    def max_envelope(self) -> int:
        """The octets of memory that one envelope may take."""
        return max(LEAST_ENVELOPE, self.config.server.max_recipients * ORDINARY_RECIPIENT)

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """The server's certificates, the default first."""
        return () if self.tls is None else self.tls.certificates

    def cautions(self, now: float) -> tuple[Fault, ...]:
        """What is allowed and dangerous, in the configuration and in the files that it names."""
        return (
            *self.config.cautions(),
            *self.domains.cautions(self.config),
            *certificate_cautions(self.certificates, now),
        )

    def session_settings(self, listener: ListenerConfig) -> SessionSettings:
        """The settings of the SMTP sessions of ``listener``."""
        server = self.config.server
        return SessionSettings(
            hostname=server.hostname,
            max_message_size=server.max_message_size,
            max_recipients=server.max_recipients,
            normalize_newlines=server.bare_newline is BareNewline.NORMALIZE,
            implicit_tls=listener.tls is ListenerTLS.IMPLICIT,
            starttls=listener.tls is ListenerTLS.STARTTLS and self.tls is not None,
            auth=self.authenticator.enabled,
            auth_needs_tls=self.config.auth.require_tls,
            require_auth=listener.role is Role.SUBMISSION,
            postmaster_domain=self.config.domains.local[0],
            max_envelope=self.max_envelope,
            may_relay=self.domains.may_relay,
            strict=listener.strict,
            reject_early_talkers=listener.early_talkers is EarlyTalkers.REJECT,
            unasked=self.chain.unasked,
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
        _check_timeouts(config, chain)
    with faults:
        authenticator = Authenticator.from_config(config.auth, shared.runtime, source=config.source)
    with faults:
        senders = SenderAddresses.from_config(config.submission, domains)
    with faults:
        tls = load_context(config.tls, config.certificates)
    with faults:
        routes = routes_from_config(config, domains)
    with faults:
        delivery = DeliverySettings.from_config(config, shared.runtime, domains)
    faults.check()
    return Components(
        config=config,
        own_config=own_config,
        domains=domains,
        chain=chain,
        limiter=limiter,
        authenticator=authenticator,
        tls=tls,
        routes=routes,
        delivery=delivery,
        submission=SubmissionRules(config.submission, senders, config.server.hostname, shared.runtime.wall),
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


def _check_timeouts(config: Config, chain: PolicyChain) -> None:
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
    }
    return tuple(key for key, differs in changed.items() if differs)
