"""Where overrides are made and kept: in Valkey for all nodes, or in this node's memory.

- ``{prefix}override``: a hash with a field ``LIMIT:IDENTITY`` for each override. It expires with the last.
- ``{prefix}override:version``: a number that is another after each change. On a Valkey Cluster both names
  have the hash tag ``{override}``, so that one script can change both.

Each node asks for the version every second, and for the overrides when it is another. While Valkey does not
answer, what was last known holds. A Valkey that has lost its data gets it back from the first node that
notices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elemta.errors import TooManyOverrides
from elemta.limits.overrides import Override, Overrides
from elemta.limits.version_watch import DEADLINE, LOOK_SECONDS, VersionWatch, shared_keys
from elemta.runtime import Runtime
from elemta.valkey import Script
from elemta.valkey.client import ValkeyCommands

_log = Logger()

MAX_OVERRIDES = 1000
"""So many may hold at a time."""

_SCRIPT = Script.of_package("elemta.limits", "scripts/overrides.lua")


class SharedClock:
    """Seconds since the epoch as Valkey has them, or as this node has where there is no Valkey.

    It goes on with the monotonic clock: a time of day that is set ends no override.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._monotonic = runtime.monotonic
        self._offset = runtime.wall() - runtime.monotonic()

    def seconds(self) -> float:
        return self._monotonic() + self._offset

    def follow(self, seconds: float) -> None:
        """Go on from this time."""
        self._offset = seconds - self._monotonic()


class OverrideRegistry(Protocol):
    """Makes and removes overrides; ``overrides`` are those that this node knows."""

    @property
    def overrides(self) -> Overrides: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    async def put(self, override: Override, seconds: float) -> Override:
        """Make it hold for so long, in place of one for the same identity.

        Returns it with its times. Raises StoreUnavailable, or :class:`~elemta.errors.TooManyOverrides`.
        """

    async def remove(self, limit: str, identity: str) -> bool:
        """End it; whether there was one. Raises StoreUnavailable."""


class LocalOverrides:
    """Overrides of a node that counts in its own memory."""

    def __init__(self, runtime: Runtime) -> None:
        self._clock = SharedClock(runtime)
        self.overrides = Overrides(self._clock.seconds)
        self._sweep = LoopingCall(self.overrides.drop_ended)
        self._sweep.clock = runtime.reactor

    def start(self) -> None:
        self._sweep.start(LOOK_SECONDS)

    def stop(self) -> None:
        if self._sweep.running:
            self._sweep.stop()

    async def put(self, override: Override, seconds: float) -> Override:
        now = self._clock.seconds()
        override = replace(override, until=now + seconds, made_at=now)
        others = [each for each in self.overrides.in_force() if each.key != override.key]
        if len(others) >= MAX_OVERRIDES:
            raise TooManyOverrides(MAX_OVERRIDES)
        self.overrides.replace([*others, override])
        return override

    async def remove(self, limit: str, identity: str) -> bool:
        before = self.overrides.in_force()
        others = [each for each in before if each.key != f"{limit}:{identity}"]
        self.overrides.replace(others)
        return len(others) != len(before)


class ClusterOverrides:
    """Overrides that all nodes of a Valkey share."""

    def __init__(self, runtime: Runtime, valkey: ValkeyCommands, prefix: str) -> None:
        self._valkey = valkey
        self._clock = SharedClock(runtime)
        self.overrides = Overrides(self._clock.seconds)
        self._keys = shared_keys(prefix, "override", clustered=valkey.clustered)
        self._version: int | None = None
        self._watch = VersionWatch(
            runtime,
            valkey,
            self._keys[1],
            self._look,
            before=self.overrides.drop_ended,
            reconnected=self._forget_version,
        )

    def start(self) -> None:
        self._watch.start()

    def stop(self) -> None:
        self._watch.stop()

    async def put(self, override: Override, seconds: float) -> Override:
        await self._restore_lost()
        now = self._clock.seconds()
        # The script says until when by Valkey's clock: this one may be late.
        made = replace(override, until=now + seconds, made_at=now)
        life = max(1, round(seconds * 1000))
        if await self._change("set", MAX_OVERRIDES, override.key, life, made.to_json()) < 0:
            raise TooManyOverrides(MAX_OVERRIDES)
        return self.overrides.named(override.limit, override.identity) or made

    async def remove(self, limit: str, identity: str) -> bool:
        await self._restore_lost()
        return await self._change("remove", f"{limit}:{identity}") > 0

    # Looks

    def _forget_version(self) -> None:
        self._version = None

    async def _look(self, version: int | None) -> None:
        if version is None and self.overrides.in_force():
            await self._restore()
        elif (version or 0) != self._version:
            await self._change("look")

    async def _restore_lost(self) -> None:
        """Before a change: a server that lost its data gets no others back once it knows of one."""
        if self.overrides.in_force():
            version = self._keys[1]
            if await self._valkey.command("GET", version, key=version, deadline=DEADLINE) is None:
                await self._restore()

    async def _restore(self) -> None:
        now, known = self._clock.seconds(), self.overrides.in_force()
        words: list[str | int] = [self._version or 0]
        for each in known:
            words += [each.key, max(1, round((each.until - now) * 1000)), each.to_json()]
        if await self._change("restore", *words):
            _log.warn(
                "Valkey had lost its overrides of limits; this node wrote them again",
                event="limits.overrides_restored",
                count=len(known),
            )

    async def _change(self, *words: str | int) -> int:
        """Run the script, and know what holds then. Raises StoreUnavailable."""
        reply = await self._valkey.run(_SCRIPT, self._keys, words, deadline=DEADLINE)
        now, version, changed, *flat = reply
        self._clock.follow(int(now) / 1000)
        before = self._version
        self._version = int(version)
        self.overrides.replace(_read(flat))
        if before is not None and before != self._version:
            _log.info(
                "other overrides of limits hold",
                event="limits.overrides_changed",
                version=self._version,
                count=len(self.overrides),
            )
        return int(changed)


def _read(flat: Sequence[bytes]) -> Iterator[Override]:
    """The overrides of fields and values, without what another version writes in another way."""
    for value in flat[1::2]:
        till, _, text = value.decode("utf-8", "replace").partition(" ")
        override = Override.of_json(text)
        if override is not None and till.isdigit():
            yield replace(override, until=int(till) / 1000)
