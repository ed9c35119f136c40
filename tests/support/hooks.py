"""A receiver of web hooks: a real HTTP server in a thread of the test."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HookReceiver:
    """Takes events on a port that the kernel chose, or on ``port``.

    ``status`` is called for each request before it is answered, and may take its time. ``events`` are those
    that were answered with 200; ``requests`` counts all. ``forged`` counts bodies without the signature of
    ``secret``.
    """

    def __init__(self, secret: bytes = b"", status: Callable[[], int] = lambda: 200, port: int = 0) -> None:
        self.events: list[dict[str, Any]] = []
        self.requests = self.forged = 0
        self.status = status
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests += 1
                digest = hmac.new(secret, body, hashlib.sha256).hexdigest()
                if secret and self.headers["X-Elemta-Signature"] != f"sha256={digest}":
                    receiver.forged += 1
                status = receiver.status()
                if status == 200:
                    receiver.events += json.loads(body)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Keep it off the terminal."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def of_type(self, *kinds: str) -> list[dict[str, Any]]:
        """The events of these types."""
        return [event for event in list(self.events) if event["type"] in kinds]

    def wait_for(self, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        """The first true value of a condition."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {seconds:g} s; there are {self.events}"
            time.sleep(0.02)
        return value

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
