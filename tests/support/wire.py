"""A client that sends exactly the bytes that it gets, and reads replies one by one."""

from __future__ import annotations

import socket
import ssl
from types import TracebackType


class Wire:
    """A blocking connection. Every wait has the socket's timeout."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reply(self) -> str:
        """The next whole reply, its lines joined by newlines; "" when the connection was closed."""
        lines = []
        while True:
            line = self.line()
            if not line:
                return "\n".join(lines)
            lines.append(line)
            if line[3:4] != "-":
                return "\n".join(lines)

    def line(self) -> str:
        while b"\n" not in self._rest:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                rest, self._rest = self._rest, b""
                return rest.decode()
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode().rstrip("\r")

    def command(self, line: str) -> str:
        self.send(line.encode() + b"\r\n")
        return self.reply()

    def start_tls(self) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.sock = context.wrap_socket(self.sock)

    def is_closed(self) -> bool:
        """Whether the server closes: waits for it, or for the socket's timeout."""
        return self.line() == ""
