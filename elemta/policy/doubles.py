"""Doubles of the services, for tests of policies: what a test reads, scripts, or makes fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, BinaryIO, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, execute, fail, maybeDeferred, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from elemta.dns import MailExchanger
from elemta.envelope import Envelope
from elemta.errors import BackendError, NoSuchDomain, StoreUnavailable
from elemta.policy.call_context import seconds_left
from elemta.policy.http_client import (
    MAX_ANSWER,
    HttpAnswer,
    HttpHeaders,
    answer_within,
    checked_url,
    sent_headers,
)
from elemta.policy.outbox import QueuePage, check_records
from elemta.policy.outbox_record import OutboxRecord, OutboxStart
from elemta.policy.streams import Stream, StreamProtocol, client_endpoint, open_stream

_T = TypeVar("_T")
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True)
class RecordedMetric:
    """A counter or histogram that keeps its amounts, by the values of its labels."""

    label_names: tuple[str, ...]
    amounts: dict[tuple[str, ...], list[float]] = field(default_factory=dict)
    values: tuple[str, ...] = ()

    def inc(self, amount: float = 1) -> None:
        if amount < 0:
            raise ValueError("a counter only grows")
        self._record(amount)

    def observe(self, amount: float) -> None:
        self._record(amount)

    def labels(self, *values: str) -> RecordedMetric:
        if len(values) != len(self.label_names):
            raise ValueError(f"the labels are {self.label_names}, but {values} were given")
        return RecordedMetric(self.label_names, self.amounts, values)

    def _record(self, amount: float) -> None:
        if len(self.values) != len(self.label_names):
            raise ValueError(f"the labels {self.label_names} were not given")
        self.amounts.setdefault(self.values, []).append(amount)


class RecordedMetrics:
    """Metrics for a test to read, by their full names (``elemta_plugin_POLICY_NAME``)."""

    def __init__(self) -> None:
        self._metrics: dict[str, RecordedMetric] = {}

    def counter(self, name: str, words: str, labels: Sequence[str] = ()) -> RecordedMetric:
        return self._metric(name, words, labels)

    def histogram(
        self, name: str, words: str, labels: Sequence[str] = (), buckets: Sequence[float] | None = None
    ) -> RecordedMetric:
        if buckets is not None and list(buckets) != sorted(set(buckets)):
            raise ValueError("the buckets of a histogram are ascending bounds")
        return self._metric(name, words, labels)

    def total(self, name: str, *values: str) -> float:
        """The total of a counter; 0 where nothing was counted."""
        return sum(self.observed(name, *values))

    def observed(self, name: str, *values: str) -> list[float]:
        """The amounts of a metric, in order. KeyError where no metric has this name."""
        return self._metrics[name].amounts.get(values, [])

    def _metric(self, name: str, words: str, labels: Sequence[str]) -> RecordedMetric:
        if not words:
            raise ValueError(f"the metric {name} has no words that say what it is")
        metric = self._metrics.setdefault(name, RecordedMetric(tuple(labels)))
        if metric.label_names != tuple(labels):
            raise ValueError(f"there is another metric {name} already")
        return metric


@dataclass
class Zone:
    """A resolver with the records that a test gives it, by name in lower case. Other names do not exist.

    A value may also be an exception, such as ``ResolverTrouble("no answer")``, which the lookup then raises.
    ``records_of`` has records of other types, by (name, type).
    """

    addresses_of: dict[str, Sequence[str] | Exception] = field(default_factory=dict)
    exchangers_of: dict[str, Sequence[MailExchanger] | Exception] = field(default_factory=dict)
    texts_of: dict[str, Sequence[str] | Exception] = field(default_factory=dict)
    names_of: dict[str, Sequence[str] | Exception] = field(default_factory=dict)
    records_of: dict[tuple[str, str], Sequence[str] | Exception] = field(default_factory=dict)

    async def addresses(
        self,
        host: str,
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> tuple[IPv4Address | IPv6Address, ...]:
        found = self._records(self.addresses_of, host)
        return tuple(sorted(map(ip_address, found), key=lambda ip: -ip.version))

    async def mail_exchangers(
        self,
        domain: str,
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> tuple[MailExchanger, ...]:
        return tuple(
            sorted(self._records(self.exchangers_of, domain), key=lambda mx: (mx.preference, mx.host))
        )

    async def text(self, name: str, *, timeout: float | None = None) -> tuple[str, ...]:  # noqa: ARG002
        return self._records(self.texts_of, name)

    async def reverse(
        self,
        ip: str | IPv4Address | IPv6Address,
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> tuple[str, ...]:
        return self._records(self.names_of, str(ip))

    async def records(self, name: str, kind: str, *, timeout: float | None = None) -> tuple[str, ...]:  # noqa: ARG002
        key = (name.lower().rstrip("."), kind.upper())
        if key in self.records_of:
            return self._records({key[0]: self.records_of[key]}, name)
        return self._records({}, name)

    def _records(self, records: Mapping[str, Sequence[_T] | Exception], name: str) -> tuple[_T, ...]:
        key = name.lower().rstrip(".")
        found = records.get(key)
        if isinstance(found, Exception):
            raise found
        if found is not None:
            return tuple(found)
        every = (self.addresses_of, self.exchangers_of, self.texts_of, self.names_of)
        if any(key in kind for kind in every) or any(key == known for known, _ in self.records_of):
            return ()
        raise NoSuchDomain(f"{name} does not exist")


class TestReactor(MemoryReactorClock):
    """A clock, connections in memory, and threads whose work is done at once."""

    __test__ = False  # it is no test case of pytest's

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def callFromThread(self, function: Callable[..., object], *args: object, **kwargs: object) -> None:
        function(*args, **kwargs)

    def callInThread(self, function: Callable[..., object], *args: object, **kwargs: object) -> None:
        function(*args, **kwargs)

    def getThreadPool(self) -> _ThreadPoolDouble:
        return _ThreadPoolDouble()


class _ThreadPoolDouble:
    """What ``deferToThreadPool`` needs."""

    def callInThreadWithCallback(
        self, done: Callable[..., object], function: Callable[..., object], *args: Any, **kwargs: Any
    ) -> None:
        try:
            result: object = function(*args, **kwargs)
        except BaseException:
            done(False, Failure())
        else:
            done(True, result)


class ThreadsDouble:
    """As ``services.threads``: the work is done at once, in the thread of the test. ``calls`` counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, f: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        self.calls += 1
        return execute(f, *args, **kwargs)


class UnavailableStore:
    """A store whose Valkey does not answer."""

    async def get(self, key: str) -> bytes | None:
        raise StoreUnavailable(f"no answer about {key}")

    async def set(self, key: str, value: bytes, *, ttl: float, only_if_absent: bool = False) -> bool:  # noqa: ARG002
        raise StoreUnavailable(f"no answer about {key}")

    async def add(self, key: str, amount: int = 1, *, ttl: float) -> int:  # noqa: ARG002
        raise StoreUnavailable(f"no answer about {key}")

    async def delete(self, key: str) -> bool:
        raise StoreUnavailable(f"no answer about {key}")


class MemoryOutbox:
    """As ``services.outbox``, in memory. ``records`` are those that were not removed.

    ``complete`` and ``at`` are what :meth:`start` says of an earlier run; ``finished`` is whether this one
    ended in order. A test sets ``failure`` to make the disk fail, and ``dropped`` to what the next append
    says.
    """

    def __init__(self, *records: bytes, complete: bool = True, at: float = 0.0) -> None:
        self.records = [OutboxRecord(number, octets) for number, octets in enumerate(records, 1)]
        self.complete, self.at = complete, at
        self.finished = self.has_caught_up = False
        self.failure: BackendError | None = None
        self.dropped = 0
        self._next = len(records) + 1

    async def start(self) -> OutboxStart:
        self._check()
        return OutboxStart(len(self.records), self.complete, self.at)

    async def caught_up(self) -> None:
        self._check()
        self.has_caught_up = True

    def append(self, *records: bytes) -> Deferred[int]:
        check_records(records)
        if self.failure is not None:
            return fail(self.failure)
        for octets in records:
            self.records.append(OutboxRecord(self._next, octets))
            self._next += 1
        dropped, self.dropped = self.dropped, 0
        return succeed(dropped)

    async def read(self, most: int = 100, octets: int = 256 * 1024) -> Sequence[OutboxRecord]:
        self._check()
        found: list[OutboxRecord] = []
        for record in self.records[:most]:
            octets -= len(record.octets)
            if found and octets < 0:
                break
            found.append(record)
        return found

    async def remove(self, number: int) -> None:
        self._check()
        self.records = [each for each in self.records if each.number > number]

    async def finish(self) -> None:
        self._check()
        self.finished = True

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure


class ListedQueue:
    """As ``services.queue``: the messages of a list, in pages of ``page``."""

    def __init__(self, *envelopes: Envelope, page: int = 100) -> None:
        self.envelopes = list(envelopes)
        self._page = page

    async def received_since(self, at: float, after: str | None = None) -> QueuePage:
        ids = [each.queue_id for each in self.envelopes]
        begin = 0 if after is None else ids.index(after) + 1
        looked_at = self.envelopes[begin : begin + self._page]
        more = begin + self._page < len(self.envelopes)
        return QueuePage(
            [each for each in looked_at if each.received_at >= at], looked_at[-1].queue_id if more else None
        )


StreamScript = Sequence[bytes] | Callable[[bytes], bytes | None] | Exception
"""What a scripted peer does.

- A list: it sends these, one for each write of the policy, and closes after the last.
- A function: called with each write, it returns what the peer sends then: ``b""`` nothing, ``None`` closes.
- An exception: nothing listens there, and connecting raises it.
"""


class ScriptedConnections:
    """As ``services.connect``. ``scripts`` are by endpoint; at any other endpoint nothing listens.

    ``written`` has what the policy wrote, a list for each connection in order; ``open`` counts those that
    are open.
    """

    def __init__(self, clock: Any, scripts: Mapping[str, StreamScript] | None = None) -> None:
        self.scripts: dict[str, StreamScript] = dict(scripts or {})
        self.written: list[list[bytes]] = []
        self.open = 0
        self._clock = clock

    async def __call__(self, endpoint: str, *, timeout: float | None = None) -> Stream:  # noqa: ARG002
        if endpoint not in self.scripts:
            client_endpoint(MemoryReactorClock(), endpoint)
        script = self.scripts.get(endpoint, BackendError(f"nothing listens at {endpoint}"))
        if isinstance(script, Exception):
            raise script
        written: list[bytes] = []
        self.written.append(written)
        self.open += 1
        protocol = StreamProtocol()
        transport: Any = _ScriptedTransport(protocol, script, written, self._closed)
        protocol.makeConnection(transport)  # type: ignore[no-untyped-call]
        return open_stream(protocol, self._clock, 5.0, endpoint)

    def _closed(self) -> None:
        self.open -= 1


class _ScriptedTransport:
    """The transport of a connection to a scripted peer."""

    def __init__(
        self,
        protocol: StreamProtocol,
        script: Sequence[bytes] | Callable[[bytes], bytes | None],
        written: list[bytes],
        closed: Callable[[], None],
    ) -> None:
        self._protocol = protocol
        self._written = written
        self._closed = closed
        self._lost = False
        self._script: Callable[[bytes], bytes | None]
        self._script = script if callable(script) else self._next
        self._answers = deque(() if callable(script) else script)

    def _next(self, data: bytes) -> bytes | None:  # noqa: ARG002
        return self._answers.popleft() if self._answers else None

    def write(self, data: bytes) -> None:
        self._written.append(data)
        answer = self._script(data)
        if answer is None:
            self.loseConnection()
        elif answer:
            self._protocol.dataReceived(answer)

    def loseConnection(self) -> None:
        if not self._lost:
            self._lost = True
            self._closed()
            self._protocol.connectionLost()

    abortConnection = loseConnection

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """It never is behind."""

    def unregisterProducer(self) -> None:
        """It never is behind."""

    def pauseProducing(self) -> None:
        """Nothing more comes by itself."""

    def resumeProducing(self) -> None:
        """Nothing more comes by itself."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What a policy asked for by HTTP."""

    method: str
    url: str
    headers: HttpHeaders
    body: bytes


def http_answer(status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None) -> HttpAnswer:
    """An answer for :class:`ScriptedHttp`."""
    return HttpAnswer(status, HttpHeaders(headers or {}), body)


HttpScript = HttpAnswer | Exception | Deferred[HttpAnswer] | Callable[[HttpRequest], Any]
"""What a scripted server answers: an answer, an exception, a Deferred, or what a function returns."""


class ScriptedHttp:
    """As ``services.http``. ``scripts`` are by URL; any other URL has no server.

    ``requests`` has what was asked, in order.
    """

    def __init__(self, clock: Any, scripts: Mapping[str, HttpScript] | None = None) -> None:
        self.scripts: dict[str, HttpScript] = dict(scripts or {})
        self.requests: list[HttpRequest] = []
        self._clock = clock

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
        checked_url(url)
        sent_headers(headers or {})
        octets = body if isinstance(body, bytes) else body.read()
        request = HttpRequest(method, url, HttpHeaders(headers or {}), octets)
        self.requests.append(request)
        seconds = seconds_left(self._clock.seconds(), 5.0 if timeout is None else timeout)
        asking = Deferred.fromCoroutine(self._ask(request, limit))
        return await answer_within(asking, seconds, self._clock, f"no answer from {url}")

    async def _ask(self, request: HttpRequest, limit: int) -> HttpAnswer:
        script: Any = self.scripts.get(request.url, BackendError(f"there is no server at {request.url}"))
        answer = await (maybeDeferred(script, request) if callable(script) else maybeDeferred(lambda: script))
        if isinstance(answer, Exception):
            raise answer
        if not isinstance(answer, HttpAnswer):
            raise TypeError(f"the script of {request.url} gives no HttpAnswer: {answer!r:.80}")
        if len(answer.body) > limit:
            raise BackendError(f"the answer has more than {limit} octets")
        return answer
