"""What policies of workers keep beyond a session: at the supervisor, in its memory or in Valkey.

The worker's end is :class:`WorkerPolicyStores`, the supervisor's :class:`PolicyStoreServer`::

    stores = WorkerPolicyStores(channel, failover_store, deadline=0.05)
    await stores.of_policy("greylist").get("key")

    PolicyStoreServer(membership.policy_store).serve(channel)

A call is one question, within the deadline and under the breaker of the limits. While the supervisor does not
answer, each call fails at once with :class:`~elemta.errors.StoreUnavailable`, as where Valkey is away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from elemta.errors import ChannelRefused, StoreUnavailable, ValkeyError, ValkeyFailure
from elemta.policy.call_context import BackendWait
from elemta.policy.policy_store import (
    MOST_UNDER_WAY,
    SharedStore,
    Store,
    checked_amount,
    checked_key,
    checked_ttl,
    checked_value,
)
from elemta.workers.channel import Channel
from elemta.workers.limit_bodies import Words, distrust, read, text, write
from elemta.workers.limit_client import UNAVAILABLE, as_unavailable

ASK = "store"

MOST_POLICIES = 1000
"""Policies that have a store, by name."""

_WRONG = "wrong"
"""The code of a refusal: a ValueError."""
_END = b"\n"


class WorkerPolicyStores:
    """The stores of a worker's policies. ``breaker`` is the worker's store of limits."""

    def __init__(self, channel: Channel, breaker: SharedStore, deadline: float) -> None:
        self._channel = channel
        self._breaker = breaker
        self._deadline = deadline
        self._under_way = 0

    def of_policy(self, name: str) -> Store:
        """The store of one policy."""
        return _WorkerStore(self, name)

    async def ask(self, words: Words, value: bytes = b"") -> bytes:
        if self._under_way >= MOST_UNDER_WAY:
            raise ValkeyError(ValkeyFailure.OVERLOADED, "too many calls of policies wait for the supervisor")
        self._under_way += 1
        wait, failed = BackendWait(), False
        try:
            answer: bytes = await self._breaker.ask_cluster(lambda: self._ask(words, value))
        except StoreUnavailable:
            failed = True
            raise
        except ChannelRefused as error:
            raise (ValueError(str(error)) if error.code == _WRONG else error) from None
        finally:
            self._under_way -= 1
            wait.ended(failed=failed)
        return answer

    def _ask(self, words: Words, value: bytes) -> Deferred[bytes]:
        answer = self._channel.ask(ASK, write(words) + _END + value, self._deadline)
        return answer.addErrback(_unanswered)


def _unanswered(failure: Any) -> Any:
    raise as_unavailable(failure)


class _WorkerStore:
    """The store of one policy."""

    def __init__(self, stores: WorkerPolicyStores, policy: str) -> None:
        self._stores = stores
        self._policy = policy

    async def get(self, key: str) -> bytes | None:
        answer = await self._stores.ask([self._policy, "get", checked_key(key)])
        return answer[1:] if answer else None

    async def set(self, key: str, value: bytes, *, ttl: float, only_if_absent: bool = False) -> bool:
        words = [self._policy, "set", checked_key(key), checked_ttl(ttl), only_if_absent]
        return await self._stores.ask(words, checked_value(value)) == b"1"

    async def add(self, key: str, amount: int = 1, *, ttl: float) -> int:
        words = [self._policy, "add", checked_key(key), checked_ttl(ttl), checked_amount(amount)]
        return int(await self._stores.ask(words))

    async def delete(self, key: str) -> bool:
        return await self._stores.ask([self._policy, "delete", checked_key(key)]) == b"1"


class PolicyStoreServer:
    """The supervisor's end. ``store_of`` gives the store of a policy; it is asked once for each."""

    def __init__(self, store_of: Callable[[str], Store]) -> None:
        self._store_of = store_of
        self._stores: dict[str, Store] = {}

    def serve(self, channel: Channel) -> None:
        """Answer what the policies of this worker ask."""
        channel.handle(ASK, self._answer)

    def _answer(self, body: bytes) -> Deferred[bytes]:
        with distrust("a call of a policy's store"):
            head, end, value = body.partition(_END)
            policy, call, key, *rest = read(head)
            text(policy), text(key)
            if (
                not end
                or call not in ("get", "set", "add", "delete")
                or len(rest) != 2 * (call in ("set", "add"))
            ):
                raise ValueError
        return Deferred.fromCoroutine(self._call(policy, call, key, rest, value))

    def _store(self, policy: str) -> Store:
        store = self._stores.get(policy)
        if store is None:
            if len(self._stores) >= MOST_POLICIES:
                raise ChannelRefused(UNAVAILABLE, "there are too many policies")
            store = self._stores[policy] = self._store_of(policy)
        return store

    async def _call(self, policy: str, call: str, key: str, rest: Words, value: bytes) -> bytes:
        store = self._store(policy)
        try:
            if call == "get":
                found = await store.get(key)
                return b"" if found is None else b"+" + found
            if call == "set":
                done = await store.set(key, value, ttl=rest[0], only_if_absent=bool(rest[1]))
                return b"1" if done else b"0"
            if call == "add":
                return b"%d" % await store.add(key, rest[1], ttl=rest[0])
            return b"1" if await store.delete(key) else b"0"
        except StoreUnavailable as error:
            raise ChannelRefused(UNAVAILABLE, str(error)) from error
        except (ValueError, TypeError) as error:
            raise ChannelRefused(_WRONG, str(error)) from error
