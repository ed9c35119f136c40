"""The limit of sockets and files that the process may have open."""

from __future__ import annotations

import resource

from twisted.logger import Logger

_log = Logger()

# Listeners, the spool's own files, next hops, DNS lookups, logs.
_BESIDE = 1024
# The socket, and the file of a large message.
_OF_A_CONNECTION = 2


def provide_descriptors(connections: int) -> bool:
    """Raise the limit of open files as far as that many connections need and as the system allows.

    Returns False, with a warning in the log, when they do not have enough.
    """
    needed = connections * _OF_A_CONNECTION + _BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return True
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if allowed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed >= needed:
        return True
    _log.warn(
        "this process may not open as many files as max_connections needs",
        event="descriptors.few",
        max_connections=connections,
        needed=needed,
        allowed=allowed,
    )
    return False
