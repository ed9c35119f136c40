"""The leases of the partitions that workers own: taken and renewed by each, over the supervisor's Valkey.

A worker has no connection to Valkey. It has its own :class:`~elemta.daemon.spool_lease.SpoolLease`, whose
scripts the supervisor runs: the scripts about leases, and no other, on keys of leases.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from elemta.daemon.spool_lease import DEADLINE, SCRIPTS
from elemta.errors import ChannelError, ChannelRefused, StoreUnavailable
from elemta.valkey import Script
from elemta.valkey.client import ScriptRunner
from elemta.workers.channel import Channel

_QUESTION = "spool.lease"
_AWAY = "away"
# Longer than the supervisor waits for Valkey: which of the two does not answer is of no matter.
_SECONDS = DEADLINE + 1.0


class SupervisorScripts:
    """Runs scripts about leases at the supervisor. A call fails with StoreUnavailable."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[bytes | str | float] = (),
        *,
        deadline: float | None = None,
    ) -> Deferred[Any]:
        """As Valkey's; it is waited for as long as a lease is, whatever the deadline."""
        del deadline
        words = [script.name, [key.decode() for key in keys], list(args)]
        answer = self._channel.ask(_QUESTION, json.dumps(words).encode(), _SECONDS)
        return answer.addCallbacks(_words, _unavailable)


def serve_leases(channel: Channel, valkey: ScriptRunner, prefix: str) -> None:
    """Run for a worker what it asks about leases."""
    leases = f"{prefix}spool:"

    def run(body: bytes) -> Deferred[bytes]:
        name, keys, args = json.loads(body)
        if name not in SCRIPTS or not all(str(key).startswith(leases) for key in keys):
            raise ChannelRefused("forbidden", "that is no lease")
        done = valkey.run(SCRIPTS[name], [str(key).encode() for key in keys], args, deadline=DEADLINE)
        return done.addCallbacks(_octets, _refused)

    channel.handle(_QUESTION, run)


def _octets(found: Any) -> bytes:
    words = found if isinstance(found, list) else []
    return json.dumps([(word or b"").decode("utf-8", "replace") for word in words]).encode()


def _words(body: bytes) -> list[bytes]:
    return [word.encode() for word in json.loads(body)]


def _refused(failure: Failure) -> bytes:
    failure.trap(StoreUnavailable)
    raise ChannelRefused(_AWAY, failure.getErrorMessage())


def _unavailable(failure: Failure) -> list[bytes]:
    failure.trap(ChannelError)
    raise StoreUnavailable(f"the supervisor: {failure.getErrorMessage()}")
