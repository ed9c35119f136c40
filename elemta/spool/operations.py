"""What can be asked of the queue database: the reactor thread makes it, the commit thread carries it out."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from elemta.address import Address
from elemta.errors import SpoolError
from elemta.history.events import Place
from elemta.outcome import Outcome
from elemta.spool.records import HoldCause, MessageState, PlannedPart, Submission


@dataclass(slots=True, eq=False)
class Payment:
    """The sender need not hear any more of the deliveries to these recipients of a message; None is all."""

    key: int
    queue_id: str
    recipients: Collection[Address] | None

    @property
    def cost(self) -> int:
        return 256


@dataclass(slots=True, eq=False)
class NewMessage:
    """A message to take in. ``content`` is None where the body is in a file: synced, not yet renamed.

    A notice ``pays`` for what it tells of; it is taken in only where that is still owed. ``submission`` is
    what it was made of, for the history.
    """

    key: int
    queue_id: str
    state: MessageState
    received_at: float
    size: int
    pending: int
    hold_reason: str | None
    envelope: str
    header: bytes
    content: bytes | None
    parts: Sequence[PlannedPart]
    hold: HoldCause = HoldCause.OPERATOR
    pays: Payment | None = None
    submission: Submission | None = None
    cost: int = field(init=False)

    def __post_init__(self) -> None:
        content = 0 if self.content is None else len(self.content)
        self.cost = 64 * len(self.parts) + len(self.header) + len(self.envelope) + content


@dataclass(slots=True, eq=False)
class DeliveryResult:
    """What became of an attempt, and what to do with the recipients that are left.

    ``part`` is the number of the part that was attempted, None for the whole message. ``hold`` says what
    puts on hold what goes there, and ``at`` when. One that ``ends_hold`` counts only while the part is on a
    hold that has an end; else it is ``skipped``. Of the recipients in ``owes`` that are delivered the sender
    has still to hear: the message stays for that until a `Payment`.

    Once carried out, ``recorded`` are the outcomes that counted, each with the positions of its recipient,
    and ``before`` is how many outcomes the message had.
    """

    key: int
    queue_id: str
    outcomes: Sequence[Outcome]
    retry_at: float | None
    hold_reason: str | None
    part: int | None = None
    warned: bool = False
    attempted: bool = True
    hold: HoldCause = HoldCause.FAULT
    at: float = 0.0
    ends_hold: bool = False
    skipped: bool = False
    owes: Collection[Address] = ()
    recorded: Sequence[Place] = ()
    before: int = 0

    @property
    def cost(self) -> int:
        return 256 * len(self.outcomes)

    @property
    def tells(self) -> bool:
        """Whether it says what became of anything, so that it must be written, however late.

        One that only moves the time of a next attempt is asked for again.
        """
        return bool(self.outcomes) or self.warned or self.hold_reason is not None

    def bare(self) -> DeliveryResult:
        """The same without any text of others, for a database that can't keep that."""
        bare = [
            replace(each, text="", route="", next_hop="", enhanced="", code=0, at=0.0, seconds=0.0)
            for each in self.outcomes
        ]
        return replace(self, outcomes=bare)


@dataclass(slots=True, eq=False)
class Assignment:
    """Other destinations for the recipients of a part; those that it does not name stay."""

    key: int
    queue_id: str
    part: int
    parts: Sequence[PlannedPart]

    @property
    def cost(self) -> int:
        return 256 * len(self.parts)


class OperatorAction(enum.Enum):
    """What an operator can do to a message."""

    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"
    DELETE = "delete"


@dataclass(slots=True, eq=False)
class OperatorChange:
    """An operator's wish for one message. ``at`` is the time of a next attempt, ``reason`` that of a hold.

    A hold without one keeps the reason of a message that is held already.
    ``woken`` gets the destinations in which something is due by it. ``by`` is the operator, for the history.
    """

    key: int
    queue_id: str
    action: OperatorAction
    at: float
    reason: str | None
    woken: set[str] = field(default_factory=set)
    by: str = ""

    @property
    def cost(self) -> int:
        return 256


Operation = NewMessage | DeliveryResult | Assignment | OperatorChange | Payment


@dataclass(slots=True)
class QueueCounts:
    """How the numbers of the queue change: messages and octets by state.

    ``undeliverable`` is the space that undeliverable notices on hold take, in octets.
    """

    messages: Counter[MessageState] = field(default_factory=Counter)
    octets: Counter[MessageState] = field(default_factory=Counter)
    undeliverable: int = 0

    def enter(self, state: MessageState, size: int) -> None:
        self.messages[state] += 1
        self.octets[state] += size

    def leave(self, state: MessageState, size: int) -> None:
        self.messages[state] -= 1
        self.octets[state] -= size

    def add(self, other: QueueCounts) -> None:
        for state, number in other.messages.items():
            self.messages[state] += number
        for state, number in other.octets.items():
            self.octets[state] += number
        self.undeliverable += other.undeliverable


@dataclass(slots=True)
class Batch:
    """The operations of one transaction and what became of each.

    ``errors`` has an entry for each operation that was not done; ``freed`` are queue ids whose body file may
    go now that the transaction is on disk; ``broken`` is the failure after which nothing is trusted;
    ``unsettled`` how many results are left that could not be written; ``gone`` the keys of messages of
    which nothing is left.
    """

    operations: list[Operation]
    errors: dict[Operation, SpoolError] = field(default_factory=dict)
    counts: QueueCounts = field(default_factory=QueueCounts)
    freed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    broken: BaseException | None = None
    unsettled: int = 0
    gone: list[int] = field(default_factory=list)

    def open(self) -> list[Operation]:
        """The operations that nothing has gone wrong with yet."""
        if not self.errors:
            return self.operations
        return [operation for operation in self.operations if operation not in self.errors]

    def start_over(self) -> None:
        """Forget what was done: it was undone."""
        self.counts = QueueCounts()
        self.freed.clear()
        self.gone.clear()

    def refuse(self, operations: Iterable[Operation], error: SpoolError) -> None:
        for operation in operations:
            self.errors.setdefault(operation, error)
