"""What a policy keeps beyond a session: in Valkey where there is one, else in this node's memory.

Every entry has an expiry. In Valkey the key is ``{prefix}policy:NAME:KEY``; a key that is long is replaced by
its digest. While the breaker of the limits is open, each call fails at once with
:class:`~elemta.errors.StoreUnavailable`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred

from elemta.errors import StoreUnavailable, ValkeyError, ValkeyFailure
from elemta.policy.call_context import BackendWait
from elemta.valkey import Script

if TYPE_CHECKING:
    from elemta.valkey.client import Valkey

MAX_KEY = 200
"""Octets. A longer key is replaced by its digest."""

MAX_VALUE = 64 * 1024
"""Octets of one value."""

MAX_TTL = 366 * 86400.0
"""Seconds that an entry may live."""

MAX_AMOUNT = 2**53 - 1
"""The largest number that :meth:`Store.add` counts to."""

MEMORY_ENTRIES = 100_000
MEMORY_OCTETS = 32 * 1024 * 1024
"""What one policy may keep in this node's memory. Beyond that, its oldest entries go."""

MOST_UNDER_WAY = 512
"""Calls of all policies that may wait for Valkey at a time. The limits use the same connection."""

# An entry and its key in memory
_OVERHEAD = 200

_ADD = Script(
    "policy_add",
    """#!lua
local found = redis.call('GET', KEYS[1])
if not found then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return ARGV[1]
end
if not string.match(found, '^-?%d+$') then return false end
local number = tonumber(found) + tonumber(ARGV[1])
if number > 9007199254740991 or number < -9007199254740991 then return false end
local text = string.format('%.0f', number)
redis.call('SET', KEYS[1], text, 'KEEPTTL')
return text
""",
)


class Store(Protocol):
    """Values by key, each for ``ttl`` seconds; the whole cluster's where Valkey is configured.

    Every method raises :class:`~elemta.errors.StoreUnavailable` where Valkey does not answer, and
    :class:`ValueError` for a key, a value or a ``ttl`` that can't be.
    """

    async def get(self, key: str) -> bytes | None:
        """The value; None where there is none."""

    async def set(self, key: str, value: bytes, *, ttl: float, only_if_absent: bool = False) -> bool:
        """Set a value. Returns False where ``only_if_absent`` was asked for and there is one."""

    async def add(self, key: str, amount: int = 1, *, ttl: float) -> int:
        """Add to a number, which begins at 0, and return it. ``ttl`` counts from the first addition."""

    async def delete(self, key: str) -> bool:
        """Forget a value. Returns whether there was one."""


class MemoryStore:
    """A store in this node's memory, with a bound. ``seconds`` is a steady clock."""

    def __init__(
        self,
        seconds: Callable[[], float],
        most_entries: int = MEMORY_ENTRIES,
        most_octets: int = MEMORY_OCTETS,
    ) -> None:
        self._seconds = seconds
        self._most_entries = most_entries
        self._most_octets = most_octets
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self.octets = 0

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: str) -> bytes | None:
        return self._get(checked_key(key))

    async def set(self, key: str, value: bytes, *, ttl: float, only_if_absent: bool = False) -> bool:
        key, value, ttl = checked_key(key), checked_value(value), checked_ttl(ttl)
        if only_if_absent and self._get(key) is not None:
            return False
        self._keep(key, value, self._seconds() + ttl)
        return True

    async def add(self, key: str, amount: int = 1, *, ttl: float) -> int:
        key, amount, ttl = checked_key(key), checked_amount(amount), checked_ttl(ttl)
        found = self._get(key)
        until = self._seconds() + ttl if found is None else self._entries[key][1]
        number = amount if found is None else _number(found) + amount
        if abs(number) > MAX_AMOUNT:
            raise ValueError(NOT_A_NUMBER)
        self._keep(key, b"%d" % number, until)
        return number

    async def delete(self, key: str) -> bool:
        key = checked_key(key)
        found = self._get(key)
        if found is not None:
            self._drop(key)
        return found is not None

    def _get(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[1] <= self._seconds():
            self._drop(key)
            return None
        return entry[0]

    def _keep(self, key: str, value: bytes, until: float) -> None:
        if key in self._entries:
            self._drop(key)
        self._entries[key] = value, until
        self.octets += _OVERHEAD + len(key) + len(value)
        while len(self._entries) > self._most_entries or self.octets > self._most_octets:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        value, _ = self._entries.pop(key)
        self.octets -= _OVERHEAD + len(key) + len(value)


class SharedStore(Protocol):
    """Valkey under the breaker of the limits."""

    def ask_cluster(self, how: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        """Ask, unless the breaker is open. Fails with StoreUnavailable."""


class ValkeyStores:
    """The stores of all policies in Valkey, whose waiting calls are counted together."""

    def __init__(self, valkey: Valkey, breaker: SharedStore, prefix: str) -> None:
        self._valkey = valkey
        self._breaker = breaker
        self._prefix = prefix
        self._under_way = 0

    def of_policy(self, name: str) -> Store:
        """The store of one policy."""
        return _ValkeyStore(self, self._valkey, f"{self._prefix}policy:{name}:".encode())

    async def ask(self, how: Callable[[], Deferred[Any]]) -> Any:
        if self._under_way >= MOST_UNDER_WAY:
            raise ValkeyError(ValkeyFailure.OVERLOADED, "too many calls of policies wait for Valkey")
        self._under_way += 1
        wait, failed = BackendWait(), False
        try:
            return await self._breaker.ask_cluster(how)
        except StoreUnavailable:
            failed = True
            raise
        finally:
            self._under_way -= 1
            wait.ended(failed=failed)


class _ValkeyStore:
    """The store of one policy; ``prefix`` is what its keys begin with."""

    def __init__(self, stores: ValkeyStores, valkey: Valkey, prefix: bytes) -> None:
        self._stores = stores
        self._valkey = valkey
        self._prefix = prefix

    async def get(self, key: str) -> bytes | None:
        place = self._place(key)
        found: bytes | None = await self._stores.ask(lambda: self._valkey.command("GET", place, key=place))
        return found

    async def set(self, key: str, value: bytes, *, ttl: float, only_if_absent: bool = False) -> bool:
        place = self._place(key)
        words: list[bytes | str | int] = ["SET", place, checked_value(value), "PX", _milliseconds(ttl)]
        if only_if_absent:
            words.append("NX")
        reply = await self._stores.ask(lambda: self._valkey.command(*words, key=place))
        return reply is not None

    async def add(self, key: str, amount: int = 1, *, ttl: float) -> int:
        place, words = self._place(key), (checked_amount(amount), _milliseconds(ttl))
        reply = await self._stores.ask(lambda: self._valkey.run(_ADD, [place], words))
        if reply is None:
            raise ValueError(NOT_A_NUMBER)
        return int(reply)

    async def delete(self, key: str) -> bool:
        place = self._place(key)
        return bool(await self._stores.ask(lambda: self._valkey.command("DEL", place, key=place)))

    def _place(self, key: str) -> bytes:
        return self._prefix + checked_key(key).encode("utf-8", "surrogatepass")


NOT_A_NUMBER = "what the store has under this key is no number, or the sum is too large"


def checked_key(key: str) -> str:
    """The key, or its digest where it is long."""
    if not isinstance(key, str) or not key:
        raise ValueError("a key of the store is a text that is not empty")
    octets = key.encode("utf-8", "surrogatepass")
    if len(octets) <= MAX_KEY:
        return key
    return "#" + blake2b(octets, digest_size=16).hexdigest()


def checked_value(value: bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"a value of the store is bytes, not {type(value).__name__}")
    if len(value) > MAX_VALUE:
        raise ValueError(f"a value of the store has {MAX_VALUE} octets at most")
    return value


def checked_ttl(ttl: float) -> float:
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl <= MAX_TTL:
        raise ValueError(f"ttl is more than 0 and at most {MAX_TTL:.0f} seconds")
    return float(ttl)


def checked_amount(amount: int) -> int:
    if isinstance(amount, bool) or not isinstance(amount, int) or abs(amount) > MAX_AMOUNT:
        raise ValueError("an amount is a whole number")
    return amount


def _milliseconds(ttl: float) -> int:
    return max(1, round(checked_ttl(ttl) * 1000))


def _number(value: bytes) -> int:
    digits = value.removeprefix(b"-")
    if not digits.isdigit():
        raise ValueError(NOT_A_NUMBER)
    return int(value)
