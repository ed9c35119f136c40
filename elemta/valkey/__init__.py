"""Connections to Valkey: one server, Sentinels with a primary, or a cluster, behind one face."""

from elemta.errors import ValkeyError, ValkeyFailure
from elemta.valkey.client import ScriptRunner, Valkey, ValkeyCommands
from elemta.valkey.info import ValkeyInfo
from elemta.valkey.resp import Script

__all__ = [
    "Script",
    "ScriptRunner",
    "Valkey",
    "ValkeyCommands",
    "ValkeyError",
    "ValkeyFailure",
    "ValkeyInfo",
]
