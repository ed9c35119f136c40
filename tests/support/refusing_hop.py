"""A next hop that takes no mail, and says so in its own words."""

from __future__ import annotations

import socketserver
import threading


class RefusingHop:
    """Listens on ``port`` from the start until ``close``. ``refusal`` is its reply to RCPT."""

    def __init__(self, refusal: str, *, greeting: str = "220 hop ESMTP") -> None:
        hop = self
        self.asked = 0
        """How many recipients it has refused."""

        class Session(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.say(greeting)
                for line in self.rfile:
                    hop.asked += line[:4].upper() == b"RCPT"
                    self.say({b"RCPT": refusal, b"QUIT": "221 bye"}.get(line[:4].upper(), "250 ok"))

            def say(self, reply: str) -> None:
                self.wfile.write(reply.encode() + b"\r\n")

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
