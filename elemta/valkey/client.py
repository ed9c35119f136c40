"""The one face of Valkey: commands and scripts on the primary, whatever kind of set-up it is in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elemta.config.valkey_url import ValkeyKind, ValkeyURL
from elemta.errors import Trouble, ValkeyTrouble
from elemta.valkey.calls import Call, Deadlines
from elemta.valkey.dialling import TLS, Address, Login
from elemta.valkey.frames import Word, pack
from elemta.valkey.observer import Unobserved, ValkeyObserver
from elemta.valkey.pool import Dialling
from elemta.valkey.replies import kind_of
from elemta.valkey.scripts import Script
from elemta.valkey.topology import Single, Topology

_log = Logger()

IN_FLIGHT = 1024
"""How many commands may wait for their replies on one connection."""

_WATCH_SECONDS = 1.0
_TURNS = 5
# Whoever says so has another role than we think, or has lost its memory.
_DISTRUSTED = (Trouble.READONLY, Trouble.LOADING)


class Valkey:
    """Valkey behind a URL: one server, Sentinels with a primary, or a cluster. One for a daemon.

    It connects in the background, for as long as it takes. Every command fails with ValkeyTrouble: at once
    when there is no connection or too much is under way, and after ``deadline`` seconds without an answer.
    A command whose connection breaks is not sent again: it may have been executed (``maybe_done``).
    Replies are bytes, int, None, or a list of those.
    """

    def __init__(
        self,
        reactor: Any,
        url: ValkeyURL,
        *,
        name: str,
        deadline: float,
        observer: ValkeyObserver | None = None,
    ) -> None:
        self._reactor = reactor
        self._url = url
        self._deadline = deadline
        self._observer: ValkeyObserver = observer or Unobserved()
        self._scripts: dict[bytes, Script] = {}
        login = Login(
            url.username,
            url.password,
            url.database,
            re.sub(r"[^!-~]", "-", name)[:64],
            primary=url.kind is not ValkeyKind.CLUSTER,
        )
        dialling = Dialling(reactor, login, TLS.of(url), self._scripts)
        self._topology = _topology(url, dialling, self._review)
        self.clustered = self._topology.clustered
        self._deadlines = Deadlines(reactor, self._missed)
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

    def stop(self) -> Deferred[None]:
        """Take no more commands, wait shortly for the replies to come, and disconnect."""
        self._running = False
        if self._watch.running:
            self._watch.stop()
        over = gatherResults(list(self._topology.stop()), consumeErrors=True)
        self._review()
        return over.addCallback(lambda _: self._deadlines.stop())

    @property
    def up(self) -> bool:
        """Whether there are connections to every primary that answered."""
        return self._up

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
        return self._ask(frame, keys[0] if keys else None, script, deadline)

    def command(self, *words: Word, key: bytes | None = None, deadline: float | None = None) -> Deferred[Any]:
        """One command on the primary of ``key``; without one, on any primary."""
        return self._ask(pack(words), key, None, deadline)

    def _ask(
        self, frame: bytes, key: bytes | None, script: Script | None, deadline: float | None
    ) -> Deferred[Any]:
        connection = self._topology.connection(key) if self._running else None
        if connection is None:
            return self._fail_at_once(self._topology.trouble)
        if len(connection.waiting) >= IN_FLIGHT:
            return self._fail_at_once(ValkeyTrouble(Trouble.OVERLOADED, "too many commands are under way"))
        call = Call(frame, key, script, self._refused)
        deferred: Deferred[Any] = call.deferred  # type: ignore[assignment]  # it is new
        call.connection = connection
        self._deadlines.add(call, self._deadline if deadline is None else deadline)
        connection.send(frame, call)
        return deferred

    # What becomes of them.

    def _missed(self, call: Call) -> None:
        self._fail(call, ValkeyTrouble(Trouble.DEADLINE, "no answer in time", maybe_done=True))

    def _refused(self, call: Call, error: Exception) -> None:
        """An error reply to a call, or its connection is lost."""
        connection = call.connection
        assert connection is not None  # noqa: S101  # it was sent
        if connection.is_lost(error):
            self._fail(call, ValkeyTrouble(Trouble.DISCONNECTED, str(error), maybe_done=True))
            return
        words = str(error)
        call.turns += 1
        if words.startswith("NOSCRIPT") and call.script is not None and call.turns <= _TURNS:
            connection.load(call.script)
            connection.send(call.frame, call)
            return
        kind = kind_of(words)
        if kind in _DISTRUSTED or words.startswith("NOAUTH"):
            self._topology.distrust(connection, words)
        self._fail(call, ValkeyTrouble(kind, words))

    def _fail(self, call: Call, error: ValkeyTrouble) -> None:
        self._observer.failed(error.kind)
        call.fail(error)

    def _fail_at_once(self, error: ValkeyTrouble) -> Deferred[Any]:
        self._observer.failed(error.kind)
        return fail(error)

    def _review(self) -> None:
        up = self._running and self._topology.up
        if up is self._up:
            return
        self._up = up
        if up:
            _log.info("connected to Valkey", event="valkey.connected", kind=self._url.kind.value)
        elif self._running:
            _log.warn("lost Valkey", event="valkey.lost", reason=str(self._topology.trouble))
        for callback in tuple(self._listeners):
            callback(up)


def _topology(url: ValkeyURL, dialling: Dialling, review: Callable[[], None]) -> Topology:
    address = Address(path=url.path) if url.path else Address(*url.hosts[0])
    return Single(address, dialling, review)
