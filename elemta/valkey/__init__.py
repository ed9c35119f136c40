"""Connections to Valkey: one server, Sentinels with a primary, or a cluster, behind one face.

What connects, :mod:`elemta.valkey.client`, loads txredisapi, which installs the reactor.
"""

from elemta.errors import ValkeyError, ValkeyFailure
from elemta.valkey.info import ValkeyInfo
from elemta.valkey.resp import Script

__all__ = ["Script", "ValkeyError", "ValkeyFailure", "ValkeyInfo"]
