"""What a worker and its supervisor write to each other about limits: JSON, read back with distrust.

A limit's spec is sent once and has a number from then on. The numbers of a worker's requests ascend; a charge
or a lease is known by the number of the request that it was made for, so nothing has to be agreed on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from elemta.config import WhenValkeyIsDown
from elemta.limits.store import LimitSpec, Request, Snapshot, Usage
from elemta.limits.window import Bound, WindowCounter
from elemta.workers.frames import FrameError

MOST_SPECS = 2000
"""So many specs have numbers at a time; beyond that all get new ones."""

Words: TypeAlias = list[Any]
"""A part of a body, as JSON has it."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


def write(words: object) -> bytes:
    """A body. Text that is no Unicode is kept."""
    return _encode(words).encode("ascii")


def read(body: bytes) -> Any:
    """What a body says. Raises FrameError where it is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a body is no JSON: {error}") from error


@contextmanager
def distrust(what: str) -> Iterator[None]:
    """Make of a wrong shape a FrameError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise FrameError(f"{what} has another shape: {type(error).__name__}") from error


def number(value: object) -> int:
    """A whole number. Raises TypeError."""
    if type(value) is not int:
        raise TypeError
    return value


def text(value: object) -> str:
    """A text. Raises TypeError."""
    if type(value) is not str:
        raise TypeError
    return value


# Specs


def spec_words(spec: LimitSpec) -> Words:
    """A spec, whole."""
    flags = spec.binding | spec.cluster << 1 | spec.of_session << 2
    bounds = [[bound.limit, bound.window, bound.grain] for bound in spec.bounds]
    return [spec.name, bounds, spec.leases, flags, spec.when_down.value]


def read_spec(words: Words) -> LimitSpec:
    """Raises what :func:`distrust` catches."""
    name, bounds, leases, flags, when_down = words
    return LimitSpec(
        text(name),
        tuple(_bound(*bound) for bound in bounds),
        None if leases is None else number(leases),
        binding=bool(flags & 1),
        cluster=bool(flags & 2),
        of_session=bool(flags & 4),
        when_down=WhenValkeyIsDown(when_down),
    )


def _bound(limit: object, window: object, grain: object) -> Bound:
    bound = Bound(number(limit), number(window), number(grain))
    if bound.limit < 0 or bound.window <= 0 or bound.grain <= 0:
        raise ValueError
    return bound


class SpecNumbers:
    """The numbers of specs, at the end that sends them."""

    def __init__(self) -> None:
        # By the object: a spec takes long to hash. It is kept, so that its id stays its own.
        self._known: dict[int, tuple[LimitSpec, int]] = {}
        self._new: list[Words] = []
        self._started_anew = True

    def of(self, spec: LimitSpec) -> int:
        known = self._known.get(id(spec))
        if known is None:
            known = self._known[id(spec)] = (spec, len(self._known))
            self._new.append(spec_words(spec))
        return known[1]

    def requests(self, requests: Sequence[Request]) -> Words:
        return [[self.of(each.spec), each.identity, each.amount] for each in requests]

    def new(self) -> Words:
        """What the other end has to know beside what it knows: whether to forget all, and the specs."""
        words = [self._started_anew, self._new]
        self._started_anew, self._new = False, []
        return words

    def leave_space(self) -> None:
        """To be called before a body is begun."""
        if len(self._known) >= MOST_SPECS:
            self._known, self._new, self._started_anew = {}, [], True


class SpecTable:
    """The specs that one worker sent, at the end that reads them. ``shared`` are those of all workers."""

    def __init__(self, shared: Callable[[LimitSpec], LimitSpec]) -> None:
        self._shared = shared
        self._known: list[LimitSpec] = []

    def learn(self, words: Words) -> None:
        """Raises what :func:`distrust` catches."""
        anew, specs = words
        if anew:
            self._known = []
        # A request may bring one more than the bound before the worker begins anew.
        if len(self._known) + len(specs) > 2 * MOST_SPECS:
            raise ValueError
        self._known += [self._shared(read_spec(spec)) for spec in specs]

    def spec(self, place: object) -> LimitSpec:
        place = number(place)
        if place < 0:
            raise IndexError
        return self._known[place]

    def request(self, words: Words) -> Request:
        place, identity, amount = words
        if number(amount) < 0:
            raise ValueError
        return Request(self.spec(place), text(identity), amount)

    def requests(self, words: Words) -> list[Request]:
        requests = [self.request(each) for each in words]
        if len(requests) > 1 and len({request.key for request in requests}) != len(requests):
            raise ValueError
        return requests


class SharedSpecs:
    """One object for equal specs of all workers, so that what is counted by them is found fast."""

    def __init__(self) -> None:
        self._known: dict[LimitSpec, LimitSpec] = {}

    def __call__(self, spec: LimitSpec) -> LimitSpec:
        if len(self._known) >= MOST_SPECS:
            self._known = {}
        return self._known.setdefault(spec, spec)


# What is looked at


def usage_words(usage: Usage, asked: LimitSpec | None) -> Words:
    """A usage; its spec only where that is another than what was asked about."""
    spec = usage.request.spec
    return [
        usage.request.identity,
        usage.request.amount,
        list(usage.used),
        usage.wait,
        None if spec is asked else spec_words(spec),
    ]


def read_usage(words: Words, asked: LimitSpec) -> Usage:
    """Raises what :func:`distrust` catches."""
    identity, amount, used, wait, spec = words
    request = Request(asked if spec is None else read_spec(spec), text(identity), number(amount))
    return Usage(request, tuple(map(number, used)), None if wait is None else number(wait))


def snapshot_words(copied: Snapshot, asked: LimitSpec) -> Words:
    """A snapshot, as :func:`usage_words`."""
    request, counter = copied.request, copied.counter
    flags = copied.allowed | copied.unavailable << 1 | copied.alone << 2
    spec = None if request.spec is asked else spec_words(request.spec)
    bounds = [[bound.limit, bound.window, bound.grain] for bound in counter.bounds]
    return [copied.now, bounds, counter.charges(), copied.leases, copied.turn, flags, spec]


def read_snapshot(words: Words, asked: Request) -> Snapshot:
    """Raises what :func:`distrust` catches."""
    now, bounds, charges, leases, turn, flags, spec = words
    if spec is not None:
        asked = Request(read_spec(spec), asked.identity, asked.amount)
    known = [[(number(at), number(amount)) for at, amount in series] for series in charges]
    return Snapshot(
        asked,
        number(now),
        WindowCounter.of_charges(tuple(_bound(*bound) for bound in bounds), known),
        number(leases),
        number(turn),
        allowed=bool(flags & 1),
        unavailable=bool(flags & 2),
        alone=bool(flags & 4),
    )
