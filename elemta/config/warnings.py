"""Warnings at the start: settings without effect, and settings that are dangerous."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_network
from typing import TYPE_CHECKING

from elemta.config.choices import (
    EarlyTalkers,
    Identity,
    ListenerTLS,
    Role,
    Scope,
    Senders,
    TLSVersion,
)
from elemta.config.file_access import readable_secrets
from elemta.config.schema import LimitConfig, PoliciesConfig, RouteConfig
from elemta.config.target import TargetKind, is_loopback, parse_route_target
from elemta.config.valkey_url import parse_valkey_url
from elemta.config.values import did_you_mean
from elemta.errors import Fault
from elemta.route_tls import RouteTLS

if TYPE_CHECKING:
    from elemta.config.config import Config

_ALONE = "without valkey_url each node counts for itself"
_NAMES = frozenset({Identity.USER, Identity.HELO, Identity.LISTENER, Identity.DESTINATION})
_SENDERS = frozenset({Identity.SENDER, Identity.SENDER_DOMAIN})
_MAILBOXES = frozenset({Identity.SENDER, Identity.RECIPIENT})
_DOMAINS = frozenset({Identity.SENDER_DOMAIN, Identity.RECIPIENT_DOMAIN})
_IMPLICIT_TLS_PORT = 465
_USED_OFFERS = ("8BITMIME", "AUTH", "CHUNKING", "DSN", "PIPELINING", "SIZE", "SMTPUTF8", "STARTTLS")


def without_effect(config: Config) -> Iterator[Fault]:
    """Settings that were given explicitly and change nothing, each with the reason."""
    every = (_listeners, _tls, _submission, _valkey, _limits, _policies, _routes, _spool)
    for find in every:
        yield from find(config)


def cautions(config: Config) -> Iterator[Fault]:
    """Settings that are allowed and dangerous."""
    for find in (
        _localhost,
        _everyone,
        _no_relay_policy,
        _no_limits_policy,
        _unusable_auth,
        _unproven_smarthosts,
        _other_ports,
        _unreadable_valkey_files,
        readable_secrets,
    ):
        yield from find(config)


def _note(config: Config, key: str, problem: str, hint: str = "") -> Fault:
    return Fault(config.place_of(key), key, problem, hint)


def _given(config: Config, key: str, problem: str) -> Iterator[Fault]:
    if key in config.explicit:
        yield _note(config, key, f"has no effect: {problem}")


def _listeners(config: Config) -> Iterator[Fault]:
    for number, listener in enumerate(config.listeners, start=1):
        if listener.tls is ListenerTLS.IMPLICIT and listener.early_talkers is EarlyTalkers.REJECT:
            problem = "the TLS handshake comes before the greeting"
            yield from _given(config, f"listener[{number}].early_talkers", problem)


def _tls(config: Config) -> Iterator[Fault]:
    if config.tls.minimum is TLSVersion.TLS_1_3:
        yield from _given(config, "tls.ciphers", "these are ciphers of TLS 1.2, which is off")
    if not config.tls.certificate:
        for number, _ in enumerate(config.certificates, start=1):
            problem = "there is no TLS, as [tls] has no certificate for clients that ask for no name"
            yield from _given(config, f"certificate[{number}].certificate", problem)


def _submission(config: Config) -> Iterator[Fault]:
    if config.submission.senders is Senders.ANY:
        problem = 'with senders = "any" users may name any sender'
        yield from _given(config, "submission.sender_map", problem)


def _valkey(config: Config) -> Iterator[Fault]:
    if config.resources.valkey_url:
        return
    for name in ("valkey_key_prefix", "valkey_deadline"):
        yield from _given(config, f"resources.{name}", _ALONE)


def _limits(config: Config) -> Iterator[Fault]:
    alone = not config.resources.valkey_url
    for number, limit in enumerate(config.limits, start=1):
        key = f"limit[{number}]"
        if alone and limit.scope is Scope.CLUSTER:
            yield from _given(config, f"{key}.scope", _ALONE)
        if alone:
            yield from _given(config, f"{key}.when_valkey_is_down", _ALONE)
        elif limit.scope is Scope.NODE:
            problem = "each node counts this limit for itself anyway"
            yield from _given(config, f"{key}.when_valkey_is_down", problem)
        if Identity.DESTINATION in limit.per:
            yield from _given(config, f"{key}.on_exceed", "outbound mail waits")
        for place, entry in enumerate(limit.except_, start=1):
            if not _may_exempt(limit, entry.strip()):
                per = ", ".join(limit.per) or "nothing"
                problem = f'has no effect: "{entry}" is no identity of a limit per {per}'
                yield _note(config, f"{key}.except[{place}]", problem)


def _may_exempt(limit: LimitConfig, entry: str) -> bool:
    """Whether an exception can be a network, or a value of an identity that the limit counts per."""
    try:
        ip_network(entry, strict=False)
    except ValueError:
        of_message = _MAILBOXES if "@" in entry else _DOMAINS
        kinds = _SENDERS if entry.startswith("<>") else _NAMES | of_message
        return not kinds.isdisjoint(limit.per)
    return True


def _policies(config: Config) -> Iterator[Fault]:
    for name in config.policy:
        if name not in config.policies.chain:
            hint = did_you_mean(name, config.policies.chain)
            yield _note(
                config, f"policy.{name}", "has no effect: [policies] chain does not name this policy", hint
            )
    for number, name in enumerate(config.policies.may_relay, start=1):
        # The names of the default stand for policies that not every chain has.
        if name not in config.policies.chain and name not in PoliciesConfig().may_relay:
            problem = f'has no effect: [policies] chain does not name "{name}"'
            hint = did_you_mean(name, config.policies.chain)
            yield _note(config, f"policies.may_relay[{number}]", problem, hint)


def _routes(config: Config) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    for number, route in enumerate(config.routes, start=1):
        key = f"route[{number}]"
        kind = parse_route_target(route.to).kind
        if route.tls is not RouteTLS.NONE and "tls" not in kind.settings:
            yield from _given(config, f"{key}.tls", f"there is no TLS on the way to {route.to}")
        for name in ("address_family", "source", "ca"):
            if name not in kind.settings:
                yield from _given(config, f"{key}.{name}", f"{route.to} is no address")
        if "ca" in kind.settings and not route.tls.is_verified:
            problem = f'tls = "{route.tls}" verifies no certificate'
            yield from _given(config, f"{key}.ca", problem)
        yield from _ignored_offers(config, f"{key}.ignore_offers", route, kind)
        if "refuse_networks" not in kind.settings:
            yield from _given(config, f"{key}.refuse_networks", "it is for mx:")
        if "create_mailboxes" not in kind.settings:
            yield from _given(config, f"{key}.create_mailboxes", "it is for maildir:")
        for domain in route.domains:
            earlier = seen.get("*", seen.get(domain.lower()))
            if earlier is not None:
                problem = f'has no effect for "{domain}": route[{earlier}] before it matches'
                yield _note(config, f"{key}.domains", problem)
            seen.setdefault(domain.lower(), number)


def _spool(config: Config) -> Iterator[Fault]:
    if config.spool.warn_after >= config.spool.expire:
        problem = f"mail is given up after {config.spool.expire:g} s, before its delay is reported"
        yield from _given(config, "spool.warn_after", problem)


def _ignored_offers(config: Config, key: str, route: RouteConfig, kind: TargetKind) -> Iterator[Fault]:
    if "ignore_offers" not in kind.settings:
        yield from _given(config, key, f"{route.to} is no server")
        return
    for number, keyword in enumerate(route.ignore_offers, start=1):
        if keyword.upper() not in _USED_OFFERS:
            hint = did_you_mean(keyword.upper(), _USED_OFFERS)
            problem = f'has no effect: Elemta does not use "{keyword}"'
            yield _note(config, f"{key}[{number}]", problem, hint)


def _localhost(config: Config) -> Iterator[Fault]:
    if config.server.hostname.partition(".")[0] == "localhost" and "server.hostname" not in config.explicit:
        problem = f'this host is named "{config.server.hostname}", a name that no other host can use'
        yield _note(config, "server.hostname", problem, "set hostname")


def _everyone(config: Config) -> Iterator[Fault]:
    for number, network in enumerate(config.domains.relay_from, start=1):
        if network.prefixlen == 0:
            key = f"domains.relay_from[{number}]"
            yield _note(
                config, key, f"{network} is every client: this is an open relay", "name your own networks"
            )
    for number, listener in enumerate(config.listeners, start=1):
        if any(network.prefixlen == 0 for network in listener.proxy_protocol_from):
            key = f"listener[{number}].proxy_protocol_from"
            yield _note(config, key, "every client may claim any address", "name the load balancers")


def _no_relay_policy(config: Config) -> Iterator[Fault]:
    if "relay" not in config.policies.chain and config.domains.recipients:
        problem = (
            'does not name "relay": unless another policy refuses mailboxes that do not exist, mail for '
            "them is accepted"
        )
        yield _note(config, "policies.chain", problem)


def _no_limits_policy(config: Config) -> Iterator[Fault]:
    if "limits" not in config.policies.chain:
        problem = (
            'does not name "limits": the limits of [resources] per client and those of failed logins have '
            "no effect, and of [[limit]] only those that count refusals have one"
        )
        yield _note(config, "policies.chain", problem)


def _unusable_auth(config: Config) -> Iterator[Fault]:
    for number, listener in enumerate(config.listeners, start=1):
        without_tls = listener.tls is ListenerTLS.NONE or not config.tls.certificate
        if listener.role is Role.SUBMISSION and config.auth.require_tls and without_tls:
            problem = "no user can log in here: AUTH needs TLS, and there is none"
            hint = "give it TLS and [tls] a certificate, or set auth.require_tls = false"
            yield _note(config, f"listener[{number}].tls", problem, hint)


def _unproven_smarthosts(config: Config) -> Iterator[Fault]:
    for number, route in enumerate(config.routes, start=1):
        unproven = route.tls is RouteTLS.MAY and not is_loopback(parse_route_target(route.to).host)
        if route.credentials and unproven:
            problem = 'with tls = "may" any server that answers in the place of the host gets the password'
            yield _note(config, f"route[{number}].credentials", problem, 'set tls = "require"')


def _other_ports(config: Config) -> Iterator[Fault]:
    """Warn of a port at which TLS does not begin as the route says."""
    for number, route in enumerate(config.routes, start=1):
        target = parse_route_target(route.to)
        if target.kind is not TargetKind.SMTP:
            continue
        # RFC 8314 §3.3: on port 465 servers wait for TLS and say nothing.
        if target.port == _IMPLICIT_TLS_PORT and target.names_port and route.tls is not RouteTLS.IMPLICIT:
            problem = f'servers expect TLS from the first byte on port 465, and tls is "{route.tls}"'
            yield _note(config, f"route[{number}].to", problem, 'set tls = "implicit"')
        if target.port in (25, 587) and target.names_port and route.tls is RouteTLS.IMPLICIT:
            problem = f"servers begin in the clear on port {target.port}"
            yield _note(config, f"route[{number}].tls", problem, 'did you mean "require", or port 465?')


def _unreadable_valkey_files(config: Config) -> Iterator[Fault]:
    """No fault: they may come later. But until then each node counts for itself."""
    if not config.resources.valkey_url:
        return
    url = parse_valkey_url(config.resources.valkey_url)
    files = {"ca": url.ca, "certificate": url.certificate, "private_key": url.private_key}
    for name, path in files.items():
        if path and not os.access(path, os.R_OK):
            problem = f"{name}: {path} can't be read, and without it there is no connection to Valkey"
            yield _note(config, "resources.valkey_url", problem)
