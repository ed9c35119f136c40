"""The parts of a daemon that takes mail or delivers it: DNS, next hops, TLS of the server, routes.

A daemon without a listener and without a queue has none of them, and does not import this module.
"""

from __future__ import annotations

from dataclasses import dataclass

from elemta.auth.authenticator import Authenticator
from elemta.auth.senders import SenderAddresses
from elemta.certificates import certificate_cautions
from elemta.config import Config
from elemta.delivery.hop_memory import HopMemory
from elemta.delivery.routes import Route, routes_from_config
from elemta.delivery.settings import DeliverySettings
from elemta.dns.resolver import DnsResolver
from elemta.domains import Domains
from elemta.errors import Fault, FaultCollector
from elemta.metrics import Metrics
from elemta.net.submission import SubmissionRules
from elemta.net.tls import TLSContexts, load_context
from elemta.runtime import Runtime


@dataclass(frozen=True, slots=True)
class SharedMailParts:
    """What outlives a reload: what DNS and next hops said."""

    resolver: DnsResolver
    hop_memory: HopMemory

    @classmethod
    def open(cls, runtime: Runtime, metrics: Metrics) -> SharedMailParts:
        """Nothing is asked yet."""
        return cls(DnsResolver(runtime, metrics=metrics.dns), HopMemory(runtime.reactor.seconds))


@dataclass(frozen=True, slots=True)
class MailParts:
    """What one configuration comes to."""

    authenticator: Authenticator
    tls: TLSContexts | None
    routes: tuple[Route, ...]
    delivery: DeliverySettings
    submission: SubmissionRules

    @classmethod
    def from_config(cls, config: Config, runtime: Runtime, domains: Domains) -> MailParts:
        """Raises :class:`~elemta.errors.ConfigError` with the faults of all of them."""
        faults = FaultCollector()
        with faults:
            authenticator = Authenticator.from_config(config.auth, runtime, source=config.source)
        with faults:
            senders = SenderAddresses.from_config(config.submission, domains)
        with faults:
            tls = load_context(config.tls, config.certificates)
        with faults:
            routes = routes_from_config(config, domains)
        with faults:
            delivery = DeliverySettings.from_config(config, runtime, domains)
        faults.check()
        submission = SubmissionRules(config.submission, senders, config.server.hostname, runtime.wall)
        return cls(authenticator, tls, routes, delivery, submission)

    def cautions(self, now: float) -> tuple[Fault, ...]:
        """What is allowed and dangerous in the files that the configuration names."""
        return () if self.tls is None else tuple(certificate_cautions(self.tls.certificates, now))
