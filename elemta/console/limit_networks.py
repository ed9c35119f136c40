"""The identities of a limit by the networks that they are in, from wide ones to single addresses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from elemta.ip import IPNetwork

LEVELS = {4: (8, 16, 24, 32), 6: (32, 48, 64)}
"""The lengths of the prefixes that are shown one after the other. A limit counts IPv6 by /64."""


@dataclass(frozen=True, slots=True)
class NetworkGroup:
    """The identities in one network.

    ``used`` is their sum; ``percent`` how full the fullest of them is, and ``refused`` how many are refused
    now. ``last``: there is nothing narrower in it.
    """

    network: str
    identities: int
    used: int
    percent: int
    refused: int
    last: bool


def groups_by_network(
    entries: Iterable[Mapping[str, Any]], within: IPNetwork | None
) -> Sequence[NetworkGroup]:
    """The networks of the next level below ``within``, or of the widest, those that used most first."""
    members: dict[IPNetwork, list[Mapping[str, Any]]] = {}
    for entry in entries:
        network = network_of(entry["identity"])
        if network is None or not _is_in(network, within):
            continue
        level = _level_below(network, within)
        group = network.supernet(new_prefix=level) if level < network.prefixlen else network
        members.setdefault(group, []).append(entry)
    groups = [_group(network, each) for network, each in members.items()]
    return sorted(groups, key=lambda group: (-group.refused, -group.used))


def network_of(identity: str) -> IPNetwork | None:
    """The network that an identity is: an address, or a network; None where it is something else."""
    try:
        return ip_network(identity, strict=False)
    except ValueError:
        return None


def wider_networks(network: IPNetwork) -> Iterator[str]:
    """The networks that lead to this one, the widest first, without itself."""
    for level in LEVELS[network.version]:
        if level < network.prefixlen:
            yield str(network.supernet(new_prefix=level))


def percent_full(entry: Mapping[str, Any]) -> int:
    """How full the fullest bound of an identity is: of this node's share while that is what holds."""
    fills = (bound["used"] / most for bound in entry["bounds"] if (most := bound["share"] or bound["limit"]))
    return min(100, round(100 * max(fills, default=0.0)))


def _is_in(network: IPNetwork, within: IPNetwork | None) -> bool:
    if within is None:
        return True
    if isinstance(network, IPv4Network):
        return isinstance(within, IPv4Network) and network.subnet_of(within)
    return isinstance(within, IPv6Network) and network.subnet_of(within)


def _level_below(network: IPNetwork, within: IPNetwork | None) -> int:
    known = -1 if within is None else within.prefixlen
    return next((level for level in LEVELS[network.version] if level > known), network.prefixlen)


def _group(network: IPNetwork, entries: Sequence[Mapping[str, Any]]) -> NetworkGroup:
    last = network.prefixlen >= LEVELS[network.version][-1] or [
        network_of(each["identity"]) for each in entries
    ] == [network]
    return NetworkGroup(
        network=str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network),
        identities=len(entries),
        used=sum(max((bound["used"] for bound in each["bounds"]), default=0) for each in entries),
        percent=max(map(percent_full, entries)),
        refused=sum(each["retry_after"] != 0 for each in entries),
        last=last,
    )
