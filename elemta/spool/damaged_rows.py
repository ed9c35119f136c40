"""Rows of the queue database that can't be read: each is put on hold, and the page that it is on goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from elemta.errors import SpoolError, UnknownMessage
from elemta.runtime.disk import read_text
from elemta.spool.operations import Operation, OperatorAction, OperatorChange, Payment

_log = Logger()

T = TypeVar("T")

# What reading a value of the wrong kind or shape raises.
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)

_LONGEST_REASON = 200
_MOST_FAILED = 10_000


@dataclass(frozen=True, slots=True)
class DamagedRow:
    """A message that can't be read, by its row, and why."""

    key: int
    queue_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What was asked for, and which rows on the way to it can't be read."""

    value: T
    damaged: tuple[DamagedRow, ...] = ()


def reason_of(error: BaseException) -> str:
    """What is wrong with a row, for the log and as the reason of a hold."""
    return f"its envelope can't be read: {type(error).__name__}: {error}"[:_LONGEST_REASON]


def read_rows(
    rows: Iterable[Sequence[Any]], decode: Callable[[Sequence[Any]], T]
) -> tuple[list[T], list[DamagedRow]]:
    """The rows decoded, without those that can't be; they begin with the queue id and end with the key."""
    found: list[T] = []
    damaged: list[DamagedRow] = []
    for row in rows:
        try:
            found.append(decode(row))
        except DAMAGE as error:
            queue_id = read_text(row[0]) if isinstance(row[0], bytes) else str(row[0])
            damaged.append(DamagedRow(row[-1], queue_id, reason_of(error)))
    return found, damaged


class DamagedRows:
    """Puts messages on hold that can't be read, for an operator to decide about; such a hold has no end.

    What a sender should have heard of such a message is dropped.
    """

    def __init__(self, submit: Callable[[Operation], Deferred[Any]], now: Callable[[], float]) -> None:
        self._submit = submit
        self._now = now
        self._at_work: set[int] = set()
        self._failed: set[int] = set()

    async def put_on_hold(self, rows: Iterable[DamagedRow]) -> bool:
        """All of them with one commit; whether each is. What is not is asked for again with its next page."""
        wanted = {row.key: row for row in rows if row.key not in self._at_work}
        doing = [Deferred.fromCoroutine(self._put_on_hold(row)) for row in wanted.values()]
        return all(done and held for done, held in await DeferredList(doing))

    async def write_off(self, rows: Sequence[DamagedRow]) -> None:
        """Drop, with one commit, the notices of deliveries that can't be written any more. SpoolError."""
        doing = [self._submit(Payment(row.key, row.queue_id, None)) for row in rows]
        for row, (done, result) in zip(rows, await DeferredList(doing, consumeErrors=True), strict=True):
            if done:
                _log.error(
                    "a sender gets no notice of a delivery: the message in the queue can't be read",
                    event="spool.owed_unreadable",
                    queue_id=row.queue_id,
                    row=row.key,
                    reason=row.reason,
                )
            elif result.check(UnknownMessage) is None:
                result.raiseException()

    async def _put_on_hold(self, row: DamagedRow) -> bool:
        self._at_work.add(row.key)
        try:
            await self._submit(
                OperatorChange(row.key, row.queue_id, OperatorAction.HOLD, self._now(), row.reason)
            )
        except SpoolError as error:
            self._not_held(row, error)
            return False
        finally:
            self._at_work.discard(row.key)
        self._failed.discard(row.key)
        _log.critical(
            "a message in the queue can't be read; it is on hold",
            event="spool.envelope_unreadable",
            queue_id=row.queue_id,
            row=row.key,
            reason=row.reason,
        )
        return True

    def _not_held(self, row: DamagedRow, error: SpoolError) -> None:
        if row.key in self._failed:
            return
        if len(self._failed) < _MOST_FAILED:
            self._failed.add(row.key)
        _log.error(
            "a message in the queue can't be read, and not be put on hold now",
            event="spool.unreadable_not_held",
            queue_id=row.queue_id,
            row=row.key,
            reason=f"{row.reason}; {error}",
        )
