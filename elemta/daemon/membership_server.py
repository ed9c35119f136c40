"""What workers share, at the supervisor: it is the node, has the one membership, and serves it to them.

::

    served = MembershipServer(runtime, fleet, prefix, max_connections=most)
    served.serve(channel)                        # before the channel is opened, one for each worker
    served.start()                               # after fleet.start(member)
    served.forget(limit, identity)               # from LocalNode.forget: another node reset a limit

The other end: :mod:`elemta.daemon.supervised_membership`. The supervisor asks Valkey within
:data:`~elemta.workers.limit_client.SUPERVISOR_SHARE` of the configured deadline (:func:`supervisor_config`),
so that a worker has an answer within all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred

from elemta.config import Config
from elemta.daemon.lease_link import serve_leases
from elemta.daemon.membership import Membership
from elemta.daemon.supervised_membership import ANNOUNCE, REFUSED
from elemta.errors import ChannelRefused, StoreUnavailable
from elemta.limits.nodes import MAX_PUBLISHED
from elemta.limits.refusals import RememberedRefusal
from elemta.limits.store import LimitSpec, Request
from elemta.runtime import Runtime
from elemta.workers.channel import Channel
from elemta.workers.handshake_places import HandshakeServer
from elemta.workers.host_state import HostStateServer
from elemta.workers.limit_bodies import Words, distrust, read, text
from elemta.workers.limit_client import SUPERVISOR_SHARE, UNAVAILABLE
from elemta.workers.limit_server import LimitServer, ServedStore
from elemta.workers.outages import OutageServer
from elemta.workers.policy_stores import PolicyStoreServer
from elemta.workers.slot_server import SlotServer


def supervisor_config(config: Config) -> Config:
    """The configuration by which the supervisor asks Valkey."""
    resources = config.resources
    return replace(
        config, resources=replace(resources, valkey_deadline=resources.valkey_deadline * SUPERVISOR_SHARE)
    )


class MembershipServer:
    """Serves the supervisor's membership to its workers. See the module's docstring.

    ``max_connections`` gives the number of clients that all of them may have, as it is now.
    """

    def __init__(
        self, runtime: Runtime, fleet: Membership, prefix: str = "", *, max_connections: Callable[[], int]
    ) -> None:
        self._fleet = fleet
        self._prefix = prefix
        store: Any = fleet.store
        served: ServedStore = store
        self._limits = LimitServer(served)
        self._stores = PolicyStoreServer(fleet.policy_store)
        self._slots = SlotServer(max_connections)
        self._handshakes = HandshakeServer()
        self._outages = OutageServer(runtime.monotonic)
        self._seconds = runtime.monotonic
        self._refused: dict[Channel, tuple[float, Sequence[RememberedRefusal]]] = {}
        fleet.on_own_reset(self.forget)
        self._state = HostStateServer(
            runtime, overrides=fleet.overrides, pushed=fleet.pushed, status=self._status
        )

    def start(self) -> None:
        """Send the workers what changes, from now on."""
        self._state.start()

    def stop(self) -> None:
        self._state.stop()

    def serve(self, channel: Channel) -> None:
        """Serve this worker until its channel closes; then all that it holds is free."""
        self._limits.serve(channel)
        self._stores.serve(channel)
        self._slots.serve(channel)
        self._handshakes.serve(channel)
        self._outages.serve(channel)
        self._state.serve(channel)
        channel.handle(ANNOUNCE, self._announce)
        channel.handle_notice(REFUSED, lambda body: self._take_refused(channel, body))
        channel.on_close(lambda _: self._refused.pop(channel, None))
        if self._fleet.scripts is not None:
            serve_leases(channel, self._fleet.scripts, self._prefix)

    def look(self) -> None:
        """Send the workers what has changed, now."""
        self._state.look()

    def clear_outages(self) -> None:
        """Tell new workers of no destination that is down: by another configuration all are tried again."""
        self._outages.clear()

    def forget(self, limit: str, identity: str) -> None:
        """Have all workers forget what they remember of an identity: a limit was reset for it."""
        self._limits.forget(limit, identity)

    def refused(self) -> Sequence[RememberedRefusal]:
        """What the workers refuse from memory, as of the last second: one entry for each identity."""
        now = self._seconds()
        found: dict[tuple[str, str], RememberedRefusal] = {}
        for at, refused in self._refused.values():
            for one in refused:
                left = one.seconds - (now - at)
                known = found.get((one.limit, one.identity))
                if left > 0 and (known is None or known.seconds < left):
                    found[one.limit, one.identity] = replace(one, seconds=left)
        return tuple(found.values())

    def _take_refused(self, channel: Channel, body: bytes) -> None:
        with distrust("what a worker refuses"):
            refused = tuple(
                RememberedRefusal(text(limit), text(identity), float(seconds))
                for limit, identity, seconds in read(body)
            )
            if len(refused) > MAX_PUBLISHED:
                raise ValueError
        self._refused[channel] = self._seconds(), refused

    def _status(self) -> Words:
        status = self._fleet.status()
        valkey = status.valkey
        of_valkey = None if valkey is None else [valkey.url, valkey.up, valkey.breaker, valkey.trouble]
        return [status.mode, status.live_nodes, of_valkey]

    def _announce(self, body: bytes) -> Deferred[bytes]:
        with distrust("a reset"):
            limit, identity = map(text, read(body))
        return Deferred.fromCoroutine(
            self._announce_reset(Request(LimitSpec(limit, cluster=False), identity))
        )

    async def _announce_reset(self, request: Request) -> bytes:
        try:
            await self._fleet.announce_reset(request)
        except StoreUnavailable as error:
            raise ChannelRefused(UNAVAILABLE, str(error)) from error
        return b""
