"""One worker as its supervisor keeps it, with a process and a clock that the test has in its hands."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from elemta.daemon.daemon_service import CLOSING_SECONDS
from elemta.daemon.worker import WorkerCommands
from elemta.daemon.worker_process import (
    FACTS,
    FIRST_WORD_SECONDS,
    NOTIFY,
    SILENT_SECONDS,
    WorkerFacts,
    WorkerProcess,
    WorkerState,
    restart_pause,
)
from elemta.errors import ChannelClosed
from elemta.workers.channel import Channel
from elemta.workers.frames import Frame, FrameKind


class Process:
    """A process that does what the test says."""

    def __init__(self, pid: int, protocol: ProcessProtocol) -> None:
        self.pid = pid
        self.signals: list[str] = []
        self._protocol: Any = protocol

    def signalProcess(self, name: str) -> None:
        self.signals.append(name)

    def write(self, data: bytes) -> None:
        """Something into its log."""
        self._protocol.outReceived(data)

    def end(self, status: int | None = 1, number: int | None = None) -> None:
        """The process is gone."""
        self._protocol.processEnded(Failure(ProcessTerminated(status, number)))


class Host:
    """Where the worker runs."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.processes: list[Process] = []
        self.channels: list[Channel] = []
        self.served: list[int] = []
        self.log = ""
        self.fails = False
        self.worker = WorkerProcess(
            1,
            self.clock,
            launch=self._launch,
            open_channel=lambda _, ours: ours.close(),
            speak=self.channels.append,
            serves=lambda worker: self.served.append(worker.number),
            write=self._write,
        )

    def _launch(self, number: int, channel: int, protocol: ProcessProtocol) -> Any:
        assert number == 1
        with socket.socket(fileno=channel) as end:
            end.detach()
        if self.fails:
            raise OSError("no more processes")
        self.processes.append(Process(100 + len(self.processes), protocol))
        return self.processes[-1]

    def _write(self, lines: str) -> None:
        self.log += lines

    @property
    def process(self) -> Process:
        return self.processes[-1]

    def say(self, name: str, body: bytes) -> None:
        """The worker says this."""
        self.channels[-1].dataReceived(Frame(FrameKind.NOTICE, 0, name, body).encode())


@pytest.fixture
def host() -> Host:
    host = Host()
    host.worker.start()
    return host


def test_it_serves_once_it_says_so(host: Host) -> None:
    settled: list[object] = []
    host.worker.settled.addCallback(settled.append)
    host.say(NOTIFY, b"STATUS=recovery")
    assert (host.worker.state, settled) == (WorkerState.STARTING, [])
    host.say(NOTIFY, b"READY=1\nSTATUS=serving")
    assert (host.worker.state, settled, host.served) == (WorkerState.RUNNING, [None], [1])
    assert host.worker.facts == WorkerFacts("serving", ())
    facts = WorkerFacts("draining", ("draining",), 3, 7)
    host.say(FACTS, facts.encode())
    assert host.worker.facts == facts


def test_it_is_started_again_at_once_and_after_quick_deaths_with_a_growing_pause(host: Host) -> None:
    host.say(NOTIFY, b"READY=1")
    for number, pause in enumerate((0, 0, 1, 2, 4, 8, 16, 30, 30), start=1):
        assert restart_pause(number) == pause
        assert len(host.processes) == number
        host.process.end(None, 9)
        assert host.worker.state is WorkerState.DEAD
        assert host.worker.facts.not_ready
        host.clock.advance(pause * 0.99)
        assert pause == 0 or len(host.processes) == number
        host.clock.advance(pause * 0.02)
    # Those that live for a while begin anew.
    host.clock.advance(31)
    host.process.end()
    host.clock.advance(0)
    assert len(host.processes) == 11


def test_the_trouble_is_what_a_worker_said_before_it_could_serve(host: Host) -> None:
    settled: list[object] = []
    host.worker.settled.addCallback(settled.append)
    host.say(NOTIFY, b"STATUS=could not start: it is damaged\nFAILED=the spool is damaged")
    host.say(NOTIFY, b"STOPPING=1\nSTATUS=draining")
    host.process.end(75)
    assert host.worker.trouble == "the spool is damaged"
    assert settled == [None]
    host.clock.advance(0)
    host.say(NOTIFY, b"READY=1")
    assert host.worker.trouble == ""
    host.process.end(None, 9)
    assert host.worker.trouble == "it was killed by SIGKILL"


def test_one_that_serves_without_taking_mail_says_why(host: Host) -> None:
    assert host.worker.problem == ""
    host.say(NOTIFY, b"READY=1")
    host.say(FACTS, WorkerFacts("serving", ("the spool's disk has failed",)).encode())
    assert host.worker.problem == "the spool's disk has failed"
    host.say(FACTS, WorkerFacts("draining", ("draining",)).encode())
    assert host.worker.problem == ""
    host.process.end(None, 9)
    assert host.worker.problem == "it was killed by SIGKILL"


def test_a_process_that_can_not_be_started_is_tried_again(host: Host) -> None:
    host.fails = True
    host.process.end()
    host.clock.advance(0)
    assert host.worker.trouble == "it could not be started: no more processes"
    host.fails = False
    host.clock.advance(1)
    assert len(host.processes) == 2


def test_one_that_says_nothing_is_killed_once(host: Host) -> None:
    host.say(FACTS, WorkerFacts().encode())
    host.clock.advance(SILENT_SECONDS)
    host.worker.check(host.clock.seconds())
    assert host.process.signals == []
    host.clock.advance(1)
    for _ in range(2):
        host.worker.check(host.clock.seconds())
        assert host.process.signals == ["KILL"]
        assert host.worker.is_silent(host.clock.seconds())
    host.process.end(None, 9)
    assert not host.worker.is_silent(host.clock.seconds())


def test_a_process_has_longer_for_its_first_word(host: Host) -> None:
    for _ in range(2):
        host.clock.advance(FIRST_WORD_SECONDS)
        host.worker.check(host.clock.seconds())
        assert host.process.signals == []
        host.say(NOTIFY, b"STATUS=recovery")
        host.clock.advance(SILENT_SECONDS + 1)
        host.worker.check(host.clock.seconds())
        assert host.process.signals == ["KILL"]
        host.process.end(None, 9)
        host.clock.advance(0)
    host.clock.advance(FIRST_WORD_SECONDS + 1)
    host.worker.check(host.clock.seconds())
    assert host.process.signals == ["KILL"]


def test_a_question_to_one_that_does_not_run_fails_at_once(host: Host) -> None:
    """A worker may die while the supervisor has another reload: nothing but its answer is missing."""
    host.say(NOTIFY, b"READY=1")
    failed = host.worker.ask("reload", b"", 60)
    host.process.end(None, 9)
    failures = [failed, host.worker.ask("reload", b"", 60)]
    for each in failures:
        found: list[Failure] = []
        each.addErrback(found.append)
        assert found[0].check(ChannelClosed), found
        assert "SIGKILL" in found[0].getErrorMessage()


def test_the_time_in_which_nothing_was_heard_here_does_not_count(host: Host) -> None:
    host.clock.advance(FIRST_WORD_SECONDS * 10)
    host.worker.excuse(host.clock.seconds())
    host.worker.check(host.clock.seconds())
    assert host.process.signals == []


def test_a_stop_is_in_order_and_kills_what_does_not_end(host: Host) -> None:
    ended: list[object] = []
    host.worker.stop(5).addCallback(ended.append)
    assert host.process.signals == ["TERM"]
    host.say(NOTIFY, b"STOPPING=1")
    host.clock.advance(5 + CLOSING_SECONDS)
    assert host.process.signals == ["TERM", "KILL"]
    assert ended == []
    host.process.end(None, 9)
    assert ended == [None]
    host.clock.advance(100)
    assert len(host.processes) == 1


def test_a_stop_while_it_is_not_running_ends_the_wait(host: Host) -> None:
    for _ in range(3):
        host.process.end()
        host.clock.advance(0)
    ended: list[object] = []
    host.worker.stop(5).addCallback(ended.append)
    assert ended == [None]
    host.clock.advance(100)
    assert len(host.processes) == 3


def test_a_worker_without_its_channel_ends_in_time(host: Host) -> None:
    host.say(NOTIFY, b"READY=1")
    host.channels[-1].close("it broke the rules")
    assert host.worker.state is WorkerState.ENDING
    host.clock.advance(CLOSING_SECONDS + SILENT_SECONDS)
    assert host.process.signals == ["KILL"]
    host.process.end(None, 9)
    host.clock.advance(0)
    assert len(host.processes) == 2


def test_its_log_is_passed_on_in_whole_lines(host: Host) -> None:
    host.process.write(b"one\ntw")
    assert host.log == "one\n"
    host.process.write(b"o\nthree\n")
    assert host.log == "one\ntwo\nthree\n"
    host.process.write(b"cut sh\xff")
    host.process.end()
    assert host.log == "one\ntwo\nthree\ncut sh\\xff\n"


def test_a_worker_without_its_supervisor_is_killed_where_it_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would hold its partition, and the next start would fail."""
    alarms: list[int] = []
    monkeypatch.setattr("signal.alarm", alarms.append)
    server = SimpleNamespace(shutdown_grace=2.5)
    daemon: Any = SimpleNamespace(reactor=Clock(), running=False, config=SimpleNamespace(server=server))
    channel = Channel(daemon.reactor, "the supervisor")
    WorkerCommands(channel, daemon)
    channel.close("it is gone")
    assert alarms == [3 + CLOSING_SECONDS]
