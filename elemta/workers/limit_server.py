"""The limits of all workers of a host: the supervisor's end of :mod:`elemta.workers.limit_client`.

::

    server = LimitServer(membership.store)
    server.serve(channel)                        # before the channel is opened, one for each worker
    server.forget("mail-per-sender", "a@b.example")     # a reset elsewhere: all workers forget

The store is any that a node has: this process's memory, or Valkey with its own fallback. What a worker was
charged or holds is kept for its channel. When that closes, its leases are free at once, also those that the
store grants only then; what it was charged stays charged, as for a node that dies. A decision whose answer
came too late for the worker is taken back.

Charges are kept for as long as the worker may give them back, which it says, and :data:`MOST_CHARGES` of them
for each: the oldest can't be given back then, and its limit is stricter for a window. A worker may hold
:data:`MOST_LEASES`; beyond that its decisions fail.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.deferred_value import MaybeDeferred, Steps, handled, run
from elemta.errors import ChannelRefused, StoreUnavailable
from elemta.limits.pending_returns import quietly
from elemta.limits.store import Decision, LimitSpec, Ranking, Receipt, Request, Snapshot, Usage
from elemta.workers.channel import Channel
from elemta.workers.limit_bodies import (
    SharedSpecs,
    SpecTable,
    Words,
    distrust,
    number,
    read,
    snapshot_words,
    usage_words,
    write,
)
from elemta.workers.limit_client import (
    ACQUIRE,
    CANCEL,
    DECIDE,
    FAILED,
    HOLD,
    PEEK,
    RESET,
    RETURN,
    SNAPSHOT,
    TOP,
    UNAVAILABLE,
)

_log = Logger()

FORGET = "limits.forget"
"""A notice to a worker: a limit was reset for an identity."""

MOST_CHARGES = 200_000
"""Charges that are kept for one worker, to be given back if it asks for that."""

MOST_LEASES = 200_000
"""Leases that one worker may hold."""

MOST_OPERATIONS = 5_000
"""Decisions and returns of one batch."""

MOST_REQUESTS = 500_000
"""Requests of one decision: more do not fit into a frame."""


class ServedStore(Protocol):
    """The store of the supervisor: an ILimitStore that also takes over leases that were given without it."""

    def acquire(self, requests: Sequence[Request]) -> MaybeDeferred[Decision]: ...

    def refund(self, receipts: Sequence[Receipt]) -> MaybeDeferred[None]: ...

    def release(self, receipts: Sequence[Receipt]) -> MaybeDeferred[None]: ...

    def hold(self, request: Request) -> Receipt: ...

    def peek(self, requests: Sequence[Request]) -> MaybeDeferred[tuple[Usage, ...]]: ...

    def snapshot(self, requests: Sequence[Request]) -> MaybeDeferred[tuple[Snapshot, ...]]: ...

    def reset(self, spec: LimitSpec, identity: str) -> MaybeDeferred[bool]: ...

    def top(self, spec: LimitSpec, count: int) -> MaybeDeferred[Ranking]: ...


class LimitServer:
    """One store for the workers of a host. See the module's words."""

    def __init__(self, store: ServedStore) -> None:
        self._store = store
        self._specs = SharedSpecs()
        self._served: dict[Channel, ServedLimits] = {}

    def serve(self, channel: Channel) -> ServedLimits:
        """Answer what this worker asks of the limits, until its channel closes."""
        served = self._served[channel] = ServedLimits(
            self._store, SpecTable(self._specs), channel, self.forget
        )
        channel.on_close(lambda _: self._closed(channel))
        return served

    def _closed(self, channel: Channel) -> None:
        served = self._served.pop(channel, None)
        if served is not None:
            served.closed()

    def forget(self, limit: str, identity: str, but: Channel | None = None) -> None:
        """Have the workers forget what they know of an identity: it was reset. ``but``: this one knows."""
        for channel in list(self._served):
            if channel is not but:
                channel.tell(FORGET, write([limit, identity]))


class _Batch:
    """Answers that are collected until the last is there."""

    __slots__ = ("_missing", "answers", "whole")

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self._missing = 0
        self.whole: Deferred[bytes] | None = None

    def add(self, answer: object) -> None:
        self.answers.append(answer)

    def leave_place(self) -> int:
        self.answers.append(None)
        self._missing += 1
        return len(self.answers) - 1

    def fill(self, place: int, answer: object) -> None:
        self.answers[place] = answer
        self._missing -= 1
        if not self._missing and self.whole is not None:
            self.whole.callback(write(self.answers))

    def result(self) -> MaybeDeferred[bytes]:
        if not self._missing:
            return write(self.answers)
        self.whole = Deferred()
        return self.whole


class ServedLimits:
    """What one worker is charged and holds."""

    def __init__(
        self,
        store: ServedStore,
        specs: SpecTable,
        channel: Channel,
        forget: Callable[[str, str, Channel], None],
    ) -> None:
        self._store = store
        self._specs = specs
        self._channel = channel
        self._forget = forget
        self._charges: OrderedDict[int, Receipt] = OrderedDict()
        self._leases: dict[int, Receipt] = {}
        self._last = 0
        # Decisions that the store has not made yet, by the number of their first request.
        self._undecided: dict[int, int] = {}
        self._gone = False
        channel.handle(DECIDE, self._decide)
        channel.handle_notice(CANCEL, self._cancel)
        channel.handle(PEEK, self._peek)
        channel.handle(SNAPSHOT, self._snapshot)
        channel.handle(RESET, self._reset)
        channel.handle(TOP, self._top)

    @property
    def charges(self) -> int:
        """Charges that the worker may give back yet."""
        return len(self._charges)

    @property
    def leases(self) -> int:
        """Leases that it holds."""
        return len(self._leases)

    def closed(self) -> None:
        """The worker is gone: free its leases. What the store decides from now on is taken back."""
        self._gone = True
        leases, self._leases = list(self._leases.values()), {}
        self._charges.clear()
        self._quietly(self._store.release, leases)

    def _quietly(
        self, how: Callable[[Sequence[Receipt]], MaybeDeferred[None]], receipts: Sequence[Receipt]
    ) -> None:
        try:
            quietly(how, receipts)
        except Exception:
            # What the others of the batch ask is done all the same.
            _log.failure("a limit could not be given back", event="limits.internal_error")

    # Batches

    def _decide(self, body: bytes) -> MaybeDeferred[bytes]:
        with distrust("a batch of decisions"):
            specs, operations, unused = read(body)
            if len(operations) > MOST_OPERATIONS:
                raise ValueError
            self._specs.learn(specs)
            todo = [self._operation(words) for words in operations]
            unused = [number(each) for each in unused]
        batch = _Batch()
        for kind, first, subject in todo:
            if kind == ACQUIRE:
                self._acquire(batch, first, subject)
            elif kind == RETURN:
                self._give_back(subject)
            else:
                self._hold(first, subject[0])
        # Behind what is given back: the worker keeps nothing of that either.
        for each in unused:
            self._charges.pop(each, None)
        return batch.result()

    def _operation(self, words: Words) -> tuple[int, int, list[Any]]:
        kind = words[0]
        if kind == RETURN:
            return kind, 0, [number(each) for each in words[1]]
        _, first, about = words
        if kind not in (ACQUIRE, HOLD) or number(first) <= self._last:
            raise ValueError
        requests = self._specs.requests(about if kind == ACQUIRE else [about])
        # Numbers ascend, so that none is ever two charges.
        self._last = first + len(requests) - 1
        return kind, first, requests

    def _acquire(self, batch: _Batch, first: int, requests: list[Request]) -> None:
        if len(self._leases) >= MOST_LEASES:
            batch.add([UNAVAILABLE, "the worker holds too many leases"])
            return
        try:
            decision = self._store.acquire(requests)
        except Exception:
            # One decision fails, and is logged there; the others of the batch have their answers.
            batch.add(_trouble(Failure()))
            return
        if isinstance(decision, Decision):
            batch.add(self._decided(decision, first, requests))
            return
        place = batch.leave_place()
        self._undecided[first] = first
        handled(decision, self._decided_later, self._failed_later, batch, place, first, requests)

    def _decided_later(
        self, decision: Decision, batch: _Batch, place: int, first: int, requests: list[Request]
    ) -> None:
        if self._undecided.pop(first, None) is None or self._gone:
            # The worker is gone, or has decided by itself.
            self._take_back(decision.receipts)
            batch.fill(place, [False, [], []])
        else:
            batch.fill(place, self._decided(decision, first, requests))

    def _failed_later(
        self, failure: Failure, batch: _Batch, place: int, first: int, requests: list[Request]
    ) -> None:
        del requests
        self._undecided.pop(first, None)
        batch.fill(place, _trouble(failure))

    def _decided(self, decision: Decision, first: int, requests: list[Request]) -> object:
        """Keep what was charged, and say what the decision is."""
        receipts, denials = decision.receipts, decision.denials
        places = {id(request): place for place, request in enumerate(requests)}
        charged = []
        for receipt in receipts:
            place = places[id(receipt.request)]
            charged.append([place, receipt.at])
            self._keep(first + place, receipt)
        if receipts and decision.granted and not denials and len(receipts) == len(requests):
            at = receipts[0].at
            if all(receipt.at == at for receipt in receipts):
                return at
        denied = [[places[id(denial.request)], denial.wait, denial.provisional] for denial in denials]
        return [decision.granted, charged, denied]

    def _keep(self, known_by: int, receipt: Receipt) -> None:
        if receipt.is_lease:
            self._leases[known_by] = receipt
            return
        self._charges[known_by] = receipt
        if len(self._charges) > MOST_CHARGES:
            self._charges.popitem(last=False)

    def _hold(self, known_by: int, request: Request) -> None:
        if request.spec.leases is not None and len(self._leases) < MOST_LEASES:
            self._leases[known_by] = self._store.hold(request)

    def _give_back(self, numbers: Sequence[int]) -> None:
        charges = [receipt for each in numbers if (receipt := self._charges.pop(each, None)) is not None]
        leases = [receipt for each in numbers if (receipt := self._leases.pop(each, None)) is not None]
        self._quietly(self._store.refund, charges)
        self._quietly(self._store.release, leases)

    def _take_back(self, receipts: Sequence[Receipt]) -> None:
        self._quietly(self._store.refund, [receipt for receipt in receipts if not receipt.is_lease])
        self._quietly(self._store.release, [receipt for receipt in receipts if receipt.is_lease])

    def _cancel(self, body: bytes) -> None:
        """The worker did not wait for these decisions: it has made its own."""
        with distrust("a cancellation"):
            late = [(number(first), number(last)) for first, last in read(body)]
            if any(
                not 0 < first <= last <= self._last or last - first > MOST_REQUESTS for first, last in late
            ):
                raise ValueError
        for first, last in late:
            if self._undecided.pop(first, None) is None:
                self._give_back(range(first, last + 1))

    # Looks

    def _requests(self, body: bytes, what: str) -> list[Request]:
        with distrust(what):
            specs, asked = read(body)
            self._specs.learn(specs)
            return [self._specs.request(words) for words in asked]
        raise AssertionError

    def _peek(self, body: bytes) -> MaybeDeferred[bytes]:
        requests = self._requests(body, "a look")
        return run(self._look(lambda: self._store.peek(requests), lambda usages: _usages(usages, requests)))

    def _snapshot(self, body: bytes) -> MaybeDeferred[bytes]:
        requests = self._requests(body, "a snapshot")

        def words(copies: Sequence[Snapshot]) -> Words:
            return [snapshot_words(each, one.spec) for each, one in zip(copies, requests, strict=True)]

        return run(self._look(lambda: self._store.snapshot(requests), words))

    def _reset(self, body: bytes) -> MaybeDeferred[bytes]:
        request = self._one(body, "a reset")

        def known(was_counted: bool) -> bool:
            self._forget(request.spec.name, request.identity, self._channel)
            return was_counted

        return run(self._look(lambda: self._store.reset(request.spec, request.identity), known))

    def _top(self, body: bytes) -> MaybeDeferred[bytes]:
        request = self._one(body, "a ranking")
        spec, count = request.spec, min(request.amount, 1000)

        def words(ranking: Ranking) -> Words:
            return [ranking.complete, [usage_words(usage, spec) for usage in ranking.usages]]

        return run(self._look(lambda: self._store.top(spec, count), words))

    def _one(self, body: bytes, what: str) -> Request:
        requests = self._requests(body, what)
        with distrust(what):
            (request,) = requests
        return request

    def _look(self, how: Callable[[], MaybeDeferred[Any]], words: Callable[[Any], object]) -> Steps[bytes]:
        try:
            found = yield how()
        except StoreUnavailable as error:
            raise ChannelRefused(UNAVAILABLE, str(error)) from error
        return write(words(found))


def _usages(usages: Sequence[Usage], requests: Sequence[Request]) -> Words:
    return [usage_words(usage, one.spec) for usage, one in zip(usages, requests, strict=True)]


def _trouble(failure: Failure) -> Words:
    if failure.check(StoreUnavailable):
        return [UNAVAILABLE, failure.getErrorMessage()]
    _log.failure("a worker's limits could not be decided", failure, event="limits.internal_error")
    return [FAILED]
