"""What systemd receives."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from elemta.ops.systemd import Notifier
from elemta.runtime import Runtime


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


def heard(systemd: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(systemd.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_a_start_a_reload_and_a_stop_are_told_in_words_of_systemd(systemd: socket.socket) -> None:
    clock = Clock()
    clock.advance(12.5)
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname()}, Runtime.of(clock))
    notifier.ready("2 listeners")
    notifier.status("queue 12, sessions 3")
    notifier.reloading()
    notifier.ready()
    notifier.extend(1.5)
    notifier.stopping("draining")
    ready, status, reloading, again, extend, stopping = heard(systemd)
    assert ready == "READY=1\nSTATUS=2 listeners"
    assert status == "STATUS=queue 12, sessions 3"
    assert reloading == "RELOADING=1\nMONOTONIC_USEC=12500000"
    assert again == "READY=1"
    assert extend == "EXTEND_TIMEOUT_USEC=1500000"
    assert stopping == "STOPPING=1\nSTATUS=draining"


def test_signs_of_life_come_twice_as_often_as_wanted_and_end_with_close(systemd: socket.socket) -> None:
    clock = Clock()
    notifier = Notifier(
        {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "30000000"}, Runtime.of(clock)
    )
    clock.advance(60)
    assert heard(systemd) == []  # not before it is ready
    notifier.ready()
    clock.pump([15, 15])
    assert heard(systemd) == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]
    notifier.stopping()
    clock.advance(15)
    assert heard(systemd) == ["STOPPING=1", "WATCHDOG=1"]
    notifier.close()
    notifier.close()
    assert clock.getDelayedCalls() == []


def test_a_watchdog_that_is_meant_for_another_process_is_left_alone(systemd: socket.socket) -> None:
    clock = Clock()
    environ = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "1000000"}
    Notifier({**environ, "WATCHDOG_PID": str(os.getpid() + 1)}, Runtime.of(clock)).ready()
    assert clock.getDelayedCalls() == []
    mine = Notifier({**environ, "WATCHDOG_PID": str(os.getpid())}, Runtime.of(clock))
    mine.ready()
    assert len(clock.getDelayedCalls()) == 1
    mine.close()


def test_an_abstract_socket_is_reached() -> None:
    name = f"elemta-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.setblocking(False)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}, Runtime.of(Clock())).ready()
        assert heard(listener) == ["READY=1"]


def test_a_status_stays_one_line_and_can_not_say_anything_else(systemd: socket.socket) -> None:
    Notifier({"NOTIFY_SOCKET": systemd.getsockname()}, Runtime.of(Clock())).status(
        "a\nWATCHDOG_USEC=1\n" + "x" * 500
    )
    (message,) = heard(systemd)
    assert "\n" not in message
    assert len(message) <= len("STATUS=") + 200


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/nonexistent/socket"}], ids=["none", "away"])
def test_without_systemd_nothing_happens(environ: dict[str, str]) -> None:
    clock = Clock()
    notifier = Notifier({**environ, "WATCHDOG_USEC": "soon"}, Runtime.of(clock))
    notifier.ready("up")
    notifier.stopping()
    notifier.close()
    assert clock.getDelayedCalls() == []
