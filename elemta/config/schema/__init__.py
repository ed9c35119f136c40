"""The schema: every setting of ``/etc/elemta.toml`` once, with type, default, bounds, unit and text."""

from elemta.config.schema.delivery import DEFAULT_REFUSED_NETWORKS, RouteConfig, SpoolConfig
from elemta.config.schema.limits import (
    LimitConfig,
    LimitSharingConfig,
    PoliciesConfig,
    PolicyCommon,
    PolicyServiceConfig,
    ResourcesConfig,
)
from elemta.config.schema.operation import ConsoleConfig, LoggingConfig, MetricsConfig
from elemta.config.schema.reception import (
    DEFAULT_LISTENER,
    AuthConfig,
    CertificateConfig,
    DomainsConfig,
    ListenerConfig,
    ServerConfig,
    SubmissionConfig,
    TLSConfig,
)

__all__ = [
    "DEFAULT_LISTENER",
    "DEFAULT_REFUSED_NETWORKS",
    "AuthConfig",
    "CertificateConfig",
    "ConsoleConfig",
    "DomainsConfig",
    "LimitConfig",
    "LimitSharingConfig",
    "ListenerConfig",
    "LoggingConfig",
    "MetricsConfig",
    "PoliciesConfig",
    "PolicyCommon",
    "PolicyServiceConfig",
    "ResourcesConfig",
    "RouteConfig",
    "ServerConfig",
    "SpoolConfig",
    "SubmissionConfig",
    "TLSConfig",
]
