"""Commands and scripts on the primary of Valkey, in each kind of set-up, and a scan of all its keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred, FirstError, fail, gatherResults
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.config.valkey_url import ValkeyKind, ValkeyURL
from elemta.errors import ValkeyError, ValkeyFailure
from elemta.metrics import ValkeyMetrics
from elemta.runtime import Runtime
from elemta.valkey.address import ServerAddress, ValkeyLogin
from elemta.valkey.calls import CallDeadlines, ValkeyCall
from elemta.valkey.cluster import Cluster
from elemta.valkey.health import Health
from elemta.valkey.info import ValkeyInfo
from elemta.valkey.pool import ConnectionOptions, ServerPool
from elemta.valkey.recovery import Recovery
from elemta.valkey.resp import Script, Word, pack
from elemta.valkey.sentinel import Sentinel
from elemta.valkey.silence import Silence
from elemta.valkey.tls import TLS
from elemta.valkey.topology import Single, Topology

if TYPE_CHECKING:
    from elemta.valkey.connection import Connection

_log = Logger()

IN_FLIGHT = 1024
"""How many commands may wait for their replies on one connection."""

_WATCH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ScanResult:
    """Keys that were there at one time during the scan; each once. Not ``complete``: there may be more."""

    keys: tuple[bytes, ...]
    complete: bool


class ScriptRunner(Protocol):
    """The part of :class:`Valkey` that runs scripts."""

    def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[Word] = (),
        *,
        deadline: float | None = None,
    ) -> Deferred[Any]: ...


class ValkeyCommands(ScriptRunner, Protocol):
    """The part of :class:`Valkey` that nodes and overrides need: scripts, commands, and whether it is up."""

    clustered: bool

    @property
    def up(self) -> bool: ...

    def on_change(self, callback: Callable[[bool], None]) -> None: ...

    def command(
        self, *words: bytes | str | int, key: bytes | None = None, deadline: float | None = None
    ) -> Deferred[Any]: ...


class Valkey:
    """Valkey behind a URL: one server, Sentinels with a primary, or a cluster. One for a daemon.

    It connects in the background, for as long as it takes. Every command fails with ValkeyError: at once
    when there is no connection or too much is under way, and after ``deadline`` seconds without an answer.
    A command whose connection breaks is not sent again: it may have been executed (``maybe_done``).
    Replies are bytes, int, None, or a list of those. ``prefix`` is what all keys begin with, which the words
    about a missing right name.
    """

    def __init__(
        self,
        runtime: Runtime,
        url: ValkeyURL,
        *,
        name: str,
        deadline: float,
        prefix: str = "",
        metrics: ValkeyMetrics | None = None,
    ) -> None:
        reactor = runtime.reactor
        self._reactor: Any = reactor
        self._url = url
        self._deadline = deadline
        self._metrics = metrics or ValkeyMetrics()
        self._scripts: dict[bytes, Script] = {}
        login = ValkeyLogin(
            url.username,
            url.password,
            url.database,
            re.sub(r"[^!-~]", "-", name)[:64],
            primary=url.kind is not ValkeyKind.CLUSTER,
        )
        dialling = ConnectionOptions(runtime, login, TLS.of(url), self._scripts, prefix)
        self._topology = _topology(url, dialling, self._review)
        self.clustered = self._topology.clustered
        self._deadlines = CallDeadlines(reactor, self._missed)
        self._recovery = Recovery(reactor, self._topology, self._fail)
        self._silence = Silence(reactor, self._ask_silent, self._review_answers)
        self._health = Health(self, reactor, self._metrics)
        self._watch = LoopingCall(self._topology.watch)
        self._watch.clock = reactor
        self._listeners: list[Callable[[bool], None]] = []
        self._up = False
        self._running = False

    # Its life.

    def start(self) -> None:
        """Begin to connect; never fails, and never waits."""
        self._running = True
        self._topology.start()
        self._watch.start(_WATCH_SECONDS, now=False)
        self._health.start()

    def stop(self) -> Deferred[None]:
        """Take no more commands, wait shortly for the replies to come, and disconnect."""
        self._running = False
        if self._watch.running:
            self._watch.stop()
        self._health.stop()
        self._silence.stop()
        over = gatherResults(list(self._topology.stop()), consumeErrors=True)
        self._recovery.stop()
        self._review()
        return over.addCallback(lambda _: self._deadlines.stop())

    @property
    def up(self) -> bool:
        """Whether there are connections to every primary that answered."""
        return self._up

    @property
    def answers(self) -> bool:
        """Whether each primary, besides, answered the last command in time."""
        return self._up and not self._silent()

    @property
    def trouble(self) -> str:
        """Why there is no connection or no answer, in words; empty while there is."""
        if not self._up:
            return str(self._topology.trouble)
        silent = ", ".join(sorted(map(str, self._silent())))
        return f"no answer in time from {silent}" if silent else ""

    def on_change(self, callback: Callable[[bool], None]) -> None:
        """Have it called with ``up`` whenever that changes."""
        self._listeners.append(callback)

    # Commands.

    def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[Word] = (),
        *,
        deadline: float | None = None,
    ) -> Deferred[Any]:
        """Run a script on the primary of its first key; in a cluster all keys must share a {tag}."""
        self._scripts[script.sha] = script
        frame = pack((b"EVALSHA", script.sha, len(keys), *keys, *args))
        key = keys[0] if keys else None
        return self._ask_on(self._topology.connection(key), frame, key, script, deadline)

    def command(self, *words: Word, key: bytes | None = None, deadline: float | None = None) -> Deferred[Any]:
        """One command on the primary of ``key``; without one, on any primary."""
        return self._ask_on(self._topology.connection(key), pack(words), key, deadline=deadline)

    def each_primary(self, *words: Word, deadline: float | None = None) -> Deferred[list[Any]]:
        """One command on every primary; the replies in no particular order. Fails when one of them fails."""
        frame = pack(words)
        pools = self._topology.primaries
        if not pools:
            return self._fail_at_once(self._topology.trouble)
        asked = [self._ask_on(pool.connection, frame, deadline=deadline) for pool in pools]
        return gatherResults(asked, consumeErrors=True).addErrback(_first)

    def scan(
        self, match: Word, *, count: int = 500, limit: int = 20_000, deadline: float = 1.0
    ) -> Deferred[ScanResult]:
        """The keys that match a pattern, after looking at ``limit`` keys at most on all primaries together.

        One command looks at ``count`` keys, and each command has the ``deadline``.
        """

        def ask(pool: ServerPool, cursor: bytes) -> Deferred[Any]:
            frame = pack(("SCAN", cursor, "MATCH", match, "COUNT", count))
            return self._ask_on(pool.connection, frame, deadline=deadline)

        return Deferred.fromCoroutine(_scan(self._topology.primaries, ask, max(1, limit // count)))

    @property
    def info(self) -> ValkeyInfo:
        """What INFO said last."""
        return self._health.info

    def overloaded(self, words: str) -> ValkeyError:
        """Count and return the trouble of a caller that can't ask because too much is under way."""
        self._metrics.failures.labels(ValkeyFailure.OVERLOADED).inc()
        return ValkeyError(ValkeyFailure.OVERLOADED, words)

    def _ask_on(
        self,
        connection: Connection | None,
        frame: bytes,
        key: bytes | None = None,
        script: Script | None = None,
        deadline: float | None = None,
    ) -> Deferred[Any]:
        if connection is None or not self._running:
            return self._fail_at_once(self._topology.trouble)
        if len(connection.waiting) >= IN_FLIGHT:
            return fail(self.overloaded("too many commands are under way"))
        seconds = self._deadline if deadline is None else deadline
        call = ValkeyCall(
            frame, key, script, self._recovery.refused, self._silence, prompt=seconds <= self._deadline
        )
        deferred: Deferred[Any] = call.deferred  # type: ignore[assignment]  # it is new
        self._deadlines.add(call, seconds)
        call.connection = connection
        connection.send(frame, call)
        return deferred

    # What becomes of them.

    def _missed(self, call: ValkeyCall) -> None:
        self._topology.doubt()  # another may have taken its place
        self._fail(call, ValkeyError(ValkeyFailure.DEADLINE, "no answer in time", maybe_done=True))

    def _fail(self, call: ValkeyCall, error: ValkeyError) -> None:
        self._metrics.failures.labels(error.kind).inc()
        if error.maybe_done or error.kind is ValkeyFailure.BUSY:
            self._silence.missed(call.connection)
        call.fail(error)

    def _fail_at_once(self, error: ValkeyError) -> Deferred[Any]:
        self._metrics.failures.labels(error.kind).inc()
        return fail(error)

    # The server that is silent.

    def _silent(self) -> set[ServerAddress]:
        """No caller wants the answer of a server that has lost its place."""
        silent = self._silence.servers
        return {pool.address for pool in self._topology.primaries} & silent if silent else silent

    def _ask_silent(self, servers: set[ServerAddress]) -> None:
        primaries = self._topology.primaries
        self._silence.keep({pool.address for pool in primaries})
        for pool in primaries:
            if pool.address in servers and pool.connection is not None:
                self._ask_on(pool.connection, pack(("PING",))).addErrback(_no_answer)

    def _review_answers(self) -> None:
        self._health.answers(self.answers)

    def _review(self) -> None:
        up = self._running and self._topology.up
        if up is self._up:
            return
        self._up = up
        if up:
            _log.info("connected to Valkey", event="valkey.connected", kind=self._url.kind.value)
        elif self._running:
            _log.warn(
                "the connection to Valkey was lost",
                event="valkey.disconnected",
                reason=str(self._topology.trouble),
            )
        self._health.changed(up)
        for callback in tuple(self._listeners):
            try:
                callback(up)
            except Exception:
                _log.failure("a listener to Valkey's connection failed", event="valkey.listener_failed")


async def _scan(
    primaries: Sequence[ServerPool], ask: Callable[[ServerPool, bytes], Deferred[Any]], slices: int
) -> ScanResult:
    """Ask every primary in turn for slices of its keys, ``slices`` at most altogether."""
    if not primaries:
        raise ValkeyError(ValkeyFailure.DISCONNECTED, "not connected")
    found: dict[bytes, None] = {}
    for pool in primaries:
        cursor = b"0"
        while True:
            if slices == 0:
                return ScanResult(tuple(found), complete=False)
            slices -= 1
            cursor, keys = await ask(pool, cursor)
            found.update(dict.fromkeys(keys))
            if cursor == b"0":
                break
    return ScanResult(tuple(found), complete=True)


def _no_answer(failure: Failure) -> None:
    """It is still silent, which is known already."""
    failure.trap(ValkeyError)


def _first(failure: Failure) -> Failure:
    """The failure itself, inside the FirstError of gatherResults."""
    return failure.value.subFailure if isinstance(failure.value, FirstError) else failure


def _topology(url: ValkeyURL, dialling: ConnectionOptions, review: Callable[[], None]) -> Topology:
    if url.kind is ValkeyKind.CLUSTER:
        return Cluster(url, dialling, review)
    if url.kind is ValkeyKind.SENTINEL:
        return Sentinel(url, dialling, review)
    address = ServerAddress(path=url.path) if url.path else ServerAddress(*url.hosts[0])
    return Single(address, dialling, review)
