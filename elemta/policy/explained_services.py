"""What a running policy changes while it explains: nothing.

A policy with a life (:class:`~elemta.policy.interfaces.ILifecycle`) is there once: another of it could not
open what it has open. It is asked itself, and its services know for which call they are used: that of a real
session, or an explanation. The context of a coroutine says so, as in :mod:`elemta.policy.call_context`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from inspect import iscoroutine
from typing import Any

from twisted.logger import ILogObserver, LogEvent
from zope.interface import directlyProvides, implementer, providedBy

from elemta.policy.overlay_store import OverlayStore
from elemta.policy.policy_store import Store


class ExplainedStores:
    """The stores of the running policies for one explanation, by name. ``seconds`` is a steady clock."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._stores: dict[str, OverlayStore] = {}

    def of_policy(self, name: str, real: Store) -> OverlayStore:
        """The store of a policy, made when it is first used."""
        if name not in self._stores:
            self._stores[name] = OverlayStore(real, self._seconds)
        return self._stores[name]


_explaining: ContextVar[ExplainedStores | None] = ContextVar("elemta_explaining", default=None)


class SwitchedStore:
    """The store of a policy; while it explains, one over that."""

    def __init__(self, name: str, real: Store) -> None:
        self._name = name
        self._real = real

    def _now(self) -> Store:
        stores = _explaining.get()
        return self._real if stores is None else stores.of_policy(self._name, self._real)

    async def get(self, key: str) -> bytes | None:
        return await self._now().get(key)

    async def set(self, key: str, value: bytes, *, ttl: float, only_if_absent: bool = False) -> bool:
        return await self._now().set(key, value, ttl=ttl, only_if_absent=only_if_absent)

    async def add(self, key: str, amount: int = 1, *, ttl: float) -> int:
        return await self._now().add(key, amount, ttl=ttl)

    async def delete(self, key: str) -> bool:
        return await self._now().delete(key)


class SwitchedMetric:
    """A policy's counter or histogram, which counts nothing while the policy explains."""

    __slots__ = ("_metric",)

    def __init__(self, metric: Any) -> None:
        self._metric = metric

    def inc(self, amount: float = 1) -> None:
        if _explaining.get() is None:
            self._metric.inc(amount)

    def observe(self, amount: float) -> None:
        if _explaining.get() is None:
            self._metric.observe(amount)

    def labels(self, *values: str) -> SwitchedMetric:
        # Without a count no child is made.
        return self if _explaining.get() is not None else SwitchedMetric(self._metric.labels(*values))


@implementer(ILogObserver)
class SwitchedLog:
    """The observer of a policy's log, which drops what the policy logs while it explains."""

    def __init__(self, observer: ILogObserver) -> None:
        self._observer = observer

    def __call__(self, event: LogEvent) -> None:
        if _explaining.get() is None:
            self._observer(event)


class RunningPolicy:
    """A running policy whose methods know that they explain; it provides what the policy does."""

    def __init__(self, policy: object, stores: ExplainedStores) -> None:
        self._policy = policy
        self._stores = stores
        directlyProvides(self, providedBy(policy))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._policy, name)
        return self._explaining(found) if callable(found) else found

    def _explaining(self, method: Callable[..., object]) -> Callable[..., object]:
        stores = self._stores

        def explain(*args: object) -> object:
            token = _explaining.set(stores)
            try:
                answer = method(*args)
            finally:
                _explaining.reset(token)
            return _in_context(answer, stores) if iscoroutine(answer) else answer

        return explain


async def _in_context(answer: Coroutine[Any, Any, Any], stores: ExplainedStores) -> Any:
    # The context is that of this coroutine alone: Twisted makes one for each.
    _explaining.set(stores)
    return await answer
