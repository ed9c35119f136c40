"""The configuration as a whole, as the rest of Elemta sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from elemta.config import warnings
from elemta.config.schema import (
    AuthConfig,
    CertificateConfig,
    ConsoleConfig,
    DomainsConfig,
    LimitConfig,
    LimitSharingConfig,
    ListenerConfig,
    LoggingConfig,
    MetricsConfig,
    PoliciesConfig,
    PolicyServiceConfig,
    ResourcesConfig,
    RouteConfig,
    ServerConfig,
    SpoolConfig,
    SubmissionConfig,
    TLSConfig,
)
from elemta.errors import Fault

DEFAULTS = "defaults"
"""The source of a configuration that is from no file."""


@dataclass(frozen=True, slots=True)
class Config:
    """Every setting, checked: sizes in bytes, durations in seconds, networks parsed.

    ``policy`` holds the raw ``[policy.NAME]`` tables, which :func:`read_policy` reads when the policy's
    own options are known. ``source`` is the file's path (``defaults`` without one), ``explicit`` names the
    keys that were set, such as ``server.workers`` or ``limit[1].scope``, and ``environment`` the variable
    of each key that one has set, and ``text`` is the file's; these four are no part of a comparison.
    """

    server: ServerConfig
    listeners: tuple[ListenerConfig, ...]
    tls: TLSConfig
    certificates: tuple[CertificateConfig, ...]
    domains: DomainsConfig
    submission: SubmissionConfig
    auth: AuthConfig
    resources: ResourcesConfig
    limits: tuple[LimitConfig, ...]
    limit_sharing: LimitSharingConfig
    policies: PoliciesConfig
    policy: Mapping[str, Mapping[str, object]] = field(hash=False)
    routes: tuple[RouteConfig, ...]
    spool: SpoolConfig
    metrics: MetricsConfig
    console: ConsoleConfig
    policy_services: tuple[PolicyServiceConfig, ...]
    logging: LoggingConfig
    source: str = field(default=DEFAULTS, compare=False)
    explicit: frozenset[str] = field(default=frozenset(), compare=False)
    environment: Mapping[str, str] = field(default_factory=dict, compare=False)
    text: str | None = field(default=None, compare=False, repr=False)

    def place_of(self, key: str) -> str:
        """The file or the environment variable that a key's value is from."""
        return self.environment.get(key, self.source)

    def plugin_of(self, policy: str) -> str:
        """The plugin of a policy in the chain: that of its own name, or the one that its ``use`` names."""
        named = self.policy.get(policy, {}).get("use")
        # What is no name is a fault that building the chain finds.
        return named if isinstance(named, str) else policy

    def without_effect(self) -> tuple[Fault, ...]:
        """Settings that were given and have no effect, each with the reason, for the log of a start."""
        return tuple(warnings.without_effect(self))

    def cautions(self) -> tuple[Fault, ...]:
        """Settings that are allowed and dangerous, each with the danger, for the log of a start."""
        return tuple(warnings.cautions(self))
