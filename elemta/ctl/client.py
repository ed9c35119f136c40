"""The client of the admin API: HTTP over a Unix socket, synchronous, with a deadline."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from elemta.ctl.exit_codes import EX_FAILED, EX_NOPERM, EX_UNAVAILABLE, EX_USAGE, CommandFailed
from elemta.socket_path import SocketPath

# The daemon answers or gives up within 30 seconds.
TIMEOUT_SECONDS = 35.0
MAX_ANSWER = 64 * 1024 * 1024


class DaemonRefused(CommandFailed):
    """The daemon answered with an error; ``status`` is the HTTP status, ``content`` the whole answer."""

    def __init__(self, status: int, content: Mapping[str, Any]) -> None:
        error = str(content.get("error") or f"the daemon answered {status}")
        # A call that is not understood is what the command made of its arguments.
        code = EX_USAGE if status == http.client.BAD_REQUEST else EX_FAILED
        super().__init__(code, error, str(content.get("hint") or ""))
        self.status = status
        self.content = content


class AdminClient:
    """Calls to the daemon that listens at ``path``, over one connection; ``timeout`` is seconds a call."""

    def __init__(self, path: str, timeout: float = TIMEOUT_SECONDS) -> None:
        self.path = path
        #: What says that a part of an answer is missing, where the answer does not say so of its nodes.
        self.problems: dict[str, None] = {}
        self._connection = _UnixConnection(path, timeout)

    def get(self, *segments: str, **query: str) -> dict[str, Any]:
        return self.call("GET", *segments, **query)

    def post(self, *segments: str, **query: str) -> dict[str, Any]:
        return self.call("POST", *segments, **query)

    def pages(self, listing: str, **query: str) -> Iterator[Mapping[str, Any]]:
        """The answers of a listing, page by page."""
        after: str | None = None
        while True:
            page = self.get(listing, **query, **({"after": after} if after else {}))
            yield page
            after = page["next"]
            if after is None:
                return

    def entries(self, listing: str, key: str = "", **query: str) -> Iterator[Mapping[str, Any]]:
        """What a listing has under ``key``, which is by default its own name."""
        for page in self.pages(listing, **query):
            yield from page[key or listing]

    def delete(self, *segments: str) -> dict[str, Any]:
        return self.call("DELETE", *segments)

    def call(self, method: str, *segments: str, **query: str) -> dict[str, Any]:
        """The answer to one call.

        Raises :class:`DaemonRefused`, or :class:`CommandFailed` when nothing listens, no answer comes in
        time, or the socket may not be opened.
        """
        try:
            target = "?".join((_path_of(segments), urlencode(query))) if query else _path_of(segments)
        except UnicodeEncodeError as error:
            raise _not_text() from error
        return self._call(method, target)

    def send(self, *segments: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a POST whose parameters are in the body. Raises as :meth:`call`."""
        try:
            sent = json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _not_text() from error
        return self._call("POST", _path_of(segments), sent)

    def _call(self, method: str, target: str, sent: bytes | None = None) -> dict[str, Any]:
        headers = {} if sent is None else {"Content-Type": "application/json"}
        try:
            self._connection.request(method, target, sent, headers)
            response = self._connection.getresponse()
            body = response.read(MAX_ANSWER + 1)
        except PermissionError as error:
            self.close()
            raise CommandFailed(
                EX_NOPERM,
                f"permission denied: {self.path}",
                "the socket is for root and the user that the daemon runs as",
            ) from error
        except TimeoutError as error:
            self.close()
            raise CommandFailed(
                EX_UNAVAILABLE, f"the daemon at {self.path} did not answer in time"
            ) from error
        except OSError as error:
            self.close()
            raise CommandFailed(
                EX_UNAVAILABLE,
                f"the daemon is not running: nothing answers at {self.path} ({error.strerror or error})",
                "start it, or name its configuration with --config or its socket with --socket",
            ) from error
        except http.client.HTTPException as error:
            self.close()
            raise CommandFailed(
                EX_UNAVAILABLE, f"what answers at {self.path} is not Elemta's admin API ({error!r})"
            ) from error
        return self._content(response.status, body)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._connection.close()

    def _content(self, status: int, body: bytes) -> dict[str, Any]:
        try:
            content = json.loads(body)
        except ValueError:
            content = None
        if not isinstance(content, dict) or len(body) > MAX_ANSWER:
            raise CommandFailed(EX_UNAVAILABLE, f"what answers at {self.path} is not Elemta's admin API")
        if status != http.client.OK:
            raise DaemonRefused(status, content)
        if "problems" in content and "nodes" not in content:
            self.problems |= dict.fromkeys(map(str, content["problems"]))
        return content


def _not_text() -> CommandFailed:
    # Python keeps other octets of a command line as halves of characters, which have no octets in UTF-8.
    return CommandFailed(EX_USAGE, "an argument is not UTF-8")


def _path_of(segments: Sequence[str]) -> str:
    return "/v1/" + "/".join(quote(segment, safe="") for segment in segments)


def nodes_of(pages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The nodes that answered a listing: a problem with any page of one is a problem with its part."""
    known: dict[str, Mapping[str, Any]] = {}
    for node in (node for page in pages for node in page["nodes"]):
        before = known.get(node["node_id"], node)
        known[node["node_id"]] = {
            **(before if before["problem"] else node),
            "answered": before["answered"] or node["answered"],
        }
    return list(known.values())


class _UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over the Unix socket at ``path``."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout)
            with closing(SocketPath(Path(self._path))) as place:
                sock.connect(place.text)
        except BaseException:
            sock.close()
            raise
        self.sock = sock
