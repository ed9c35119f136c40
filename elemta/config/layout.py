"""The tables of a file, and the dataclass of settings of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

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


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the file: its name there and in ``Config``, its settings, and whether it repeats."""

    table: str
    attribute: str
    shape: type[Any]
    many: bool = False


SECTIONS: Final = (
    Section("server", "server", ServerConfig),
    Section("listener", "listeners", ListenerConfig, many=True),
    Section("tls", "tls", TLSConfig),
    Section("certificate", "certificates", CertificateConfig, many=True),
    Section("domains", "domains", DomainsConfig),
    Section("submission", "submission", SubmissionConfig),
    Section("auth", "auth", AuthConfig),
    Section("resources", "resources", ResourcesConfig),
    Section("limit", "limits", LimitConfig, many=True),
    Section("limits", "limit_sharing", LimitSharingConfig),
    Section("policies", "policies", PoliciesConfig),
    Section("route", "routes", RouteConfig, many=True),
    Section("spool", "spool", SpoolConfig),
    Section("metrics", "metrics", MetricsConfig),
    Section("console", "console", ConsoleConfig),
    Section("policy_service", "policy_services", PolicyServiceConfig, many=True),
    Section("logging", "logging", LoggingConfig),
)
"""Every table but ``[policy.NAME]``, in the order of the sample file."""
