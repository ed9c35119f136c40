"""Debian's mail programs: where they are, and what it means when one is missing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.places import HERE, Place

_BEYOND_PATH = ("/usr/sbin", "/sbin")


def missing(what: str) -> NoReturn:
    """Skips the test, or fails it where everything has to be there."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI has to have it", pytrace=False)
    pytest.skip(what)


def program(name: str) -> str:
    """The path of a program of Debian's."""
    path = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *_BEYOND_PATH)))
    if path is None:
        missing(f"{name} is not installed")
    return path


def need_root(what: str) -> None:
    """Servers that change to users of their own have to be started by root."""
    if os.geteuid() != 0:
        missing(f"only root can start {what}")


def free_port() -> int:
    """A TCP port of 127.0.0.1 without a listener a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """A server of Debian's in the foreground, in a session of its own: it may kill its process group.

    ``pid_file`` names the process to stop where that is not the one that is started.
    """

    def __init__(self, name: str, output: Path, pid_file: Path | None = None) -> None:
        self.name = name
        self.output = output
        self._pid_file = pid_file
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, *command: str, ready: Callable[[], bool], seconds: float = 60.0) -> None:
        """Start it, and wait until ``ready``."""
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.output.parent,
            )
        deadline = time.monotonic() + seconds
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"{self.name} does not start:\n{self.words()}")
            time.sleep(0.05)

    def words(self) -> str:
        """What it said."""
        return self.output.read_text("utf-8", "replace") if self.output.exists() else ""

    def stop(self) -> None:
        """Stop it and wait until it is gone."""
        if self._process is None:
            return
        if self._pid_file is not None and self._pid_file.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self._pid_file.read_text()), signal.SIGTERM)
        else:
            self._process.terminate()
        try:
            self._process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=90)
        self._process = None


def greets(port: int, host: str = "127.0.0.1", place: Place = HERE) -> bool:
    """Whether the server that listens there says 220."""
    try:
        with place.call(lambda: socket.create_connection((host, port), timeout=90)) as sock:
            if not sock.recv(512).startswith(b"220"):
                return False
            sock.sendall(b"QUIT\r\n")
            sock.recv(512)
            return True
    except OSError:
        return False


def wait_until(what: str, done: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits for something that other processes do."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
