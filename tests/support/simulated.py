"""Delivery with a clock instead of time, a queue in memory, and destinations that a test describes."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock

from elemta.address import Address
from elemta.config import LimitConfig, ResourcesConfig
from elemta.delivery import DeliveryScheduler, DeliverySettings, Retries
from elemta.delivery.local_faults import WORKS_BY_MX
from elemta.delivery.outbound_limits import OutboundLimiter
from elemta.delivery.routes import MxRoute
from elemta.envelope import Envelope, Recipient
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.message.notice import Notice
from elemta.outcome import LocalFault, Outcome, ReachedStage, Status
from elemta.spool import DestinationDue, HeldPart, HoldCause, MessageState, QueuedMessage
from elemta.spool.content import Content
from elemta.spool.records import ArrivalPage, Submission
from tests.support.runtime import SimulatedReactor, simulated_runtime

START = 1_700_000_000.0


class Writer:
    """Takes a notice to a sender."""

    congested = False
    failure = None
    queue_id = "NOTICE"

    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes) -> None:
        self.text += data

    def discard(self) -> None:
        pass


@dataclass
class MemoryQueue:
    """A queue that is a dict; ``notices`` are the texts of the notices to senders, by their times.

    ``dates`` are the dates of those notices.
    """

    clock: Clock
    parts: dict[str, dict[tuple[str, int], QueuedMessage]] = field(default_factory=dict)
    notices: list[tuple[float, str]] = field(default_factory=list)
    dates: list[float] = field(default_factory=list)
    changes: int = 0
    healthy: bool = True
    settled: bool = True
    _destination_of: dict[str, str] = field(default_factory=dict)

    def put(self, message: QueuedMessage) -> None:
        self.parts.setdefault(message.destination, {})[message.key] = message
        self._destination_of[message.queue_id] = message.destination

    def find(self, queue_id: str) -> QueuedMessage | None:
        return self.parts.get(self._destination_of.get(queue_id, ""), {}).get((queue_id, 0))

    @property
    def messages(self) -> Iterator[QueuedMessage]:
        return (message for destination in self.parts.values() for message in destination.values())

    async def destinations(self, after: str | None, limit: int) -> list[tuple[str, float | None]]:
        names = sorted(self.parts)
        start = 0 if after is None else bisect_right(names, after)
        return [(name, self._due(name)) for name in names[start : start + limit]]

    def _due(self, destination: str) -> float:
        return min(
            0.0 if message.state is MessageState.ACTIVE else message.next_attempt_at
            for message in self.parts[destination].values()
        )

    async def due(
        self,
        now: float,
        wanted: Mapping[str, int],
        excluding: Mapping[str, Collection[tuple[str, int]]],
        until: Mapping[str, float] | None = None,
    ) -> list[DestinationDue]:
        return [
            self._due_in(
                destination, now, (until or {}).get(destination, now), most, excluding.get(destination, ())
            )
            for destination, most in wanted.items()
        ]

    def _due_in(
        self, destination: str, now: float, until: float, most: int, known: Collection[tuple[str, int]]
    ) -> DestinationDue:
        all_there = self.parts.get(destination, {}).values()
        there = [message for message in all_there if message.key not in known]
        waits = [
            message.next_attempt_at
            for message in all_there
            if message.state is MessageState.DEFERRED and message.next_attempt_at > now
        ]
        due = sorted(
            (
                each
                for each in there
                if each.state is MessageState.ACTIVE or each.next_attempt_at <= max(now, until)
            ),
            key=lambda each: (each.state is not MessageState.ACTIVE, each.next_attempt_at, each.key),
        )
        return DestinationDue(
            destination, tuple(due[:most]), now if len(due) > most else min(waits, default=None)
        )

    async def older(
        self, before: float, after: int = -1, limit: int = 500, *, unwarned: bool = False
    ) -> ArrivalPage:
        old = [
            each
            for each in self.messages
            if each.envelope.received_at <= before and not (unwarned and each.warned)
        ]
        return ArrivalPage(tuple(sorted(old, key=lambda each: each.queue_id)), -1, False)

    async def owed(self, after: str | None, limit: int) -> list[Notice]:
        return []

    async def held(self, before: float, limit: int) -> list[HeldPart]:
        return []

    async def open_content(self, queue_id: str) -> Content:
        return Content(b"Subject: x\r\n\r\n", io.BytesIO(b"x"), 1)

    def begin(self) -> Writer:
        return Writer()

    def commit(
        self, writer: Writer, submission: Submission, *, pays: Notice | None = None
    ) -> Deferred[Envelope]:
        self.notices.append((self.clock.seconds(), writer.text.decode()))
        self.dates.append(submission.received_at)
        return succeed(Envelope(writer.queue_id, submission.sender, submission.recipients, 0.0, 1))

    def token(self, octets: int) -> str:
        return "0" * (2 * octets)

    def in_disk_thread(self, work: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return maybeDeferred(work, *args, **kwargs)

    def settle(
        self,
        queue_id: str,
        outcomes: Sequence[Outcome],
        *,
        part: int | None = None,
        retry_at: float | None,
        hold_reason: str | None,
        warned: bool = False,
        attempted: bool = True,
        hold: HoldCause = HoldCause.FAULT,
        owes: Collection[Address] = (),
    ) -> Deferred[None]:
        self.changes += 1
        message = self.find(queue_id)
        if message is None:
            return succeed(None)
        there = self.parts[message.destination]
        if any(outcome.status is not Status.DEFERRED for outcome in outcomes):
            del there[message.key]
            if not there:
                del self.parts[message.destination]
            return succeed(None)
        if retry_at is not None:
            message = replace(
                message,
                state=MessageState.DEFERRED,
                next_attempt_at=retry_at,
                attempts=message.attempts + attempted,
            )
        there[message.key] = replace(message, warned=message.warned or warned)
        return succeed(None)

    def assign(self, *args: Any) -> Deferred[None]:
        raise AssertionError("nothing moves here")

    def use_plan(self, plan: object) -> None:
        pass

    def on_committed(self, callback: Callable[[QueuedMessage], None]) -> None:
        self.notify_committed = callback

    def on_due(self, callback: Callable[[Collection[str]], None]) -> None:
        self.notify_due = callback

    def on_settled(self, callback: Callable[[], None]) -> None:
        """It is settled always."""


@dataclass(frozen=True)
class Answer:
    """How a destination does at a time: what comes of an attempt, after so many seconds.

    ``local`` is what may be wrong on this side.
    """

    reached: ReachedStage = ReachedStage.ANSWERED
    status: Status = Status.DELIVERED
    seconds: float = 0.1
    local: LocalFault = LocalFault.NONE


GOOD = Answer()
SILENT = Answer(ReachedStage.NOWHERE, Status.DEFERRED, 30.0, LocalFault.NETWORK)
UNREACHABLE = Answer(ReachedStage.NOWHERE, Status.DEFERRED, 0.0, LocalFault.NETWORK)
NAMELESS = Answer(ReachedStage.NOWHERE, Status.DEFERRED, 10.0, LocalFault.NAMES)
NO_SOCKET = Answer(ReachedStage.NOWHERE, Status.DEFERRED, 0.0, LocalFault.SOCKETS)
REFUSED = Answer(ReachedStage.NOWHERE, Status.DEFERRED, 0.05)
GREYLISTED = Answer(status=Status.DEFERRED)


class Simulation:
    """A delivery service whose attempts come to what ``network`` says of a destination now.

    ``attempts`` are the times, destinations and queue ids of all attempts; ``delivered`` says when each
    message was.
    """

    def __init__(
        self,
        network: Callable[[str, float], Answer],
        *limits: LimitConfig,
        **settings: Any,
    ) -> None:
        self.clock = SimulatedReactor()
        self.clock.advance(START)
        #: How many seconds the time of day is ahead of what it was at the start.
        self.step = 0.0
        runtime = simulated_runtime(self.clock, wall=lambda: self.clock.seconds() + self.step)
        store = LocalStore(self.clock)
        self.pace = OutboundLimiter(Limiter(rules_from_config(ResourcesConfig(), limits), store))
        self.queue = MemoryQueue(self.clock)
        self.network = network
        self.attempts: list[tuple[float, str, str]] = []
        self.delivered: dict[str, float] = {}
        self.sent = 0
        values: dict[str, Any] = {"retries": Retries(), **settings}
        values["retries"] = replace(values["retries"], uniform=runtime.randomness.uniform)
        self.settings = DeliverySettings("me.example", **values)
        self.delivery = DeliveryScheduler(
            runtime,
            self.queue,
            (MxRoute("mx:", frozenset("*")),),
            self.settings,
            limiter=self.pace,
        )
        self.delivery._transports.deliver = self._carry  # type: ignore[method-assign]

    @property
    def now(self) -> float:
        """Seconds since the simulation began."""
        return self.clock.seconds() - START

    def start(self) -> None:
        self.delivery.startService()
        self.clock.advance(0)

    def send(self, destination: str, sender: str = "sender", *, tell: bool = True) -> str:
        """A new message; with ``tell`` as after its commit, else it is only in the queue."""
        self.sent += 1
        now = self.clock.seconds() + self.step
        envelope = Envelope(
            f"Q{self.sent:07}",
            Address(sender, "example.org"),
            (Recipient(Address("bob", destination)),),
            now,
            15,
        )
        turn = self.delivery._destinations.turn(destination, envelope.sender, now)
        message = QueuedMessage(
            envelope, MessageState.ACTIVE, 0, envelope.recipients, turn, destination=destination
        )
        self.queue.put(message)
        if tell:
            self.queue.notify_committed(message)
        return envelope.queue_id

    def run(self, seconds: float, step: float = 0.1) -> None:
        """Let time pass: from event to event, and at most ``step`` at once."""
        end = self.clock.seconds() + seconds
        while (now := self.clock.seconds()) < end:
            following = min((call.getTime() for call in self.clock.getDelayedCalls()), default=end)
            self.clock.advance(max(0.0, min(following - now, end - now)) or min(0.001, end - now))

    async def _carry(self, message: QueuedMessage, ways: object, taken: object) -> tuple[Outcome, ...]:
        self.attempts.append((self.now, message.destination, message.queue_id))
        answer = self.network(message.destination, self.now)
        if answer.seconds:
            waited: Deferred[None] = Deferred()
            self.clock.callLater(answer.seconds, waited.callback, None)
            await waited
        if answer.status is Status.DELIVERED:
            self.delivered[message.queue_id] = self.now
        code = 0 if answer.reached is ReachedStage.NOWHERE or answer.status is Status.DELIVERED else 450
        outcome = Outcome(
            message.queue_id,
            message.pending[0].address,
            answer.status,
            "as simulated",
            "mx:",
            message.destination,
            self.clock.seconds() + self.step,
            answer.seconds,
            code,
            "4.4.1" if code == 0 else "4.2.0",
            reached=answer.reached,
            local=WORKS_BY_MX if answer.reached is ReachedStage.ANSWERED else answer.local,
        )
        return (outcome,)

    def stop(self) -> None:
        self.delivery._pool.stop()
