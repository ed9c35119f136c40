"""Taking one message to where the routes of its recipients lead, and describing what became of it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from elemta.delivery.maildir import Drop, Job, MaildirThreads, file_name, maildir_path
from elemta.delivery.nexthop import NextHopConnection, NextHopUnreachableError, connect
from elemta.delivery.queue import Queue
from elemta.delivery.routes import HoldRoute, MaildirRoute, MxRoute, NextHopRoute, Route, RouteTable
from elemta.delivery.settings import DeliveryObserver, DeliverySettings
from elemta.envelope import Recipient
from elemta.errors import SpoolError
from elemta.message.trace import return_path_field
from elemta.outcome import Outcome, Status
from elemta.smtp.client_commands import ClientTransaction
from elemta.smtp.client_results import RecipientResult
from elemta.spool.records import QueuedMessage

_log = Logger()

_CHUNK = 64 * 1024
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_BY_MX = "mail for this domain goes by MX, which this version can't do: add a [[route]]"

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Carried:
    """What one attempt for a message came to.

    ``outcomes`` are those of the recipients that were tried; ``held`` says, by the route that keeps
    them, why others were not.
    """

    outcomes: tuple[Outcome, ...]
    held: tuple[str, ...] = ()


class Carrier:
    """Carries messages: in threads to Maildirs, over connections to next hops."""

    def __init__(
        self,
        reactor: Any,
        queue: Queue,
        pool: ThreadPool,
        settings: DeliverySettings,
        observer: DeliveryObserver,
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._queue = queue
        self._pool = pool
        self._observer = observer
        self._maildirs = MaildirThreads(reactor, pool, settings.maildir_threads)
        self._slots: dict[tuple[str, int], DeferredSemaphore] = {}
        self._connections: set[NextHopConnection] = set()

    async def carry(self, message: QueuedMessage, routes: RouteTable) -> Carried:
        """Try every pending recipient once. Does not raise: what goes wrong here defers."""
        groups: dict[Route, list[Recipient]] = {}
        for recipient in message.pending:
            groups.setdefault(routes.route(recipient.address), []).append(recipient)
        held = tuple(reason for route in groups if (reason := _hold_reason(route)))
        parts = [
            (route, recipients[start : start + self._settings.max_recipients])
            for route, recipients in groups.items()
            if not _hold_reason(route)
            for start in range(0, len(recipients), self._settings.max_recipients)
        ]
        if not parts:
            return Carried((), held)
        if len(parts) == 1:
            return Carried(tuple(await self._carry_part(message, *parts[0])), held)
        done = await gatherResults(
            [Deferred.fromCoroutine(self._carry_part(message, *part)) for part in parts], consumeErrors=True
        )
        return Carried(tuple(outcome for outcomes in done for outcome in outcomes), held)

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Use these settings for every attempt from now on."""
        self._settings = settings
        self._maildirs.threads = settings.maildir_threads

    def abandon(self) -> None:
        """Cut every connection; what was under way on it is deferred."""
        for connection in list(self._connections):
            connection.cut()

    # One route

    async def _carry_part(
        self, message: QueuedMessage, route: Route, recipients: Sequence[Recipient]
    ) -> list[Outcome]:
        attempt = _Attempt(message, route, recipients, self._reactor.seconds())
        try:
            if isinstance(route, MaildirRoute):
                outcomes = await self._to_maildirs(attempt, route)
            elif isinstance(route, NextHopRoute):
                outcomes = await self._to_next_hop(attempt, route)
            else:
                raise TypeError(f"no way to deliver by {route!r}")  # noqa: TRY301
        except SpoolError as error:
            text = f"the message could not be read here: {error}"
            outcomes = attempt.deferred(text, "4.3.0", self._reactor.seconds())
        except Exception:
            # A fault of ours must neither lose the message nor stop the others.
            _log.failure("a delivery attempt broke", event="delivery.broke", queue_id=message.queue_id)
            text = "a fault inside Elemta; the log has it"
            outcomes = attempt.deferred(text, "4.3.0", self._reactor.seconds())
        for outcome in outcomes:
            self._tell(message, outcome)
        return outcomes

    async def _to_maildirs(self, attempt: _Attempt, route: MaildirRoute) -> list[Outcome]:
        envelope = attempt.message.envelope
        prefix = return_path_field(envelope.sender)
        drops = [
            Drop(
                maildir_path(route.template, recipient.address),
                file_name(
                    envelope.queue_id, recipient.address, envelope.received_at, self._settings.hostname
                ),
                prefix,
            )
            for recipient in attempt.recipients
        ]
        content = await self._queue.open_content(envelope.queue_id)
        errors = await self._maildirs.write(Job(content, envelope.size, drops))
        now = self._reactor.seconds()
        return [
            attempt.outcome(_maildir_result(recipient, error), drop.directory, now)
            for recipient, drop, error in zip(attempt.recipients, drops, errors, strict=True)
        ]

    async def _to_next_hop(self, attempt: _Attempt, route: NextHopRoute) -> list[Outcome]:
        slots = self._slots_of(route)
        await slots.acquire()
        # The time in the queue for a connection is none of the next hop's.
        attempt = replace(attempt, started=self._reactor.seconds())
        connected = False
        try:
            connection = await self._prepare(attempt, route)
            await connect(self._reactor, route, connection, self._settings.connect_timeout)
            connected = True
        except NextHopUnreachableError as error:
            return attempt.deferred(str(error), "4.4.1", self._reactor.seconds())
        finally:
            if not connected:
                slots.release()
        self._connections.add(connection)
        connection.closed.addCallback(lambda _: self._closed(connection, slots))
        results = await connection.settled
        now = self._reactor.seconds()
        return [attempt.outcome(result, connection.name, now) for result in results]

    async def _prepare(self, attempt: _Attempt, route: NextHopRoute) -> NextHopConnection:
        envelope = attempt.message.envelope

        async def open_content() -> BinaryIO:
            return await self._queue.open_content(envelope.queue_id)

        utf8_header = False
        if envelope.parameters.smtputf8:
            with await open_content() as content:
                head = await self._read(content)
            utf8_header = not head.partition(b"\r\n\r\n")[0].isascii()
        transaction = ClientTransaction(
            envelope.sender, tuple(attempt.recipients), envelope.parameters, envelope.size, utf8_header
        )
        return NextHopConnection(
            self._reactor,
            self._settings,
            transaction,
            lmtp=route.lmtp,
            open_content=open_content,
            read=self._read,
        )

    async def _read(self, content: BinaryIO) -> bytes:
        return await self._in_thread(content.read, _CHUNK)

    def _closed(self, connection: NextHopConnection, slots: DeferredSemaphore) -> None:
        self._connections.discard(connection)
        slots.release()

    def _slots_of(self, route: NextHopRoute) -> DeferredSemaphore:
        key = (route.target, route.max_connections)
        if key not in self._slots:
            self._slots[key] = DeferredSemaphore(route.max_connections)
        return self._slots[key]

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs)

    def _tell(self, message: QueuedMessage, outcome: Outcome) -> None:
        self._observer.attempted(outcome)
        _log.info(
            "delivery attempt",
            event="delivery.attempt",
            queue_id=outcome.queue_id,
            session_id=message.envelope.client.session_id,
            recipient=str(outcome.recipient),
            status=outcome.status.value,
            route=outcome.route,
            next_hop=outcome.next_hop,
            code=outcome.code,
            enhanced=outcome.enhanced,
            reply=outcome.text,
            seconds=round(outcome.seconds, 4),
        )


def _hold_reason(route: Route) -> str:
    if isinstance(route, HoldRoute):
        return route.reason
    return _BY_MX if isinstance(route, MxRoute) else ""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One try for some recipients over one route, while it lasts; makes their outcomes."""

    message: QueuedMessage
    route: Route
    recipients: Sequence[Recipient]
    started: float

    def outcome(self, result: RecipientResult, next_hop: str, now: float) -> Outcome:
        return Outcome(
            self.message.queue_id,
            result.recipient.address,
            result.status,
            result.text,
            self.route.target,
            next_hop,
            now,
            now - self.started,
            result.code,
            result.enhanced,
        )

    def deferred(self, text: str, enhanced: str, now: float) -> list[Outcome]:
        """The outcomes where nothing was reached that could have answered."""
        next_hop = self.route.name if isinstance(self.route, NextHopRoute) else ""
        return [
            self.outcome(RecipientResult(recipient, Status.DEFERRED, 0, enhanced, text), next_hop, now)
            for recipient in self.recipients
        ]


def _maildir_result(recipient: Recipient, error: OSError | SpoolError | None) -> RecipientResult:
    if error is None:
        return RecipientResult(recipient, Status.DELIVERED, 0, "2.0.0", "written to the Maildir")
    # Local trouble is never permanent: a full disk, a wrong mode, a missing mount can all be mended.
    enhanced = "4.3.1" if isinstance(error, OSError) and error.errno in _NO_ROOM else "4.3.0"
    reason = getattr(error, "strerror", None) or str(error)
    text = f"the Maildir could not be written: {reason}"
    return RecipientResult(recipient, Status.DEFERRED, 0, enhanced, text)
