"""The HTTP client of a policy: ``answer = await services.http.request("POST", url, body=octets)``."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from twisted.internet.defer import CancelledError, Deferred

from elemta.errors import BackendError
from elemta.policy.call_context import BackendWait, seconds_left
from elemta.policy.streams import within

if TYPE_CHECKING:
    from elemta.policy.http_agent import HttpAgent

MAX_ANSWER = 16 * 1024 * 1024
"""Octets of the body of an answer."""

MOST_REQUESTS = 500
"""Requests of one policy that may be under way."""

LONGEST = 30.0
"""Seconds that a request may take where it is given no timeout."""


class HttpHeaders(Mapping[str, str]):
    """Header fields; their names are found in any case. Of a field that is there twice, the last."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Sequence[tuple[str, str]] | Mapping[str, str] = ()) -> None:
        pairs = fields.items() if isinstance(fields, Mapping) else fields
        self._fields = tuple((name.lower(), value) for name, value in pairs)

    def __getitem__(self, name: str) -> str:
        values = self.get_all(name)
        if not values:
            raise KeyError(name)
        return values[-1]

    def get_all(self, name: str) -> tuple[str, ...]:
        """The values of every field of this name."""
        wanted = name.lower()
        return tuple(value for known, value in self._fields if known == wanted)

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._fields))

    def __len__(self) -> int:
        return len(dict(self._fields))


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer of a server, whatever its ``status``."""

    status: int
    headers: HttpHeaders
    body: bytes


class HttpClient(Protocol):
    """HTTP and HTTPS, with connections that are kept. Certificates are verified."""

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | BinaryIO = b"",
        timeout: float | None = None,
        limit: int = MAX_ANSWER,
    ) -> HttpAnswer:
        """Ask a server; redirects are not followed.

        ``body`` may be a binary file, from its position to its end, which is read in a thread. The request
        ends within the time of the policy's call, and within ``timeout`` seconds where that is less. A user
        and a password in ``url`` are sent as Basic authentication. Raises
        :class:`~elemta.errors.BackendError` where there is no whole answer in time, or it has a body of
        more than ``limit`` octets, and ValueError where ``url`` or a header can't be sent.
        """


class TimedClient:
    """The client of a policy's name for one policy that was built, with the timeout of that."""

    def __init__(self, client: AgentClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | BinaryIO = b"",
        timeout: float | None = None,
        limit: int = MAX_ANSWER,
    ) -> HttpAnswer:
        seconds = self._timeout if timeout is None else timeout
        return await self._client.request(
            method, url, headers=headers, body=body, timeout=seconds, limit=limit
        )


class AgentClient:
    """An :class:`HttpClient` over Twisted's agent, for the policies of one name.

    ``in_thread`` reads files.
    """

    def __init__(self, reactor: Any, in_thread: Callable[[Callable[[], bytes]], Deferred[bytes]]) -> None:
        self._reactor = reactor
        self._in_thread = in_thread
        self._agent: HttpAgent | None = None
        self._under_way = 0

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | BinaryIO = b"",
        timeout: float | None = None,
        limit: int = MAX_ANSWER,
    ) -> HttpAnswer:
        place = checked_url(url)
        url, own = without_credentials(url)
        sent = sent_headers({**own, **(headers or {})})
        if self._under_way >= MOST_REQUESTS:
            raise BackendError(f"{MOST_REQUESTS} requests of this policy are under way already")
        seconds = seconds_left(self._reactor.seconds(), LONGEST if timeout is None else timeout)
        verb, resource = method.encode("ascii"), url.encode("ascii")
        asking = self._agent_now().request(verb, resource, sent, body, limit)
        self._under_way += 1
        try:
            return await answer_within(asking, seconds, self._reactor, f"no answer from {place}")
        except (CancelledError, BackendError):
            raise
        except Exception as error:
            raise BackendError(f"{place}: {_reason(error)}") from error
        finally:
            self._under_way -= 1

    def _agent_now(self) -> HttpAgent:
        if self._agent is None:
            from elemta.policy.http_agent import HttpAgent  # noqa: PLC0415 - twisted.web is large, and few ask

            self._agent = HttpAgent(self._reactor, self._in_thread)
        return self._agent

    def close(self) -> None:
        """Close the connections that are kept."""
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.close()


async def answer_within(asking: Deferred[HttpAnswer], seconds: float, clock: Any, words: str) -> HttpAnswer:
    """The answer of a policy's backend in time. A failure and a status of 500 or more count against it."""
    wait, failed = BackendWait(), True
    try:
        answer: HttpAnswer = await within(asking, seconds, clock, words)
        failed = answer.status >= 500
    except CancelledError:
        failed = False
        raise
    else:
        return answer
    finally:
        wait.ended(failed=failed)


def checked_url(url: str) -> str:
    """The server that a URL names. ValueError where it can't be asked."""
    if not isinstance(url, str) or not url.isascii() or any(sign <= " " or sign == "\x7f" for sign in url):
        raise ValueError(f"no URL: {str(url)[:200]!r}")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"no URL of HTTP or HTTPS: {url[:200]!r}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def without_credentials(url: str) -> tuple[str, dict[str, str]]:
    """The URL without its user and password, and the header that says them (RFC 7617)."""
    parts = urlsplit(url)
    credentials, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    user, _, password = credentials.partition(":")
    token = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode("ascii")
    return urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {token}"}


def sent_headers(headers: Mapping[str, str]) -> dict[bytes, list[bytes]]:
    """The header of a request. ValueError for a field that can't be sent."""
    sent: dict[bytes, list[bytes]] = {b"User-Agent": [b"Elemta"]}
    for name, value in headers.items():
        if any(sign in f"{name}{value}" for sign in "\r\n\0"):
            raise ValueError(f"no header of HTTP: {name!r}")
        sent[name.encode("ascii")] = [value.encode("utf-8")]
    return sent


def _reason(error: Exception) -> str:
    reasons = getattr(error, "reasons", None)
    if reasons:
        # ResponseFailed and similar errors say only that something failed.
        return "; ".join(each.getErrorMessage() for each in reasons)
    return str(error) or type(error).__name__
