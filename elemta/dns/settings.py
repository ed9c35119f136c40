"""The settings of the resolver: bounds and times."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResolverSettings:
    """Bounds of the resolver. Durations are seconds.

    No lookup takes its callers longer than ``deadline``. At most ``lookups`` are under way, and
    ``delivery_lookups`` more for deliveries; each has a socket. The cache holds answers of about
    ``cache_bytes`` altogether, each for its TTL within ``min_ttl`` and ``max_ttl``; that something does not
    exist is believed for ``max_negative_ttl`` at most, for ``unknown_ttl`` where the answer does not say how
    long (RFC 2308 §5); trouble is remembered for ``trouble_ttl`` (RFC 2308 §7).
    """

    deadline: float = 10.0
    lookups: int = 500
    delivery_lookups: int = 250
    cache_bytes: int = 16 * 1024 * 1024
    min_ttl: float = 5.0
    max_ttl: float = 3600.0
    max_negative_ttl: float = 900.0
    unknown_ttl: float = 30.0
    trouble_ttl: float = 5.0
