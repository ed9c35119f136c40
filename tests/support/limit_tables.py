"""A limit as it stands in a configuration."""

from __future__ import annotations

import json


def limit_table(name: str, per: str, counts: str, *rates: str, **more: str) -> str:
    """A ``[[limit]]`` table. ``per`` has the names of identities, with a space between them."""
    values = {"name": name, "per": per.split(), "counts": counts, "rates": list(rates), **more}
    return "[[limit]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
