"""Limits, and a service that is asked for them, as they stand in a configuration."""

from __future__ import annotations

import json


def limit_table(name: str, per: str, counts: str, *rates: str, **more: str) -> str:
    """A ``[[limit]]`` table. ``per`` has the names of identities, with a space between them."""
    return _table("limit", {"name": name, "per": per.split(), "counts": counts, "rates": list(rates), **more})


def policy_service_table(name: str, **more: str) -> str:
    """A ``[[policy_service]]`` table, with a port that the kernel chooses."""
    return _table("policy_service", {"name": name, "endpoint": "tcp:0:interface=127.0.0.1", **more})


def _table(name: str, values: dict[str, object]) -> str:
    return f"[[{name}]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
