"""What a configuration has a use for: asked before the parts of the daemon are imported."""

from __future__ import annotations

from pathlib import Path

from elemta.config import Config
from elemta.config.valkey_url import parse_valkey_url
from elemta.spool.stored_mail import may_hold_mail

# They use nothing but limits and addresses.
_PLAIN_POLICIES = frozenset({"limits", "relay"})
_PLAIN_ENDPOINTS = ("tcp:", "tcp6:", "unix:", "systemd:")


def handles_mail(config: Config) -> bool:
    """Whether a daemon that starts takes mail, or has to deliver what an earlier one took."""
    return is_for_mail(config) or may_hold_mail(Path(config.spool.directory))


def is_for_mail(config: Config) -> bool:
    """Whether a configuration has anything that only mail needs, or whose faults only its parts find."""
    return bool(
        config.listeners
        or config.routes
        or config.tls.certificate
        or config.certificates
        or config.auth.checkers
        or config.submission.sender_map
    )


def may_need_tls(config: Config) -> bool:
    """Whether anything but mail may need TLS: Valkey, a policy that asks elsewhere, an endpoint."""
    endpoints = (
        config.metrics.endpoint,
        config.console.endpoint,
        *(service.endpoint for service in config.policy_services),
    )
    url = config.resources.valkey_url
    return (
        bool(url and parse_valkey_url(url).tls)
        or not _PLAIN_POLICIES.issuperset(map(config.plugin_of, config.policies.chain))
        or not all(endpoint.startswith(_PLAIN_ENDPOINTS) for endpoint in endpoints if endpoint)
    )
