"""One worker as the supervisor keeps it: started, heard, started again when it dies, stopped."""

from __future__ import annotations

import enum
import json
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.daemon.daemon_service import CLOSING_SECONDS
from elemta.errors import ChannelClosed
from elemta.workers.channel import Channel

_log = Logger()

FACTS = "facts"
"""The notice in which a worker says what it does, once a second: proof, too, that its event loop turns."""

NOTIFY = "notify"
"""The notice with what a daemon says to systemd, in the same words."""

FAILED = "FAILED"
"""What it says, there, of a start that failed: why."""

FACTS_EVERY = 1.0
"""Seconds between two notices of facts."""

SILENT_SECONDS = 30.0
"""Seconds without a word after which a worker hangs, and is killed."""

FIRST_WORD_SECONDS = 120.0
"""The same for a process that has not said anything yet: many may start on few cores at the same time."""

_QUICK_DEATH = 30.0
_LONGEST_PAUSE = 30.0
_LONGEST_LINE = 1024 * 1024


class WorkerState(enum.Enum):
    """Where a worker is in its life, for the supervisor."""

    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker says of itself. ``state`` is that of a daemon; ``not_ready`` as ``status`` shows it."""

    state: str = "starting"
    not_ready: tuple[str, ...] = ("starting",)
    sessions: int = 0
    queued: int = 0

    def encode(self) -> bytes:
        """As a notice."""
        return json.dumps([self.state, self.not_ready, self.sessions, self.queued]).encode()

    @classmethod
    def decode(cls, body: bytes) -> WorkerFacts:
        """What :meth:`encode` made."""
        state, not_ready, sessions, queued = json.loads(body)
        return cls(state, tuple(not_ready), sessions, queued)


class WorkerLauncher(Protocol):
    """Starts the process of a worker."""

    def __call__(self, number: int, channel: int, protocol: ProcessProtocol) -> IProcessTransport:
        """``channel`` is the descriptor of the worker's end, which the caller closes. OSError."""


def restart_pause(quick_deaths: int) -> float:
    """Seconds to wait before a worker is started again that died so many times in a row, soon each time."""
    return 0.0 if quick_deaths < 3 else min(_LONGEST_PAUSE, 2.0 ** (quick_deaths - 3))


class WorkerProcess:
    """Worker ``number``, over all its processes.

    ``speak`` gets each new channel before it is opened, ``open_channel`` opens it, ``serves`` is called each
    time that it takes mail from then on, and ``write`` gets the lines of the worker's log.
    """

    def __init__(
        self,
        number: int,
        clock: IReactorTime,
        *,
        launch: WorkerLauncher,
        open_channel: Callable[[Channel, socket.socket], object],
        speak: Callable[[Channel], object],
        serves: Callable[[WorkerProcess], object],
        write: Callable[[str], object],
    ) -> None:
        self.number = number
        self.state = WorkerState.DEAD
        self.facts = WorkerFacts()
        self.channel: Channel | None = None
        self.pid: int | None = None
        self.starts = 0
        self.trouble = ""
        """Why it does not run; empty while it does."""
        self.settled: Deferred[None] = Deferred()
        """Fires once it has served for the first time, or ended without that."""
        self._clock = clock
        self._launch = launch
        self._open_channel = open_channel
        self._speak = speak
        self._serves = serves
        self._write = write
        self._transport: IProcessTransport | None = None
        self._started_at = 0.0
        self._heard_at = 0.0
        self._has_spoken = False
        self._quick_deaths = 0
        self._killed = False
        self._failure = ""
        self._again: IDelayedCall | None = None
        self._kill: IDelayedCall | None = None
        self._wanted = False
        self._over: list[Deferred[None]] = []

    # What the supervisor does

    def start(self) -> None:
        """Start it, now and whenever it dies, until :meth:`stop`."""
        self._wanted = True
        self._spawn()

    def stop(self, grace: float) -> Deferred[None]:
        """Have it end as after SIGTERM, and kill it after the grace. Fires when it is gone."""
        self._wanted = False
        if self._again is not None:
            self._again.cancel()
            self._again = None
        done: Deferred[None] = Deferred()
        if self._transport is None:
            self._settle()
            done.callback(None)
            return done
        self._over.append(done)
        self._signal(signal.SIGTERM)
        self._kill_after(grace + CLOSING_SECONDS)
        return done

    def check(self, now: float) -> None:
        """Kill it where it has not said anything for too long."""
        if self.is_silent(now) and not self._killed:
            self._killed = True
            _log.critical(
                "a worker does not say anything any more; it is killed",
                event="worker.silent",
                worker=self.number,
                pid=self.pid,
                seconds=self._longest_silence,
            )
            self._signal(signal.SIGKILL)

    def excuse(self, now: float) -> None:
        """This process itself was not listening until now."""
        self._heard_at = now

    def is_silent(self, now: float) -> bool:
        """Whether there is a process that has not said anything for too long."""
        return self._transport is not None and now - self._heard_at > self._longest_silence

    @property
    def problem(self) -> str:
        """Why it does not run, or why it takes no mail although it could; empty when neither is so."""
        takes_mail_if_ready = self.state is WorkerState.RUNNING and self.facts.state == "serving"
        return self.trouble or (", ".join(self.facts.not_ready) if takes_mail_if_ready else "")

    @property
    def _longest_silence(self) -> float:
        return SILENT_SECONDS if self._has_spoken else FIRST_WORD_SECONDS

    def ask(self, name: str, body: bytes, seconds: float) -> Deferred[bytes]:
        """Ask it something. Fails with ChannelError, at once while it does not run."""
        if self.channel is None:
            return fail(ChannelClosed(self.trouble or "it is not running"))
        return self.channel.ask(name, body, seconds)

    # Its process

    def _spawn(self) -> None:
        self._again = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        channel = Channel(self._clock, f"worker {self.number}")
        channel.handle_notice(FACTS, self._take_facts)
        channel.handle_notice(NOTIFY, self._take_notification)
        channel.on_close(self._channel_closed)
        self._speak(channel)
        self._started_at = self._heard_at = self._clock.seconds()
        self.facts, self._failure = WorkerFacts(), ""
        self._killed = self._has_spoken = False
        try:
            self._transport = self._launch(self.number, theirs.fileno(), _Output(self))
        except OSError as error:
            ours.close()
            channel.close(f"the process could not be started: {error}")
            self._ended(f"it could not be started: {error}")
            return
        finally:
            theirs.close()
        self.state, self.channel = WorkerState.STARTING, channel
        self.pid = getattr(self._transport, "pid", None)
        self.starts += 1
        self._open_channel(channel, ours)

    def _signal(self, number: signal.Signals) -> None:
        if self._transport is not None:
            try:
                self._transport.signalProcess(number.name.removeprefix("SIG"))
            except ProcessExitedAlready:
                return  # that it ended is about to be said

    def _kill_after(self, seconds: float) -> None:
        if self._kill is None:
            self._kill = self._clock.callLater(seconds, self._too_late)

    def _too_late(self) -> None:
        self._kill = None
        _log.error(
            "a worker did not end in time; it is killed",
            event="worker.not_stopped",
            worker=self.number,
            pid=self.pid,
        )
        self._signal(signal.SIGKILL)

    def _channel_closed(self, reason: str) -> None:
        if self._transport is not None and self.state is not WorkerState.ENDING:
            # It sees the same, and ends.
            self.state = WorkerState.ENDING
            self._kill_after(CLOSING_SECONDS + SILENT_SECONDS)
        self.channel = None
        self.trouble = self.trouble or reason

    def _ended(self, how: str) -> None:
        """The process is gone, and all its words were read."""
        lived = self._clock.seconds() - self._started_at
        self.state, self._transport = WorkerState.DEAD, None
        self.facts = WorkerFacts("dead", ("it is not running",))
        if self._kill is not None:
            self._kill.cancel()
            self._kill = None
        if self.channel is not None:
            self.channel.close(how)
        self.trouble = self._failure or how
        self._settle()
        if self._wanted:
            self._quick_deaths = self._quick_deaths + 1 if lived < _QUICK_DEATH else 0
            pause = restart_pause(self._quick_deaths)
            _log.error(
                "a worker ended; it is started again",
                event="worker.ended",
                worker=self.number,
                pid=self.pid,
                reason=self.trouble,
                lived=round(lived, 1),
                pause=pause,
            )
            self._again = self._clock.callLater(pause, self._spawn)
        over, self._over = self._over, []
        for each in over:
            each.callback(None)

    def _settle(self) -> None:
        if not self.settled.called:
            self.settled.callback(None)

    # What it says

    def _hear(self) -> None:
        self._heard_at, self._has_spoken = self._clock.seconds(), True

    def _take_facts(self, body: bytes) -> None:
        self._hear()
        self.facts = WorkerFacts.decode(body)

    def _take_notification(self, body: bytes) -> None:
        self._hear()
        for line in body.decode("utf-8", "replace").splitlines():
            if line.startswith(f"{FAILED}="):
                self._failure = line.removeprefix(f"{FAILED}=")
            elif line == "READY=1" and self.state is WorkerState.STARTING:
                self.state, self.trouble, self.facts = WorkerState.RUNNING, "", WorkerFacts("serving", ())
                _log.info("a worker serves", event="worker.ready", worker=self.number, pid=self.pid)
                self._settle()
                self._serves(self)
            elif line == "STOPPING=1":
                self.state = WorkerState.ENDING


class _Output(ProcessProtocol):
    """The lines of a worker's log, whole, and its end."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self._rest = b""

    def outReceived(self, data: bytes) -> None:
        """Pass on what is whole; one that never ends is cut."""
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        self._rest = rest
        if len(rest) > _LONGEST_LINE:
            whole, newline, self._rest = whole + newline + rest, b"\n", b""
        if newline:
            self._worker._write((whole + newline).decode("utf-8", "backslashreplace"))

    def processEnded(self, reason: Failure) -> None:
        """It is gone."""
        if self._rest:
            self.outReceived(b"\n")
        self._worker._ended(_how(reason.value))


def _how(end: Any) -> str:
    if getattr(end, "signal", None):
        return f"it was killed by {signal.Signals(end.signal).name}"
    return f"it exited with {getattr(end, 'exitCode', 0) or 0}"
