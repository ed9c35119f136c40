"""Connections to Valkey: one server, Sentinels with a primary, or a cluster, behind one face."""

from elemta.errors import Trouble, ValkeyTrouble
from elemta.valkey.client import Valkey
from elemta.valkey.observer import Unobserved, ValkeyInfo, ValkeyObserver
from elemta.valkey.scripts import Script

__all__ = ["Script", "Trouble", "Unobserved", "Valkey", "ValkeyInfo", "ValkeyObserver", "ValkeyTrouble"]
