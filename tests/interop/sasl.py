"""A SASL server for Postfix, in Dovecot's authentication protocol, that knows one user."""

from __future__ import annotations

import base64
import socketserver
import threading
from pathlib import Path

_GREETING = "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t{}\nDONE\n".format("0" * 32)


class SaslServer:
    """Listens on a Unix socket while it is open."""

    def __init__(self, path: Path, user: str, password: str) -> None:
        good = f"\0{user}\0{password}".encode()

        class Conversation(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(_GREETING.encode())
                for line in self.rfile:
                    words = line.decode().rstrip("\n").split("\t")
                    if words[0] == "AUTH":
                        number, response = words[1], dict(word.partition("=")[::2] for word in words[3:])
                        said = base64.b64decode(response.get("resp", ""))
                        answer = f"OK\t{number}\tuser={user}" if said == good else f"FAIL\t{number}"
                        self.wfile.write(f"{answer}\n".encode())

        self._server = socketserver.ThreadingUnixStreamServer(str(path), Conversation)
        self._server.daemon_threads = True
        path.chmod(0o666)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
