"""Whatever is asked of the queue in whatever order, it agrees with a model of a few lines."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from elemta.outcome import Status
from elemta.spool import MessageState, PlannedPart, SpoolSettings
from elemta.spool.filters import QueueFilter
from elemta.spool.leftovers import Leftovers
from elemta.spool.operations import Assignment, DeliveryResult, NewMessage, OperatorAction, OperatorChange
from elemta.spool.partition import Partition
from elemta.spool.queries import Queries
from elemta.spool.queue_id import QueueIds, row_key
from elemta.spool.queue_list import QueueList
from elemta.spool.reader import Reader
from elemta.spool.rows import encode_envelope
from elemta.spool.schedule import Schedule
from elemta.spool.waits import NO_WAITS
from elemta.spool.writer import QueueWriter
from tests.spool.mail import outcome, submission
from tests.support.runtime import simulated_runtime

NAMES = ("ann", "bob", "cyd")
WAYS = (
    (PlannedPart("one", 5.0),),
    (PlannedPart("one", 5.0, (0, 1)), PlannedPart("two", 6.0, (2,))),
    (PlannedPart("two", 4.0, (0,)), PlannedPart("three", 5.0, (1,)), PlannedPart("one", 5.5, (2,))),
)


@dataclass
class Part:
    destination: str
    names: set[str]
    state: MessageState
    due: float
    attempts: int = 0


@dataclass
class Modelled:
    due: float
    parts: dict[int, Part]
    reason: str | None = None
    attempts: int = 0

    @property
    def state(self) -> MessageState:
        return min((part.state for part in self.parts.values()), key=list(MessageState).index)

    @property
    def pending(self) -> set[str]:
        return {name for part in self.parts.values() for name in part.names}

    def conclude(self) -> bool:
        """Whether anything of it is left."""
        self.parts = {number: part for number, part in self.parts.items() if part.names}
        if not self.parts:
            return False
        self.attempts = max(self.attempts, *(part.attempts for part in self.parts.values()))
        if all(part.state is not MessageState.HOLD for part in self.parts.values()):
            self.reason = None
        if self.state is not MessageState.ACTIVE:
            self.due = min(part.due for part in self.parts.values() if part.state is self.state)
        return True


class Queue(RuleBasedStateMachine):
    messages = Bundle("messages")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.settings = SpoolSettings(self.directory, reserve=4096)
        self.ids = QueueIds(lambda: 1.7e9, Random(1))
        self.model: dict[str, Modelled] = {}
        self.waiting: list[object] = []
        self.expected: list[bool] = []
        self.start()

    def start(self) -> None:
        runtime = simulated_runtime()
        disk = runtime.disk
        self.partition = Partition(self.directory, 0, runtime)
        self.partition.claim()
        self.store = QueueWriter(self.settings, self.partition.places, Leftovers(disk), runtime)
        self.counts = self.store.open()
        self.reader = Reader(self.partition.places, disk)
        self.queries = Queries(self.reader)
        self.listing = QueueList(self.reader)
        self.schedule = Schedule(self.reader)

    def stop(self) -> None:
        self.flush()
        self.reader.close()
        self.store.close()
        self.partition.leave()

    def ask(self, operation: object, *, known: bool = True) -> None:
        self.waiting.append(operation)
        self.expected.append(known)

    def flush(self) -> None:
        batch = self.store.apply(self.waiting)
        assert batch.broken is None
        done = [operation not in batch.errors for operation in self.waiting]
        assert done == self.expected, batch.errors
        self.counts.add(batch.counts)
        self.waiting, self.expected = [], []

    @rule(target=messages, reason=st.none() | st.just("quarantined"), ways=st.sampled_from(WAYS))
    def take_in(self, reason: str | None, ways: tuple[PlannedPart, ...]) -> str:
        queue_id = self.ids.next()
        given = submission(*NAMES, hold_reason=reason, at=5.0)
        state = MessageState.HOLD if reason else MessageState.ACTIVE
        self.ask(
            NewMessage(
                row_key(queue_id),
                queue_id,
                state,
                5.0,
                10,
                3,
                reason,
                encode_envelope(given),
                b"header",
                b"body",
                ways,
            )
        )
        self.flush()  # a message has no name before its commit
        parts = {
            number: Part(
                way.destination, {NAMES[place] for place in way.positions or range(3)}, state, way.turn
            )
            for number, way in enumerate(ways)
        }
        self.model[queue_id] = Modelled(5.0, parts, reason)
        return queue_id

    @rule(
        queue_id=messages,
        said=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(Status)),
        number=st.none() | st.integers(0, 3),
        retry_at=st.none() | st.floats(0, 100),
        reason=st.none() | st.just("failed"),
    )
    def settle(
        self,
        queue_id: str,
        said: dict[str, Status],
        number: int | None,
        retry_at: float | None,
        reason: str | None,
    ) -> None:
        outcomes = [outcome(queue_id, name, status) for name, status in said.items()]
        self.ask(DeliveryResult(row_key(queue_id), queue_id, outcomes, retry_at, reason, number))
        message = self.model.get(queue_id)
        if message is None:
            return
        for name, status in said.items():
            if status is Status.DELIVERED or (status is Status.FAILED and reason is None):
                for part in message.parts.values():
                    part.names.discard(name)
        for part_number, part in list(message.parts.items()):
            if number in (None, part_number) and part.names:
                self.let_wait(message, part, said, retry_at, reason)
        if not message.conclude():
            del self.model[queue_id]

    def let_wait(
        self,
        message: Modelled,
        part: Part,
        said: dict[str, Status],
        retry_at: float | None,
        reason: str | None,
    ) -> None:
        if retry_at is None and reason is None:
            return
        message.reason = reason or message.reason
        on = {name for name in part.names if said.get(name) is Status.DEFERRED and retry_at is not None}
        if reason is None:
            on = part.names
        held = part
        if on and on != part.names:
            held = Part(part.destination, part.names - on, part.state, part.due, part.attempts)
            message.parts[max(message.parts) + 1] = held
            part.names = on
        if reason is not None and held.names != on:
            held.state, held.attempts = MessageState.HOLD, held.attempts + 1
        if part.names == on and retry_at is not None:
            part.due, part.attempts = retry_at, part.attempts + 1
            if part.state is not MessageState.HOLD:
                part.state = MessageState.DEFERRED

    @rule(queue_id=messages, number=st.integers(0, 3), ways=st.sampled_from(WAYS[1:]))
    def assign(self, queue_id: str, number: int, ways: tuple[PlannedPart, ...]) -> None:
        self.ask(Assignment(row_key(queue_id), queue_id, number, ways))
        message = self.model.get(queue_id)
        part = message and message.parts.get(number)
        if message is None or part is None:
            return
        for way in ways:
            moved = {NAMES[place] for place in way.positions or ()} & part.names
            if not moved:
                continue
            new = part
            if moved != part.names:
                part.names -= moved
                new = Part(way.destination, moved, part.state, part.due, part.attempts)
                message.parts[max(message.parts) + 1] = new
            new.destination = way.destination
            if new.state is MessageState.ACTIVE:
                new.due = way.turn
            elif new.state is MessageState.DEFERRED:
                new.due = min(new.due, way.turn)
            message.conclude()
            if new is part:
                break

    @rule(
        queue_id=messages,
        action=st.sampled_from(OperatorAction),
        at=st.floats(0, 100),
        reason=st.none() | st.just("by hand"),
    )
    def change(self, queue_id: str, action: OperatorAction, at: float, reason: str | None) -> None:
        message = self.model.get(queue_id)
        held = message is not None and message.state is MessageState.HOLD
        possible = message is not None and not (action is OperatorAction.RETRY and held)
        self.ask(OperatorChange(row_key(queue_id), queue_id, action, at, reason), known=possible)
        if message is None or not possible:
            return
        parts = message.parts.values()
        if action is OperatorAction.DELETE:
            del self.model[queue_id]
        elif action is OperatorAction.HOLD:
            kept = message.reason if held else None
            message.reason = reason or kept or "held by the operator"
            for part in parts:
                part.state = MessageState.HOLD
            message.conclude()
        else:
            due = [
                part
                for part in parts
                if (part.state is MessageState.HOLD) == (action is OperatorAction.RELEASE)
            ]
            for part in due:
                part.due = message.due = at
                part.state = MessageState.ACTIVE if action is OperatorAction.RELEASE else part.state
            message.conclude()

    @rule()
    def commit(self) -> None:
        self.flush()

    @rule()
    def restart(self) -> None:
        self.stop()
        counted = self.counts
        self.start()
        for state in MessageState:
            assert self.counts.messages[state] == counted.messages[state]
            assert self.counts.octets[state] == counted.octets[state]

    @invariant()
    def agrees(self) -> None:
        if self.waiting:
            return
        listed, _ = self.listing.find(QueueFilter(), NO_WAITS, 1000, None)
        lines = {line.queue_id: line for line, _ in listed}
        assert lines.keys() == self.model.keys()
        for queue_id, message in self.model.items():
            line = lines[queue_id]
            assert (line.state, line.hold_reason, line.attempts) == (
                message.state,
                message.reason,
                message.attempts,
            )
            assert line.next_attempt_at == message.due
            assert line.pending == len(message.pending)
        for state in MessageState:
            assert self.counts.messages[state] == sum(
                message.state is state for message in self.model.values()
            )
            assert self.counts.octets[state] == 10 * self.counts.messages[state]
        destinations = dict(self.schedule.destinations(None, 1000))
        waiting: dict[str, list[Part]] = {}
        for message in self.model.values():
            for part in message.parts.values():
                waiting.setdefault(part.destination, []).append(part)
        assert destinations == {destination: _next_due(parts) for destination, parts in waiting.items()}
        paged: list[tuple[str, float | None]] = []
        while page := self.schedule.destinations(paged[-1][0] if paged else None, 1):
            paged += page
        assert paged == sorted(destinations.items())
        due = {
            (message.queue_id, message.part): (found.destination, {r.local for r in message.pending})
            for found in self.schedule.due(50.0, dict.fromkeys(destinations, 1000), {}, {}).value
            for message in found.messages
        }
        assert due == {
            (queue_id, number): (part.destination, part.names)
            for queue_id, message in self.model.items()
            for number, part in message.parts.items()
            if part.state is MessageState.ACTIVE or (part.state is MessageState.DEFERRED and part.due <= 50.0)
        }

    def teardown(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)


def _next_due(parts: list[Part]) -> float | None:
    if any(part.state is MessageState.ACTIVE for part in parts):
        return 0.0
    return min((part.due for part in parts if part.state is MessageState.DEFERRED), default=None)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
