"""Where pushed limits are kept: in Valkey for all nodes, and in a file for a start without it.

- ``{prefix}pushed``: a hash of the last versions, each a JSON document under its number.
- ``{prefix}pushed:version``: the number of the one in force. On a Valkey Cluster both names have the hash tag
  ``{pushed}``. Neither expires: a fleet must not fall back to its files by itself.

Each node looks at the number every second, takes another version as a whole, and goes on with its own where
it can't. While Valkey does not answer, what was taken last holds. A Valkey that has lost its data gets the
version in force back from the first node that notices.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.errors import ConfigError, PushedMeanwhile, SpoolError
from elemta.limits.pushed_limits import PushedLimits
from elemta.limits.version_watch import DEADLINE, VersionWatch, shared_keys
from elemta.runtime import Runtime, WorkerPool
from elemta.valkey import Script
from elemta.valkey.client import ValkeyCommands

_log = Logger()

RECORD = "pushed-limits"
VERSIONS_KEPT = 50
_SCRIPT = Script.of_package("elemta.limits", "scripts/pushed.lua")

Apply = Callable[[], Awaitable[None]]


def _always() -> bool:
    return True


class TextRecord(Protocol):
    """A list of texts on stable storage. Its calls block; SpoolError where the disk fails."""

    def read(self) -> Sequence[str]: ...

    def write(self, texts: Iterable[str]) -> None: ...


class KeptVersion:
    """The version that was taken last, in a record of this node. All methods block."""

    def __init__(self, record: TextRecord) -> None:
        self._record = record

    def read(self) -> PushedLimits | None:
        """None where there is none that can be read, which the log says."""
        try:
            texts = self._record.read()
        except SpoolError as error:
            _log.warn(
                "the limits that were pushed last can't be read; the file's own hold until Valkey answers",
                event="limits.push_not_read",
                reason=str(error),
            )
            return None
        version, text = texts if len(texts) == 2 else ("", "")
        return PushedLimits.of_json(int(version), text) if version.isdecimal() else None

    def write(self, pushed: PushedLimits) -> None:
        """A failure is logged: then a start without Valkey has what was there before."""
        try:
            self._record.write([str(pushed.version), pushed.to_json()])
        except SpoolError as error:
            _log.error(
                "the pushed limits could not be kept for a start without Valkey",
                event="limits.push_not_kept",
                reason=str(error),
            )


class PushRegistry:
    """The pushed limits that this node has in force, and those of the fleet.

    ``apply``, given at the start, puts :attr:`in_force` into force, or raises ConfigError.
    """

    def __init__(self, runtime: Runtime, valkey: ValkeyCommands, prefix: str, kept: KeptVersion) -> None:
        self._valkey = valkey
        self._wall = runtime.wall
        self._kept = kept
        self._keys = shared_keys(prefix, "pushed", clustered=valkey.clustered)
        self.in_force: PushedLimits | None = kept.read()
        # What the fleet has, whether this node could take it or not.
        self._known = self.in_force
        self._apply: Apply | None = None
        self._shares: Callable[[], bool] = _always
        self._taking = DeferredLock()
        self._pool: WorkerPool = runtime.threads.pool("elemta-pushed-limits", 1)
        self._watch = VersionWatch(
            runtime, valkey, self._keys[1], self._look, before=_nothing, reconnected=_nothing
        )

    @property
    def version(self) -> int:
        """The version in force on this node; 0 where none was pushed, or this node shares no limits."""
        return 0 if self.in_force is None or not self._shares() else self.in_force.version

    def give_up(self, error: ConfigError) -> None:
        """The version that was kept can't hold beside this configuration: its own limits do."""
        self._refused(self.in_force, error, None)
        self.in_force = None

    def try_again(self) -> None:
        """The configuration is another one: try a version that could not be taken at the next look."""
        self._known = self.in_force

    def start(self, apply: Apply, shares: Callable[[], bool] = _always) -> None:
        """Take what the fleet has, from now on. ``shares`` says whether that holds on this node."""
        self._apply, self._shares = apply, shares
        self._pool.start()
        self._watch.start()

    def stop(self) -> None:
        self._watch.stop()
        self._pool.leave()

    async def push(self, pushed: PushedLimits, base: int) -> PushedLimits:
        """Make it the fleet's next version, in place of version ``base``; this node takes it at once.

        Raises StoreUnavailable, or :class:`~elemta.errors.PushedMeanwhile`.
        """
        pushed = replace(pushed, made_at=self._wall())
        version, changed, *_ = await self._run("push", VERSIONS_KEPT, base, pushed.to_json())
        if int(changed) < 0:
            raise PushedMeanwhile(int(version))
        made = replace(pushed, version=int(version))
        await self._take(made)
        return made

    async def current(self) -> int:
        """The fleet's version, whichever this node runs. Raises StoreUnavailable."""
        version, *_ = await self._run("look")
        return int(version)

    async def history(self) -> Sequence[PushedLimits]:
        """The versions that are kept, the last first. Raises StoreUnavailable."""
        _, _, *flat = await self._run("history")
        return tuple(_read(flat))

    async def get(self, version: int) -> PushedLimits | None:
        """One version that is kept. Raises StoreUnavailable."""
        _, _, text = await self._run("get", version)
        return PushedLimits.of_json(version, text.decode("utf-8", "replace"))

    # Looks

    async def _look(self, version: int | None) -> None:
        known = self._known
        if version is None:
            if known is not None:
                await self._restore(known)
        elif known is None or version != known.version:
            found, _, text = await self._run("look")
            pushed = PushedLimits.of_json(int(found), text.decode("utf-8", "replace"))
            await self._take(pushed or PushedLimits(int(found), "unknown = true"))

    async def _restore(self, known: PushedLimits) -> None:
        _, changed, *_ = await self._run("restore", known.version, known.to_json())
        if int(changed) > 0:
            _log.warn(
                "Valkey had lost the pushed limits; this node wrote them again",
                event="limits.push_restored",
                version=known.version,
            )

    async def _take(self, pushed: PushedLimits) -> None:
        """Put it into force, or go on with what holds.

        One after the other: what a version that can't be taken gives way to is the one before it.
        """
        await self._taking.acquire()
        try:
            await self._take_now(pushed)
        finally:
            self._taking.release()

    async def _take_now(self, pushed: PushedLimits) -> None:
        if self._apply is None or pushed == self._known:
            return
        before, self._known = self.in_force, pushed
        self.in_force = pushed
        try:
            await self._apply()
        except ConfigError as error:
            self.in_force = before
            self._refused(pushed, error, before)
            return
        except BaseException:
            # An internal error, or the daemon stops: the next look tries again.
            self.in_force, self._known = before, before
            raise
        if self._shares():
            _log.info(
                "the limits that were pushed to the fleet hold here",
                event="limits.push_taken",
                version=pushed.version,
                author=pushed.author,
                note=pushed.note,
            )
        # Not waited for: a disk that hangs keeps no node from the next version.
        self._pool.call(self._kept.write, pushed).addErrback(_not_kept)

    def _refused(self, pushed: PushedLimits | None, error: ConfigError, kept: PushedLimits | None) -> None:
        _log.error(
            "this node can't take the limits that were pushed to the fleet, and keeps its own",
            event="limits.push_refused",
            version=0 if pushed is None else pushed.version,
            kept=0 if kept is None else kept.version,
            faults=[str(fault) for fault in error.faults],
        )

    async def _run(self, *words: str | int) -> Sequence[bytes]:
        reply: Sequence[bytes] = await self._valkey.run(_SCRIPT, self._keys, words, deadline=DEADLINE)
        return reply


def _not_kept(failure: Failure) -> None:
    _log.failure("the pushed limits could not be kept", failure, event="limits.push_not_kept")


def _nothing() -> None:
    return None


def _read(flat: Sequence[bytes]) -> Iterator[PushedLimits]:
    """The versions of numbers and documents, without what another version of Elemta wrote in another way."""
    for number, text in zip(flat[::2], flat[1::2], strict=True):
        pushed = PushedLimits.of_json(int(number), text.decode("utf-8", "replace"))
        if pushed is not None:
            yield pushed
