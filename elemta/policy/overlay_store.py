"""A policy's store for an explanation: it reads the real one, and what is written is thrown away."""

from __future__ import annotations

from collections.abc import Callable

from elemta.policy.policy_store import MAX_TTL, MemoryStore, Store, checked_key


class OverlayStore:
    """What a policy writes here it finds again, and no other does. ``seconds`` is a steady clock."""

    def __init__(self, real: Store, seconds: Callable[[], float]) -> None:
        self._real = real
        self._own = MemoryStore(seconds)
        # The keys that were written or deleted here: the real store says nothing of them any more.
        self._touched: dict[str, None] = {}

    async def get(self, key: str) -> bytes | None:
        if checked_key(key) in self._touched:
            return await self._own.get(key)
        return await self._real.get(key)

    async def set(self, key: str, value: bytes, *, ttl: float, only_if_absent: bool = False) -> bool:
        if only_if_absent and await self.get(key) is not None:
            return False
        done = await self._own.set(key, value, ttl=ttl)
        self._touched[checked_key(key)] = None
        return done

    async def add(self, key: str, amount: int = 1, *, ttl: float) -> int:
        if checked_key(key) not in self._touched:
            found = await self._real.get(key)
            if found is not None:
                # How long it still lives is not known, and no conversation takes as long.
                await self._own.set(key, found, ttl=MAX_TTL)
            self._touched[checked_key(key)] = None
        return await self._own.add(key, amount, ttl=ttl)

    async def delete(self, key: str) -> bool:
        found = await self.get(key) is not None
        self._touched[checked_key(key)] = None
        await self._own.delete(key)
        return found
