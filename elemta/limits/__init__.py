"""Limits: the rules of a configuration, the window that they are counted in, and where it is kept."""

from elemta.limits.limiter import (
    Cause,
    Charge,
    Limiter,
    LimitObserver,
    LimitState,
    NoLimitObserver,
    Refusal,
)
from elemta.limits.memory import MemoryStore
from elemta.limits.rules import Departure, Rule, rules_from_config
from elemta.limits.store import ILimitStore, Receipt

__all__ = [
    "Cause",
    "Charge",
    "Departure",
    "ILimitStore",
    "LimitObserver",
    "LimitState",
    "Limiter",
    "MemoryStore",
    "NoLimitObserver",
    "Receipt",
    "Refusal",
    "Rule",
    "rules_from_config",
]
