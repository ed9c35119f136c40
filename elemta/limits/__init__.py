"""Limits: the rules of a configuration, the window that they are counted in, and where it is kept."""

from elemta.limits.charge import Charge, LimitRefusal, RefusalCause
from elemta.limits.limiter import Limiter
from elemta.limits.memory import LocalStore
from elemta.limits.rules import OutboundCharge, Rule, rules_from_config
from elemta.limits.store import ILimitStore, Receipt

__all__ = [
    "Charge",
    "ILimitStore",
    "LimitRefusal",
    "Limiter",
    "LocalStore",
    "OutboundCharge",
    "Receipt",
    "RefusalCause",
    "Rule",
    "rules_from_config",
]
