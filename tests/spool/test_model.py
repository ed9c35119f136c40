"""Whatever is asked of the queue in whatever order, it agrees with a model of a few lines."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from elemta.outcome import Status
from elemta.spool import Disk, SpoolSettings, State
from elemta.spool.operations import Action, Change, NewMessage, Settlement
from elemta.spool.partition import Partition
from elemta.spool.queries import Queries
from elemta.spool.queueid import QueueIds, row_key
from elemta.spool.rows import encode_envelope
from elemta.spool.store import Store
from tests.spool.mail import outcome, submission

NAMES = ("ann", "bob", "cyd")


@dataclass
class Modelled:
    state: State
    due: float
    reason: str | None = None
    attempts: int = 0
    pending: set[str] = field(default_factory=lambda: set(NAMES))


class Queue(RuleBasedStateMachine):
    messages = Bundle("messages")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.settings = SpoolSettings(self.directory, reserve=4096)
        self.ids = QueueIds(lambda: 1.7e9)
        self.model: dict[str, Modelled] = {}
        self.waiting: list[object] = []
        self.expected: list[bool] = []
        self.start()

    def start(self) -> None:
        disk = Disk()
        self.partition = Partition(self.directory, 0, disk)
        self.partition.claim()
        self.store = Store(self.settings, self.partition.places, disk)
        self.ledger = self.store.open()
        self.queries = Queries(self.partition.places, disk)

    def stop(self) -> None:
        self.flush()
        self.queries.close()
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
        self.ledger.add(batch.ledger)
        self.waiting, self.expected = [], []

    @rule(target=messages, reason=st.none() | st.just("quarantined"))
    def take_in(self, reason: str | None) -> str:
        queue_id = self.ids.next()
        given = submission(*NAMES, hold_reason=reason, at=5.0)
        state = State.HOLD if reason else State.ACTIVE
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
            )
        )
        self.flush()  # no one can name a message before its commit
        self.model[queue_id] = Modelled(state, 5.0, reason)
        return queue_id

    @rule(
        queue_id=messages,
        said=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(Status)),
        retry_at=st.none() | st.floats(0, 100),
        reason=st.none() | st.just("failed"),
    )
    def settle(
        self, queue_id: str, said: dict[str, Status], retry_at: float | None, reason: str | None
    ) -> None:
        outcomes = [outcome(queue_id, name, status) for name, status in said.items()]
        self.ask(Settlement(row_key(queue_id), queue_id, outcomes, retry_at, reason))
        message = self.model.get(queue_id)
        if message is None:
            return
        for name, status in said.items():
            if status is Status.DELIVERED or (status is Status.FAILED and reason is None):
                message.pending.discard(name)
        if not message.pending:
            del self.model[queue_id]
        elif reason is not None:
            message.state, message.reason, message.attempts = State.HOLD, reason, message.attempts + 1
        elif retry_at is not None:
            message.due, message.attempts = retry_at, message.attempts + 1
            if message.state is not State.HOLD:
                message.state = State.DEFERRED

    @rule(queue_id=messages, action=st.sampled_from(Action), at=st.floats(0, 100))
    def change(self, queue_id: str, action: Action, at: float) -> None:
        message = self.model.get(queue_id)
        held = message is not None and message.state is State.HOLD
        possible = message is not None and not (action is Action.RETRY and held)
        self.ask(Change(row_key(queue_id), queue_id, action, at, "by hand"), known=possible)
        if message is None or not possible:
            return
        if action is Action.DELETE:
            del self.model[queue_id]
        elif action is Action.HOLD:
            message.state, message.reason = State.HOLD, "by hand"
        elif action is Action.RETRY:
            message.due = at
        elif held:
            message.state, message.reason, message.due = State.ACTIVE, None, at

    @rule()
    def commit(self) -> None:
        self.flush()

    @rule()
    def restart(self) -> None:
        self.stop()
        counted = self.ledger
        self.start()
        for state in State:
            assert self.ledger.messages[state] == counted.messages[state]
            assert self.ledger.octets[state] == counted.octets[state]

    @invariant()
    def agrees(self) -> None:
        if self.waiting:
            return
        lines = {line.queue_id: line for line in self.queries.page(None, 1000, None)}
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
        for state in State:
            assert self.ledger.messages[state] == sum(
                message.state is state for message in self.model.values()
            )
            assert self.ledger.octets[state] == 10 * self.ledger.messages[state]
        due = self.queries.due(50.0, 1000, ())
        assert {message.queue_id: {r.local for r in message.pending} for message in due} == {
            queue_id: message.pending
            for queue_id, message in self.model.items()
            if message.state is State.ACTIVE or (message.state is State.DEFERRED and message.due <= 50.0)
        }

    def teardown(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
