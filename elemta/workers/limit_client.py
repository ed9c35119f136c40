"""The limits of a worker: counted by the supervisor for all workers of the host, over the channel.

:func:`worker_store` makes the store that a :class:`~elemta.limits.Limiter` uses::

    store = worker_store(reactor, channel, LocalStore(runtime), nodes=nodes, deadline=0.05)
    store.start()

It is the store that a node has beside Valkey (:class:`~elemta.limits.failover_store.FailoverStore`), with the
supervisor in the place of Valkey: the same breaker and the same way back. While the supervisor does not
answer within the deadline, this worker decides by its share. Limits of one node are counted there, too: for
them as well the workers are one.

What is asked in one turn of the reactor goes in one frame, and one answer comes back. A decision that has no
answer in time is made here; what the supervisor may have charged for it is taken back by a notice, behind
the question on the same channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.errors import (
    ChannelBusy,
    ChannelClosed,
    ChannelError,
    ChannelRefused,
    ChannelTimeout,
    StoreUndecided,
    ValkeyError,
    ValkeyFailure,
)
from elemta.limits.failover import CountingMode
from elemta.limits.failover_store import ClusterNodes, FailoverStore
from elemta.limits.memory import LocalStore
from elemta.limits.store import Decision, Denial, LimitSpec, Ranking, Receipt, Request, Snapshot, Usage
from elemta.metrics import LimitMetrics
from elemta.workers.channel import Channel
from elemta.workers.frames import FrameError
from elemta.workers.limit_bodies import (
    SpecNumbers,
    Words,
    distrust,
    number,
    read,
    read_snapshot,
    read_usage,
    text,
    write,
)

_log = Logger()

DECIDE, CANCEL = "limits.decide", "limits.cancel"
PEEK, SNAPSHOT, RESET, TOP = "limits.peek", "limits.snapshot", "limits.reset", "limits.top"

ACQUIRE, RETURN, HOLD = 0, 1, 2
"""What may be in a batch, in the order in which it was asked for."""

UNAVAILABLE = "unavailable"
"""The code of a refusal, and the mark of a decision: the supervisor's store can't decide."""

FAILED = "failed"
"""The mark of a decision: an internal error, which the supervisor has logged."""

MOST_WAITING = 2048
"""Decisions of one worker that may wait for the supervisor."""

MOST_IN_A_FRAME = 1000
"""Requests of one frame."""

RENEWAL_SECONDS = 3.0
"""How often leases that this worker gave by itself, while one decision had no answer, are written there."""

LOOK_SECONDS = 1.0
"""The deadline of what no session waits for."""

SUPERVISOR_SHARE = 0.8
"""The part of the configured deadline within which the supervisor itself waits for Valkey.

So a Valkey that is slow is the supervisor's matter, and no worker takes it for a supervisor that is gone.
"""

AGAIN_SECONDS = 0.1
"""When what was given back is sent again, where the channel had no space for it."""

T = TypeVar("T")


class _Charge:
    """What a receipt of a charge is known by. When the last reference goes, so can the supervisor's."""

    __slots__ = ("_unused", "number")

    def __init__(self, number: int, unused: list[int]) -> None:
        self.number = number
        self._unused = unused

    def __del__(self) -> None:
        self._unused.append(self.number)


class _Lease:
    """What a lease is known by."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class _Asked:
    """A decision that waits: its requests, which are numbered from ``first`` on."""

    __slots__ = ("answer", "first", "requests")

    def __init__(self, requests: Sequence[Request], first: int) -> None:
        self.requests = requests
        self.first = first
        self.answer: Deferred[Decision] = Deferred()

    def words(self, specs: SpecNumbers) -> Words:
        return [ACQUIRE, self.first, specs.requests(self.requests)]


class _Returned:
    """What is given back, by number."""

    __slots__ = ("_numbers",)

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers

    def words(self, specs: SpecNumbers) -> Words:
        del specs
        return [RETURN, self._numbers]


class _Held:
    """A lease that was given without asking."""

    __slots__ = ("_number", "_request")

    def __init__(self, number: int, request: Request) -> None:
        self._number = number
        self._request = request

    def words(self, specs: SpecNumbers) -> Words:
        return [HOLD, self._number, specs.requests([self._request])[0]]


class ChannelLimitStore:
    """The supervisor's store, as a worker asks it: one for each channel. Its calls end within ``deadline``.

    They fail with :class:`~elemta.errors.ValkeyError` where the supervisor does not answer, which is what a
    FailoverStore knows, and with :class:`~elemta.errors.StoreUndecided` where it answers that it can't.
    """

    renewal: float | None = RENEWAL_SECONDS

    def __init__(self, clock: IReactorTime, channel: Channel, deadline: float) -> None:
        self._clock = clock
        self._channel = channel
        self.deadline = deadline
        self._specs = SpecNumbers()
        self._batch: list[_Asked | _Returned | _Held] = []
        self._waiting = 0
        self._last = 0
        self._in_batch = 0
        self._unused: list[int] = []
        self._turn: IDelayedCall | None = None

    # The link, as a FailoverStore asks for it

    @property
    def up(self) -> bool:
        return self._channel.is_open

    def on_change(self, callback: Callable[[bool], None]) -> None:
        self._channel.on_close(lambda _: callback(False))

    # Decisions

    def acquire(self, requests: Sequence[Request]) -> Deferred[Decision]:
        if not requests:
            return succeed(Decision())
        if self._waiting >= MOST_WAITING:
            return fail(ValkeyError(ValkeyFailure.OVERLOADED, "too many decisions are under way"))
        self._begin(len(requests))
        asked = _Asked(requests, self._last + 1)
        self._last += len(requests)
        self._batch.append(asked)
        self._waiting += 1
        return asked.answer

    def refund(self, receipts: Sequence[Receipt]) -> None:
        self._give_back([receipt for receipt in receipts if isinstance(receipt.origin, _Charge)])

    def release(self, receipts: Sequence[Receipt]) -> None:
        self._give_back([receipt for receipt in receipts if isinstance(receipt.origin, _Lease)])

    def _give_back(self, receipts: Sequence[Receipt]) -> None:
        numbers = []
        for receipt in receipts:
            origin = receipt.origin
            if not receipt.settled and isinstance(origin, (_Charge, _Lease)):
                receipt.settled = True
                numbers.append(origin.number)
        if numbers and self._channel.is_open:
            self._begin(len(numbers))
            self._batch.append(_Returned(numbers))

    def hold(self, request: Request) -> Receipt:
        self._begin(1)
        self._last += 1
        self._batch.append(_Held(self._last, request))
        return Receipt(request, 0, _Lease(self._last))

    def renew(self) -> None:
        """Nothing: the supervisor frees leases when the channel closes, and not before."""

    def _begin(self, more: int) -> None:
        if self._in_batch + more > MOST_IN_A_FRAME:
            self._send()
        self._in_batch += more
        if self._turn is None:
            self._turn = self._clock.callLater(0, self._send)

    def _send(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None and turn.active():
            turn.cancel()
        batch, self._batch, self._in_batch = self._batch, [], 0
        if not batch:
            return
        unused = self._unused[:]
        del self._unused[: len(unused)]
        self._specs.leave_space()
        words = [each.words(self._specs) for each in batch]
        answer = self._channel.ask(DECIDE, write([self._specs.new(), words, unused]), self.deadline)
        asked = [each for each in batch if isinstance(each, _Asked)]
        answer.addCallback(self._answered, asked)
        answer.addErrback(self._unanswered, asked, batch)

    def _answered(self, body: bytes, asked: Sequence[_Asked]) -> None:
        with self._checked(), distrust("the answer to a batch"):
            answers = read(body)
            decided = [
                _decision(words, each, self._unused) for words, each in zip(answers, asked, strict=True)
            ]
        self._waiting -= len(asked)
        for decision, each in zip(decided, asked, strict=True):
            if isinstance(decision, Decision) and each.answer.called:
                self.release(decision.receipts)
                self.refund(decision.receipts)
            elif each.answer.called:
                continue
            elif isinstance(decision, Decision):
                each.answer.callback(decision)
            else:
                each.answer.errback(decision)

    def _checked(self) -> _Checked:
        return _Checked(self._channel)

    def _unanswered(
        self, failure: Failure, asked: Sequence[_Asked], batch: Sequence[_Asked | _Returned | _Held]
    ) -> None:
        self._waiting -= len(asked)
        if failure.check(ChannelBusy):
            self._send_again([each for each in batch if not isinstance(each, _Asked)])
        elif asked and failure.check(ChannelTimeout):
            # It may come to pass yet.
            late = [[each.first, each.first + len(each.requests) - 1] for each in asked]
            self._channel.tell(CANCEL, write(late))
        error = as_unavailable(failure)
        for each in asked:
            if not each.answer.called:
                each.answer.errback(error)

    def _send_again(self, batch: Sequence[_Returned | _Held]) -> None:
        """The frame was not sent: no decision is asked again, but what was given back must not be lost."""
        self._specs = SpecNumbers()
        self._batch[:0] = batch
        if self._batch and self._turn is None:
            self._turn = self._clock.callLater(AGAIN_SECONDS, self._send)

    # Looks

    def peek(self, requests: Sequence[Request]) -> Deferred[tuple[Usage, ...]]:
        def usages(words: Words) -> tuple[Usage, ...]:
            return tuple(read_usage(each, one.spec) for each, one in zip(words, requests, strict=True))

        return self._look(PEEK, self._specs_of(requests), usages, self.deadline)

    def snapshot(self, requests: Sequence[Request]) -> Deferred[tuple[Snapshot, ...]]:
        def copies(words: Words) -> tuple[Snapshot, ...]:
            return tuple(read_snapshot(each, one) for each, one in zip(words, requests, strict=True))

        return self._look(SNAPSHOT, self._specs_of(requests), copies, self.deadline)

    def reset(self, spec: LimitSpec, identity: str) -> Deferred[bool]:
        words = [self._specs_of([Request(spec, identity)])]
        return self._look(RESET, words[0], bool, LOOK_SECONDS)

    def top(self, spec: LimitSpec, count: int) -> Deferred[Ranking]:
        def ranking(words: Words) -> Ranking:
            complete, usages = words
            return Ranking(tuple(read_usage(each, spec) for each in usages), complete=bool(complete))

        return self._look(TOP, self._specs_of([Request(spec, "", count)]), ranking, LOOK_SECONDS)

    def _specs_of(self, requests: Sequence[Request]) -> Words:
        # What was asked before is decided before.
        self._send()
        self._specs.leave_space()
        asked = self._specs.requests(requests)
        return [self._specs.new(), asked]

    def _not_looked(self, failure: Failure) -> Any:
        if failure.check(ChannelBusy):
            self._send_again([])
        raise as_unavailable(failure)

    def _look(self, name: str, words: Words, reader: Callable[[Any], T], seconds: float) -> Deferred[T]:
        def seen(body: bytes) -> T:
            with self._checked(), distrust("what was looked at"):
                return reader(read(body))
            raise AssertionError

        answer = self._channel.ask(name, write(words), seconds)
        return answer.addCallback(seen).addErrback(self._not_looked)


class _Checked:
    """What the supervisor answers wrong closes the channel, and counts as no answer."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FrameError):
            self._channel.break_off(str(error))
            raise ChannelClosed(str(error)) from error


def _decision(words: Any, asked: _Asked, unused: list[int]) -> Decision | Exception:
    requests = asked.requests
    if type(words) is int:
        return Decision(tuple([_receipt(asked, place, words, unused) for place in range(len(requests))]))
    mark, *rest = words
    if mark == UNAVAILABLE:
        return StoreUndecided(text(rest[0]))
    if mark == FAILED:
        return ChannelRefused(FAILED, "the supervisor could not decide because of an internal error")
    charged, denied = rest
    receipts = [_receipt(asked, number(place), number(at), unused) for place, at in charged]
    denials = [
        Denial(requests[number(place)], None if wait is None else number(wait), bool(provisional))
        for place, wait, provisional in denied
    ]
    return Decision(tuple(receipts), tuple(denials), bool(mark))


def _receipt(asked: _Asked, place: int, at: int, unused: list[int]) -> Receipt:
    if place < 0:
        raise IndexError
    request, known_by = asked.requests[place], asked.first + place
    if request.spec.leases is None:
        return Receipt(request, at, _Charge(known_by, unused))
    return Receipt(request, at, _Lease(known_by))


_FAILURES = {
    ChannelClosed: ValkeyFailure.DISCONNECTED,
    ChannelTimeout: ValkeyFailure.DEADLINE,
    ChannelBusy: ValkeyFailure.OVERLOADED,
}


def as_unavailable(failure: Failure) -> Exception:
    """A failure of the channel as the limits know it: as one of the shared store."""
    error = failure.value
    if isinstance(error, ChannelRefused):
        return StoreUndecided(str(error)) if error.code == UNAVAILABLE else error
    if isinstance(error, ChannelError) and type(error) in _FAILURES:
        return ValkeyError(_FAILURES[type(error)], str(error))
    return error if isinstance(error, Exception) else ChannelClosed(str(error))


def worker_store(
    clock: IReactorTime,
    channel: Channel,
    local: LocalStore,
    *,
    nodes: ClusterNodes,
    deadline: float,
    metrics: LimitMetrics | None = None,
) -> FailoverStore:
    """The store of a worker. ``nodes.live`` is by how many a limit is divided while it decides alone.

    ``deadline`` is the seconds that a session waits for the supervisor. ``local`` is this worker's own
    memory, which notes what the supervisor granted.
    """
    remote = ChannelLimitStore(clock, channel, deadline)
    return FailoverStore(
        clock, remote, remote, local, nodes=nodes, metrics=metrics, host_wide=True, say=_log_mode
    )


def _log_mode(mode: CountingMode, seconds: float, reason: str, live_nodes: int) -> None:
    if mode is CountingMode.CLUSTER:
        _log.info("limits are counted at the supervisor", event="worker.limits_shared", after_seconds=seconds)
    else:
        _log.warn(
            "limits are counted by this worker alone, because the supervisor does not answer",
            event="worker.limits_alone",
            reason=reason,
            parts=live_nodes,
        )
