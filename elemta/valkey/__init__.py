"""Connections to Valkey: one server, Sentinels with a primary, or a cluster, behind one face."""

from elemta.errors import ValkeyError, ValkeyFailure
from elemta.valkey.client import Valkey
from elemta.valkey.observer import NullValkeyObserver, ValkeyInfo, ValkeyObserver
from elemta.valkey.resp import Script

__all__ = [
    "NullValkeyObserver",
    "Script",
    "Valkey",
    "ValkeyError",
    "ValkeyFailure",
    "ValkeyInfo",
    "ValkeyObserver",
]
