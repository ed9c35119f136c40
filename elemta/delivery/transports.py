"""Taking a part of a message to where its routes lead, and describing what became of it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.address import Address
from elemta.delivery.connections import Connections
from elemta.delivery.delivery_record import Taken
from elemta.delivery.local_faults import (
    ON_A_KEPT_CONNECTION,
    WORKS_BY_MX,
    LocalFault,
    all_local,
    works_by_host,
)
from elemta.delivery.maildir import MaildirDelivery, MaildirJob, MaildirThreads, file_name, maildir_path
from elemta.delivery.mx import MailResolver, NoExchanger, find_exchangers
from elemta.delivery.next_hop import Candidate, NextHop, ReachedStage, TransactionResult, hop_of
from elemta.delivery.outbound_limits import OutboundLimiter
from elemta.delivery.queue import DeliveryQueue
from elemta.delivery.routes import MaildirRoute, MxRoute, NextHopRoute, Route
from elemta.delivery.settings import DeliverySettings
from elemta.domains import canonical_domain
from elemta.envelope import Recipient
from elemta.errors import NoMailbox, SpoolError
from elemta.message.header_reader import header_size
from elemta.message.trace import return_path_field
from elemta.metrics import DeliveryMetrics
from elemta.outcome import Outcome, Status
from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.runtime import Runtime, WorkerPool
from elemta.smtp.client_commands import ClientTransaction
from elemta.smtp.client_results import RecipientResult
from elemta.spool import Content
from elemta.spool.records import QueuedMessage

_log = Logger()

_CHUNK = 64 * 1024
_WRITTEN = "written to the Maildir"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """What one attempt for a part came to: the outcomes of its recipients, and how far it came.

    ``untried`` are those for which no connection was free, so that there was no attempt.
    ``local`` is what may be wrong on this side where nothing was reached; ``works`` what works here, as
    an answer shows.
    """

    outcomes: tuple[Outcome, ...]
    reached: ReachedStage
    untried: frozenset[Address] = frozenset()
    local: LocalFault = LocalFault.NONE
    works: LocalFault = LocalFault.NONE

    @property
    def broke_off(self) -> bool:
        """Whether the next hop was there, but for no recipient was there any word of it that counts."""
        return self.reached is ReachedStage.ANSWERED and all(
            outcome.status is Status.DEFERRED and not outcome.code and outcome.enhanced in _BROKEN_OFF
            for outcome in self.outcomes
        )


# RFC 3463 §3.5: no answer in time or a connection that was lost, and what makes no sense.
_BROKEN_OFF = frozenset({"4.4.2", "4.5.0"})


class Transports:
    """Carries messages: in threads to Maildirs, over connections to next hops."""

    def __init__(
        self,
        runtime: Runtime,
        queue: DeliveryQueue,
        pool: WorkerPool,
        settings: DeliverySettings,
        metrics: DeliveryMetrics,
        *,
        resolver: MailResolver | None = None,
        hooks: DeliveryHooks | None = None,
        pace: OutboundLimiter | None = None,
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._queue = queue
        self._pool = pool
        self._metrics = metrics
        self._resolver = resolver
        self._hooks = hooks
        self._maildirs = MaildirThreads(pool, settings.maildir_threads)
        self._connections = Connections(
            runtime.reactor, settings, self._read, metrics, gate=pace, resolver=resolver
        )

    async def deliver(
        self, message: QueuedMessage, ways: Mapping[Route, Sequence[Recipient]], taken: Taken
    ) -> AttemptResult:
        """Try each of these recipients once. What goes wrong here defers.

        ``taken`` gets the recipients that have the message, the moment that is known: it counts, whatever
        else this gives or raises.
        """
        most = self._settings.max_recipients
        parts = [
            (route, recipients[start : start + most])
            for route, recipients in ways.items()
            for start in range(0, len(recipients), most)
        ]
        if not parts:
            return AttemptResult((), ReachedStage.NOTHING_FREE)
        if len(parts) == 1:
            return await self._deliver_part(message, *parts[0], taken)
        # All of them have to be over: what one takes after the attempt ended is not recorded.
        done: list[AttemptResult] = []
        broken: Failure | None = None
        for _, result in await DeferredList(
            [Deferred.fromCoroutine(self._deliver_part(message, *part, taken)) for part in parts],
            consumeErrors=True,
        ):
            if isinstance(result, Failure):
                broken = result
            else:
                done.append(result)
        if broken is not None:
            broken.raiseException()
        outcomes = tuple(outcome for carried in done for outcome in carried.outcomes)
        untried = frozenset(address for carried in done for address in carried.untried)
        works = LocalFault.NONE
        for carried in done:
            works |= carried.works
        reached = max((carried.reached for carried in done), key=list(ReachedStage).index)
        local = all_local(carried.local for carried in done)
        return AttemptResult(outcomes, reached, untried, local, works)

    def reconfigure(self, settings: DeliverySettings, hooks: DeliveryHooks | None = None) -> None:
        """Use these for every attempt from now on."""
        self._settings = settings
        self._hooks = hooks
        self._maildirs.threads = settings.maildir_threads
        self._connections.reconfigure(settings)

    def abandon(self) -> None:
        """Cut every connection; what was under way on it is deferred."""
        self._connections.abandon()

    async def stop(self) -> None:
        """Close what is still open when nothing is under way any more."""
        await self._connections.stop()

    # One route

    async def _deliver_part(
        self, message: QueuedMessage, route: Route, recipients: Sequence[Recipient], taken: Taken
    ) -> AttemptResult:
        attempt = _Attempt(message, route, recipients, self._runtime, self._runtime.monotonic(), taken)
        try:
            if isinstance(route, MaildirRoute):
                carried = AttemptResult(await self._to_maildirs(attempt, route), ReachedStage.ANSWERED)
            elif isinstance(route, NextHopRoute):
                carried = await self._to_next_hop(attempt, hop_of(route), works_by_host(route.host))
                carried = replace(carried, local=carried.local.of_route) if carried.local else carried
            elif isinstance(route, MxRoute):
                carried = await self._by_mx(attempt, route)
            else:
                raise TypeError(f"no way to deliver by {route!r}")  # noqa: TRY301
        except SpoolError as error:
            carried = self._not_sent(attempt, f"the message could not be read here: {error}")
        except Exception:
            # A fault of ours must neither lose the message nor stop the others.
            _log.failure(
                "a delivery attempt failed with an internal error",
                event="delivery.internal_error",
                queue_id=message.queue_id,
            )
            carried = self._not_sent(attempt, "a fault inside Elemta; the log has it")
        if carried.reached is ReachedStage.NOTHING_FREE:
            return replace(carried, untried=frozenset(each.recipient for each in carried.outcomes))
        return carried

    def _not_sent(self, attempt: _Attempt, text: str) -> AttemptResult:
        return attempt.all(Status.DEFERRED, "4.3.0", text, ReachedStage.ANSWERED)

    async def _to_maildirs(self, attempt: _Attempt, route: MaildirRoute) -> tuple[Outcome, ...]:
        envelope = attempt.message.envelope
        prefix = return_path_field(envelope.sender)
        drops = [
            MaildirDelivery(
                maildir_path(route.template, route.mailbox(recipient.address)),
                file_name(
                    envelope.queue_id, recipient.address, envelope.received_at, self._settings.hostname
                ),
                prefix,
                route.makes(recipient.address),
                route.root,
            )
            for recipient in attempt.recipients
        ]
        content = await self._queue.open_content(envelope.queue_id)
        job = MaildirJob(content, envelope.size, drops)
        try:
            errors = await self._maildirs.write(job)
        finally:
            for place in sorted(job.done):
                written = attempt.recipients[place]
                attempt.taken[written.address] = RecipientResult(
                    written, Status.DELIVERED, 0, "2.0.0", _WRITTEN
                )
        return tuple(
            attempt.outcome(_maildir_result(recipient, error), drop.directory, final=True)
            for recipient, drop, error in zip(attempt.recipients, drops, errors, strict=True)
        )

    async def _by_mx(self, attempt: _Attempt, route: MxRoute) -> AttemptResult:
        domain = canonical_domain(attempt.recipients[0].domain)
        if self._resolver is None:
            text = "nothing here asks DNS for mail exchangers"
            return attempt.all(Status.DEFERRED, "4.3.5", text, ReachedStage.NOWHERE)
        settings = self._settings
        found = await find_exchangers(
            self._resolver,
            domain,
            own_names=settings.own_names,
            own_addresses=settings.own_addresses,
            port=settings.mx_port,
            refuse_networks=route.refuse_networks,
            shuffle=self._runtime.randomness.shuffle,
        )
        if isinstance(found, NoExchanger):
            failed = found.status is Status.FAILED
            carried = attempt.all(
                found.status,
                found.enhanced,
                found.text,
                ReachedStage.ANSWERED if failed else ReachedStage.NOWHERE,
            )
            works = LocalFault.NAMES if failed and not domain.startswith("[") else LocalFault.NONE
            return replace(carried, local=found.local, works=works)
        hop = NextHop(
            domain,
            tuple(Candidate(host.host, settings.mx_port, host.addresses) for host in found.hosts),
            tls=route.tls,
            # Routes with other numbers are counted apart.
            route=f"{route.target}{route.max_connections}/{hash(route.refuse_networks)}",
            max_connections=settings.max_by_mx,
            destination=domain,
            per_destination=route.max_connections,
        )
        return await self._to_next_hop(attempt, hop, WORKS_BY_MX)

    async def _to_next_hop(self, attempt: _Attempt, hop: NextHop, works: LocalFault) -> AttemptResult:
        envelope = attempt.message.envelope

        async def open_content() -> BinaryIO:
            return await self._queue.open_content(envelope.queue_id)

        utf8_header = False
        if envelope.parameters.smtputf8:
            with await open_content() as content:
                head = await self._read(content)
            utf8_header = not head[: header_size(head)].isascii()
        transaction = ClientTransaction(
            envelope.sender,
            tuple(attempt.recipients),
            envelope.parameters,
            envelope.size,
            utf8_header,
            attempt.taken,
        )
        sent = await self._connections.send(hop, transaction, open_content)
        return _carried(attempt, hop, sent, works)

    async def _read(self, content: BinaryIO) -> bytes:
        if isinstance(content, Content) and content.in_memory:
            return content.read(_CHUNK)
        return await self._in_thread(content.read, _CHUNK)

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._pool.call(function, *args, **kwargs)

    def tell(self, message: QueuedMessage, outcomes: Iterable[Outcome]) -> None:
        """Report attempts to metrics, policies and the log. Does not raise: each has its own failures."""
        for outcome in outcomes:
            for tell in (self._tell_log, self._tell_metrics, self._tell_policies):
                try:
                    tell(message, outcome)
                except Exception:
                    _log.failure(
                        "a delivery attempt could not be reported to the metrics or a policy",
                        event="delivery.not_reported",
                        queue_id=message.queue_id,
                    )

    def _tell_metrics(self, _: QueuedMessage, outcome: Outcome) -> None:
        status = outcome.status.value
        self._metrics.attempts.labels(outcome.route, status).inc()
        self._metrics.duration.labels(outcome.route, status).observe(outcome.seconds)

    def _tell_policies(self, message: QueuedMessage, outcome: Outcome) -> None:
        if self._hooks is not None and self._hooks.tells:
            self._hooks.attempted(outcome, message.envelope)

    def _tell_log(self, message: QueuedMessage, outcome: Outcome) -> None:
        _log.info(
            "delivery attempt",
            event="delivery.attempted",
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


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One try for some recipients over one route, while it lasts; makes their outcomes."""

    message: QueuedMessage
    route: Route
    recipients: Sequence[Recipient]
    runtime: Runtime
    started: float
    taken: Taken

    def outcome(
        self,
        result: RecipientResult,
        next_hop: str,
        *,
        seconds: float | None = None,
        final: bool = False,
    ) -> Outcome:
        delivered = result.status is Status.DELIVERED
        return Outcome(
            self.message.queue_id,
            result.recipient.address,
            result.status,
            result.text,
            self.route.target,
            next_hop,
            self.runtime.wall(),
            self.runtime.monotonic() - self.started if seconds is None else seconds,
            result.code,
            result.enhanced,
            final and delivered,
            result.dsn_passed_on,
        )

    def all(self, status: Status, enhanced: str, text: str, reached: ReachedStage) -> AttemptResult:
        """The same for every recipient, where nothing was reached that could have answered."""
        results = (RecipientResult(recipient, status, 0, enhanced, text) for recipient in self.recipients)
        next_hop = self.route.name if isinstance(self.route, NextHopRoute) else ""
        return AttemptResult(tuple(self.outcome(result, next_hop) for result in results), reached)


def _carried(attempt: _Attempt, hop: NextHop, sent: TransactionResult, works: LocalFault) -> AttemptResult:
    outcomes = tuple(
        attempt.outcome(result, sent.next_hop, seconds=sent.seconds, final=hop.lmtp)
        for result in sent.results
    )
    if sent.reached is not ReachedStage.ANSWERED:
        return AttemptResult(outcomes, sent.reached, local=sent.local)
    return AttemptResult(outcomes, sent.reached, works=ON_A_KEPT_CONNECTION[works] if sent.reused else works)


def _maildir_result(recipient: Recipient, error: OSError | SpoolError | NoMailbox | None) -> RecipientResult:
    if error is None:
        return RecipientResult(recipient, Status.DELIVERED, 0, "2.0.0", _WRITTEN)
    if isinstance(error, NoMailbox):
        return RecipientResult(recipient, Status.FAILED, 0, "5.1.1", str(error))
    # Local trouble is never permanent: a full disk, a wrong mode, a missing mount can all be repaired.
    enhanced = "4.3.1" if isinstance(error, OSError) and error.errno in _NO_SPACE else "4.3.0"
    reason = getattr(error, "strerror", None) or str(error)
    text = f"the Maildir could not be written: {reason}"
    return RecipientResult(recipient, Status.DEFERRED, 0, enhanced, text)
