"""Finds faults that need several settings to be read together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

from elemta.config.choices import AddressFamily, Counts, Identity, ListenerTLS, Role
from elemta.config.config import Config
from elemta.config.endpoint import tcp_endpoint
from elemta.config.faults import Faults
from elemta.config.limit_rates import MOST_RATES, misfit
from elemta.config.schema import LimitConfig, RouteConfig
from elemta.config.target import TargetKind, is_loopback, parse_route_target
from elemta.config.values import did_you_mean
from elemta.errors import Fault
from elemta.ip import IPAddress
from elemta.route_tls import RouteTLS

Check = Callable[[Config], Iterator[Fault]]

NOTICES = "bounce"
"""What policies see as the listener of our own notices."""

_RESERVED_LIMIT_NAMES = {
    "ip": "the connection rate of [resources]",
    "connections-per-ip": "max_connections_per_ip of [resources]",
    "guesses-per-user": "guesses_per_user of [auth]",
    "guesses-per-network": "guesses_per_network of [auth]",
    "guesses-per-known-client": "guesses_per_user of [auth]",
    "node": "the nodes of the cluster",
    "nodepast": "the nodes that are gone",
    "override": "the overrides of limits",
    "policy": "the data of policies",
    "pushed": "the limits that the fleet shares",
    "spool": "the owners of spools",
}
_OF_A_MESSAGE = frozenset(
    {
        Identity.SENDER,
        Identity.SENDER_DOMAIN,
        Identity.RECIPIENT,
        Identity.RECIPIENT_DOMAIN,
    }
)
_OF_SETTINGS = {"per": ("per", "counts"), "counts": ("counts", "per"), "rates": ("rates", "counts")}
_PER_RECIPIENT = frozenset({Identity.RECIPIENT, Identity.RECIPIENT_DOMAIN})
_ON_THE_WAY_OUT = frozenset(
    {
        Identity.DESTINATION,
        Identity.SENDER,
        Identity.SENDER_DOMAIN,
        Identity.USER,
        Identity.RECIPIENT_DOMAIN,
    }
)
_BEFORE_A_MESSAGE = frozenset({Counts.CONNECTIONS, Counts.OPEN_CONNECTIONS, Counts.AUTH_FAILURES})
# Numbers with dots, or what has a colon or a dot and ends in the length of a prefix
_LIKE_A_NETWORK = re.compile(r"[0-9]+(?:\.[0-9]+){3}(?:/.*)?|(?=[^/]*[.:])[0-9A-Fa-f.:]+/[0-9]+")
_EVERY_ADDRESS = frozenset({"", "0.0.0.0"})


def check_together(config: Config, faults: Faults) -> None:
    """Note every fault between settings, except in tables that have a fault already."""
    for tables, check in _CHECKS:
        if check is _limits:
            # Each setting is checked by itself: a fault in one hides none in another.
            faults.extend(of_sound_settings(check(config), faults))
        elif not any(faults.within(table) for table in tables):
            faults.extend(list(check(config)))


def of_sound_settings(found: Iterable[Fault], known: Faults) -> list[Fault]:
    """Those in ``[[limit]]`` tables that come of settings in which no fault is known."""
    return [fault for fault in found if not any(known.within(key) for key in _causes(fault.key))]


def _causes(key: str) -> Iterator[str]:
    """The settings that a fault at the setting ``key`` of a ``[[limit]]`` comes of."""
    table, _, setting = key.partition(".")
    name = setting.partition("[")[0]
    return (f"{table}.{each}" for each in _OF_SETTINGS.get(name, (name,)))


def _fault(config: Config, key: str, problem: str, hint: str = "") -> Fault:
    return Fault(config.place_of(key), key, problem, hint)


def _duplicates(config: Config, table: str, values: list[str], name: str) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for number, value in enumerate(values, start=1):
        if value and value in first:
            problem = f'found "{value}": {table}[{first[value]}] has it already'
            yield _fault(config, f"{table}[{number}].{name}", problem)
        first.setdefault(value, number)


def _listeners(config: Config) -> Iterator[Fault]:
    yield from _duplicates(config, "listener", [each.name for each in config.listeners], "name")
    for number, each in enumerate(config.listeners, start=1):
        if each.name == NOTICES:
            # A policy that signs notices would sign all that clients of this listener send.
            problem = f'found "{each.name}": our own notices have this name'
            yield _fault(config, f"listener[{number}].name", problem)
    # Port 0 is any free port: two of them do not collide.
    endpoints = ["" if _at_any_port(each.endpoint) else each.endpoint for each in config.listeners]
    yield from _duplicates(config, "listener", endpoints, "endpoint")


def _tls(config: Config) -> Iterator[Fault]:
    if config.tls.private_key and not config.tls.certificate:
        yield _fault(config, "tls.certificate", "is needed: tls.private_key is set", "set both, or neither")


def _implicit_tls(config: Config) -> Iterator[Fault]:
    for number, listener in enumerate(config.listeners, start=1):
        if listener.tls is ListenerTLS.IMPLICIT and not config.tls.certificate:
            key = f"listener[{number}].tls"
            yield _fault(config, key, 'found "implicit": needs a certificate', "set tls.certificate")


def _submission(config: Config) -> Iterator[Fault]:
    for number, listener in enumerate(config.listeners, start=1):
        if listener.role is Role.SUBMISSION and not config.auth.checkers:
            key = f"listener[{number}].role"
            problem = 'found "submission": requires AUTH, and no user could log in'
            yield _fault(
                config, key, problem, 'set auth.checkers, such as ["elemta-users:/etc/elemta/users"]'
            )


def _limits(config: Config) -> Iterator[Fault]:
    yield from _duplicates(config, "limit", [limit.name for limit in config.limits], "name")
    for number, limit in enumerate(config.limits, start=1):
        key = f"limit[{number}]"
        if limit.name in _RESERVED_LIMIT_NAMES:
            problem = f'found "{limit.name}": {_RESERVED_LIMIT_NAMES[limit.name]} has this name'
            yield _fault(config, f"{key}.name", problem)
        yield from _rates(config, key, limit)
        yield from _identities(config, key, limit)
        yield from _exceptions(config, key, limit)
        if Identity.DESTINATION in limit.per:
            yield from _destination(config, key, limit)


def _rates(config: Config, key: str, limit: LimitConfig) -> Iterator[Fault]:
    if len(limit.rates) > MOST_RATES:
        problem = f"found {len(limit.rates)} rates: must be at most {MOST_RATES}"
        yield _fault(config, f"{key}.rates", problem)
    for number, rate in enumerate(limit.rates, start=1):
        wrong = misfit(limit.counts, rate)
        if wrong is not None:
            yield _fault(config, f"{key}.rates[{number}]", *wrong)


def _identities(config: Config, key: str, limit: LimitConfig) -> Iterator[Fault]:
    for number, identity in enumerate(limit.per, start=1):
        if identity in limit.per[: number - 1]:
            yield _fault(config, f"{key}.per[{number}]", f'found "{identity}": is in the list twice')
        elif Identity.DESTINATION in limit.per:
            continue
        elif identity in _OF_A_MESSAGE and limit.counts in _BEFORE_A_MESSAGE:
            problem = f'found "{identity}": {limit.counts} are counted before there is a message'
            yield _fault(config, f"{key}.per[{number}]", problem)
        elif identity in _PER_RECIPIENT and limit.counts is Counts.REFUSALS:
            problem = f'found "{identity}": refusals are counted per client or sender'
            yield _fault(config, f"{key}.per[{number}]", problem)


def _exceptions(config: Config, key: str, limit: LimitConfig) -> Iterator[Fault]:
    """Find entries that can exempt nothing. Any other text may be a user or a host."""
    for number, entry in enumerate(limit.except_, start=1):
        hint = ""
        if _LIKE_A_NETWORK.fullmatch(entry.strip()) and not _is_network(entry.strip()):
            problem = "is no network and no address"
        elif entry.startswith("@"):
            problem = "must be a whole address, or a domain"
            hint = "domains are exempt from limits per sender_domain or recipient_domain"
        elif not entry.strip():
            problem = "must not be empty"
        else:
            continue
        yield _fault(config, f"{key}.except[{number}]", f'found "{entry}": {problem}', hint)


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _destination(config: Config, key: str, limit: LimitConfig) -> Iterator[Fault]:
    """Check an outbound limit: it counts messages or connections, and has fewer identities than a session."""
    if limit.counts not in (Counts.MESSAGES, Counts.OPEN_CONNECTIONS):
        problem = f'found "{limit.counts}": per destination only messages and open_connections are counted'
        yield _fault(config, f"{key}.counts", problem)
    for number, identity in enumerate(limit.per, start=1):
        if identity not in _ON_THE_WAY_OUT:
            problem = f'found "{identity}": is unknown for outbound mail, which "destination" limits'
            hint = "with destination: sender, sender_domain, user, recipient_domain"
            yield _fault(config, f"{key}.per[{number}]", problem, hint)
        elif limit.counts is Counts.OPEN_CONNECTIONS and identity is not Identity.DESTINATION:
            problem = f'found "{identity}": a connection to a destination carries mail of many senders'
            yield _fault(config, f"{key}.per[{number}]", problem, 'use per = ["destination"] alone')


def _chain(config: Config) -> Iterator[Fault]:
    for number, name in enumerate(config.policies.chain, start=1):
        if name in config.policies.chain[: number - 1]:
            yield _fault(config, f"policies.chain[{number}]", f'found "{name}": is in the list twice')


def _policy_listeners(config: Config) -> Iterator[Fault]:
    names = [listener.name for listener in config.listeners]
    for policy, table in config.policy.items():
        for number, name in enumerate(_list(table.get("listeners")), start=1):
            if name not in names:
                allowed = ", ".join(f'"{each}"' for each in names)
                problem = f'found "{name}": there is no such listener; there are {allowed}'
                yield _fault(
                    config, f"policy.{policy}.listeners[{number}]", problem, did_you_mean(name, names)
                )


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _routes(config: Config) -> Iterator[Fault]:
    for number, route in enumerate(config.routes, start=1):
        if not route.credentials:
            continue
        key, target = f"route[{number}].credentials", parse_route_target(route.to)
        if "credentials" not in target.kind.settings:
            problem = f'found "{route.credentials}": {route.to} has no login'
            yield _fault(config, key, problem, "credentials are for smtp:// and lmtp:// next hops")
        elif route.tls is RouteTLS.NONE and not is_loopback(target.host):
            problem = f'found "{route.credentials}": tls = "none" would send the password in the clear'
            yield _fault(config, key, problem, 'set tls = "require"')


def _policy_services(config: Config) -> Iterator[Fault]:
    services = config.policy_services
    yield from _duplicates(config, "policy_service", [each.name for each in services], "name")
    names = {each.name for each in config.listeners}
    for number, each in enumerate(services, start=1):
        if each.name in names:
            problem = f'found "{each.name}": a listener has this name'
            yield _fault(config, f"policy_service[{number}].name", problem)


def _ways_out(config: Config) -> Iterator[Fault]:
    """Check what the routes say about connections: contradictions would keep all mail back."""
    for number, route in enumerate(config.routes, start=1):
        key, target = f"route[{number}]", parse_route_target(route.to)
        yield from _sources(config, f"{key}.source", route)
        if route.tls is RouteTLS.IMPLICIT and target.kind is TargetKind.MX:
            problem = 'found "implicit": mail exchangers begin in the clear (RFC 5321 §4.5.4.2)'
            yield _fault(config, f"{key}.tls", problem, 'did you mean "require"?')
        if _is_of_other_family(target.host, route.address_family):
            problem = f'found "{route.address_family}": {target.host} is not of this family'
            yield _fault(config, f"{key}.address_family", problem)
        for keyword in route.ignore_offers:
            if keyword.upper() == "STARTTLS" and route.tls is RouteTLS.REQUIRE:
                problem = f'found "{keyword}": tls = "require" needs it'
                yield _fault(config, f"{key}.ignore_offers", problem)
            if keyword.upper() == "AUTH" and route.credentials:
                yield _fault(config, f"{key}.ignore_offers", f'found "{keyword}": credentials need it')


def _sources(config: Config, key: str, route: RouteConfig) -> Iterator[Fault]:
    first: dict[int, IPAddress] = {}
    for number, address in enumerate(route.source, start=1):
        if address.version in first:
            problem = f'found "{address}": {first[address.version]} is of IPv{address.version} already'
            yield _fault(config, f"{key}[{number}]", problem, "one address of each family")
        first.setdefault(address.version, address)


def _is_of_other_family(host: str, family: AddressFamily) -> bool:
    only = {AddressFamily.IPV4: 4, AddressFamily.IPV6: 6}.get(family)
    try:
        return only is not None and ip_address(host).version != only
    except ValueError:
        return False


def _endpoints(config: Config) -> Iterator[Fault]:
    """Find endpoints that can't be opened beside an earlier one."""
    earlier: list[tuple[str, str]] = []
    for key, endpoint in _named_endpoints(config):
        for other, taken in earlier:
            if problem := _collision(endpoint, taken):
                yield _fault(config, key, f'found "{endpoint}": {other} {problem}')
                break
        earlier.append((key, endpoint))


def _named_endpoints(config: Config) -> Iterator[tuple[str, str]]:
    for number, listener in enumerate(config.listeners, start=1):
        yield f"listener[{number}].endpoint", listener.endpoint
    for number, service in enumerate(config.policy_services, start=1):
        yield f"policy_service[{number}].endpoint", service.endpoint
    for key, endpoint in (
        ("metrics.endpoint", config.metrics.endpoint),
        ("console.endpoint", config.console.endpoint),
    ):
        if endpoint:
            yield key, endpoint


def _at_any_port(endpoint: str) -> bool:
    place = tcp_endpoint(endpoint)
    return place is not None and place[-1] == 0


def _collision(endpoint: str, taken: str) -> str:
    """What the earlier endpoint has of the later one's; "" where both can be opened."""
    if _at_any_port(endpoint):
        return ""
    place, other = tcp_endpoint(endpoint), tcp_endpoint(taken)
    if endpoint == taken or (place is not None and place == other):
        return "has it already"
    if place is None or other is None:
        return ""
    (kind, interface, port), (other_kind, other_interface, other_port) = place, other
    at_ipv4 = (kind, other_kind) == ("tcp", "tcp") and ":" not in interface + other_interface
    if at_ipv4 and port == other_port and _EVERY_ADDRESS & {interface, other_interface}:
        # Linux refuses the second.
        return "is at this port, and one of both at all addresses"
    return ""


_CHECKS: tuple[tuple[tuple[str, ...], Check], ...] = (
    (("listener",), _listeners),
    (("tls",), _tls),
    (("tls", "listener"), _implicit_tls),
    (("auth", "listener"), _submission),
    (("limit",), _limits),
    (("policies",), _chain),
    (("policy", "listener"), _policy_listeners),
    (("route",), _routes),
    (("route",), _ways_out),
    (("policy_service", "listener"), _policy_services),
    (("listener", "policy_service", "metrics", "console"), _endpoints),
)
