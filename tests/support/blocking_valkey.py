"""A Valkey for stores in tests without a reactor: real servers, asked over a blocking connection, at once.

With ``TimedValkey`` the scripts run at a time that the test sets. Nothing in the product can do that: the
scripts' text is changed here, so that they read the time from a key, and keep the times at which keys
expire in another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from elemta.errors import ValkeyError, ValkeyFailure
from elemta.valkey import Script
from tests.support.valkey import ServerError, Talk, ValkeyServer


@dataclass
class Found:
    keys: list[bytes]
    complete: bool


class BlockingValkey:
    """What a store uses of ``elemta.valkey.Valkey``.

    ``clustered`` makes it a cluster as far as the store can tell: keys with different tags in one call fail.
    ``before`` and ``after`` are called with the script, keys and arguments of each call, and may raise.
    While ``late`` is true replies wait for ``deliver``, as those of a real server do.
    """

    up = True

    def __init__(self, server: ValkeyServer, *, clustered: bool = False) -> None:
        self.talk: Talk = server.talk()
        self.clustered = clustered
        self.calls: list[str] = []
        self.before: Callable[..., None] = _nothing
        self.after: Callable[..., None] = _nothing
        self.late = False
        self._undelivered: list[tuple[Deferred[Any], Any]] = []
        self._listeners: list[Callable[[bool], None]] = []

    def on_change(self, callback: Callable[[bool], None]) -> None:
        self._listeners.append(callback)

    def changed(self, up: bool) -> None:
        self.up = up
        for callback in self._listeners:
            callback(up)

    def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[Any] = (),
        *,
        deadline: float | None = None,
    ) -> Deferred[Any]:
        if self.clustered:
            assert len({_tag(key) for key in keys}) == 1, f"keys of several slots in one call: {keys}"
        self.calls.append(script.name)
        try:
            self.before(script, keys, args)
            reply = self.evaluate(script, keys, args)
            self.after(script, keys, args)
        except ValkeyError as trouble:
            return fail(trouble)
        except ServerError as error:
            return fail(ValkeyError(ValkeyFailure.OTHER, str(error)))
        if self.late:
            later: Deferred[Any] = Deferred()
            self._undelivered.append((later, reply))
            return later
        return succeed(reply)

    def deliver(self) -> None:
        undelivered, self._undelivered = self._undelivered, []
        for later, reply in undelivered:
            later.callback(reply)

    def overloaded(self, words: str) -> ValkeyError:
        return ValkeyError(ValkeyFailure.OVERLOADED, words)

    def command(self, *words: Any, key: bytes | None = None, deadline: float | None = None) -> Deferred[Any]:
        return succeed(self.talk(*words))

    def scan(self, *, match: bytes, count: int, limit: int) -> Deferred[Found]:
        keys = self.talk("KEYS", match)
        return succeed(Found(keys[:limit], len(keys) <= limit))

    def evaluate(self, script: Script, keys: Sequence[bytes], args: Sequence[Any]) -> Any:
        return self.talk("EVAL", script.text, len(keys), *keys, *args)


_READS_TIME = "local clock = call('TIME')\n"
_CALLS = "local call, floor, ceil, max, min = redis.call, "
_TIMED = """
local clock = redis.call('HMGET', 'test:clock', 's', 'u')
local function call(name, key, ...)
  if name == 'PEXPIRE' then
    local life, only = ...
    local ends = clock[1] * 1000 + clock[2] / 1000 + life
    local known = tonumber(redis.call('HGET', 'test:ends', key) or 0)
    if only ~= 'GT' or known > 0 and ends > known then
      redis.call('HSET', 'test:ends', key, string.format('%.3f', ends))
    end
    return 1
  end
  if name == 'PTTL' then
    if redis.call('EXISTS', key) == 0 then return -2 end
    local ends = redis.call('HGET', 'test:ends', key)
    return ends and math.floor(ends - clock[1] * 1000 - clock[2] / 1000) or -1
  end
  if name == 'DEL' then redis.call('HDEL', 'test:ends', key) end
  if name == 'SET' then return redis.call('SET', key, (...)) end
  return redis.call(name, key, ...)
end
local floor, ceil, max, min = """


class TimedValkey(BlockingValkey):
    """Scripts run at ``now``, microseconds; keys expire when that has gone on."""

    def __init__(self, server: ValkeyServer, *, clustered: bool = False, now: int = 10**15) -> None:
        super().__init__(server, clustered=clustered)
        self._timed: dict[bytes, Script] = {}
        self.set(now)

    def set(self, now: int) -> None:
        self.now = now
        self.talk("HSET", "test:clock", "s", now // 10**6, "u", now % 10**6)
        flat = self.talk("HGETALL", "test:ends")
        for key, ends in zip(flat[::2], flat[1::2], strict=True):
            if float(ends) * 1000 <= now:
                self.talk("DEL", key)
                self.talk("HDEL", "test:ends", key)

    def forget(self) -> None:
        """Empty the server."""
        self.talk("FLUSHALL")
        self.set(self.now)

    def evaluate(self, script: Script, keys: Sequence[bytes], args: Sequence[Any]) -> Any:
        timed = self._timed.get(script.sha)
        if timed is None:
            assert script.text.count(_READS_TIME) == 1
            assert script.text.count(_CALLS) == 1
            text = script.text.replace(_READS_TIME, "").replace(_CALLS, _TIMED)
            timed = self._timed[script.sha] = Script(script.name, text)
            self.talk("SCRIPT", "LOAD", text)
        return self.talk("EVALSHA", timed.sha, len(keys), *keys, *args)


def _nothing(*_arguments: Any) -> None:
    pass


def _tag(key: bytes) -> bytes:
    _, opened, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return tag if opened and closed and tag else key


def result(later: Any) -> Any:
    """What a Deferred has fired with; raises what it has failed with."""
    if not isinstance(later, Deferred):
        return later
    found: list[Any] = []
    later.addBoth(found.append)
    assert found, "not answered yet"
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return found[0]
