"""Connections to Valkey: one server, Sentinels with a primary, or a cluster, all used alike.

:mod:`elemta.valkey.client` has the class that connects. It is not imported here: a connection loads
txredisapi, which installs Twisted's reactor.
"""

from elemta.errors import ValkeyError, ValkeyFailure
from elemta.valkey.info import ValkeyInfo
from elemta.valkey.resp import Script

__all__ = ["Script", "ValkeyError", "ValkeyFailure", "ValkeyInfo"]
