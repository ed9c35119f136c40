"""A copy decides as the store that it is made of would, and leaves that as it was."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from twisted.internet.task import Clock

from elemta.config import WhenValkeyIsDown
from elemta.errors import StoreUnavailable
from elemta.limits.local_fallback import LocalFallback
from elemta.limits.memory import LocalStore
from elemta.limits.scratch_store import ScratchStore
from elemta.limits.store import Decision, LimitSpec, Request
from elemta.limits.window import Bound

SECOND = 1_000_000
SPECS = (
    LimitSpec("exact", (Bound.of(5, 10 * SECOND), Bound.of(9, 60 * SECOND))),
    LimitSpec("buckets", (Bound.of(300, 30 * SECOND),)),
    LimitSpec("octets", (Bound.of(5000, 20 * SECOND, weighted=True),)),
    LimitSpec("open", leases=3),
    LimitSpec("watched", (Bound.of(2, 60 * SECOND),), binding=False),
    LimitSpec("node", (Bound.of(4, 15 * SECOND),), cluster=False),
    LimitSpec("allowed", (Bound.of(1, 60 * SECOND),), when_down=WhenValkeyIsDown.ALLOW),
    LimitSpec("none", (Bound.of(0, SECOND),)),
)
DEFERS = LimitSpec("defers", (Bound.of(2, 60 * SECOND),), when_down=WhenValkeyIsDown.DEFER)


class Alone:
    """The decisions of one of three nodes that Valkey does not answer, as a store."""

    def __init__(self, local: LocalStore) -> None:
        self._fallback = LocalFallback(local, lambda: 3, lambda _: None)
        self.seconds = local.seconds
        self.acquire = self._fallback.acquire
        self.snapshot = self._fallback.snapshot
        self.peek = self._fallback.peek
        self.release = local.release
        self.refund = local.refund


def decided(answer: Any) -> Any:
    """What a decision says, whatever made it."""
    assert isinstance(answer, Decision)
    denials = [(denial.request.key, denial.wait, denial.provisional) for denial in answer.denials]
    return answer.granted, [receipt.key for receipt in answer.receipts], denials


def attempt(store: Any, requests: Sequence[Request]) -> Any:
    try:
        return decided(store.acquire(requests))
    except StoreUnavailable:
        return "unavailable"


@pytest.mark.parametrize("kind", [LocalStore, Alone], ids=["memory", "alone"])
@pytest.mark.parametrize("seed", range(4))
def test_a_conversation_on_a_copy_is_decided_as_it_would_be_and_the_store_is_as_it_was(
    kind: Any, seed: int
) -> None:
    chance, clock = Random(seed), Clock()
    clock.advance(1_000_000.123457)
    local = LocalStore(clock)
    real = local if kind is LocalStore else Alone(local)
    outcomes: dict[str, int] = {}
    for _ in range(150):
        clock.advance(chance.choice((0.0, 0.3, 1.0, 4.0, 20.0)))
        conversation = [_requests(chance, kind is Alone) for _ in range(chance.randint(1, 4))]
        before = _state(local, clock)
        scratch = ScratchStore(real)
        supposed = [attempt(scratch, requests) for requests in conversation]
        asked = [request for requests in conversation for request in requests if request.spec is not DEFERS]
        peeked = scratch.peek(asked)
        assert _state(local, clock) == before
        happened = []
        for requests in conversation:
            happened.append(attempt(real, requests))
            outcomes[str(happened[-1])[:6]] = 1
        assert supposed == happened
        now = real.peek(asked)
        assert [(usage.used, usage.wait) for usage in peeked] == [(usage.used, usage.wait) for usage in now]
        # Connections are closed, or all would stay open.
        local._tables.pop("open", None)
    assert len(outcomes) >= 2


def _requests(chance: Random, alone: bool) -> list[Request]:
    specs = [*SPECS, *([DEFERS] if alone and chance.random() < 0.1 else [])]
    amounts = {"octets": chance.randint(1, 3000), "buckets": chance.choice((1, 40))}
    return [
        Request(spec, chance.choice("ab"), amounts.get(spec.name, 1))
        for spec in chance.sample(specs, chance.randint(1, 3))
    ]


def _state(local: LocalStore, clock: Clock) -> Any:
    now = int(clock.seconds() * SECOND)
    return {
        name: (
            dict(table._packed.items()),
            {key: counter.copy().used(now) for key, counter in table._counters.items()},
            dict(table.leases),
        )
        for name, table in local._tables.items()
        if len(table) or table.leases
    }


def test_what_was_charged_on_a_copy_can_be_given_back_there() -> None:
    clock = Clock()
    real = LocalStore(clock)
    scratch = ScratchStore(real)
    wanted = [Request(SPECS[0], "a"), Request(SPECS[3], "a")]
    charged = scratch.acquire(wanted)
    assert isinstance(charged, Decision)
    scratch.refund(charged.receipts)
    scratch.release(charged.receipts)
    scratch.refund(charged.receipts)
    usages: Any = scratch.peek(wanted)
    assert [usage.used for usage in usages] == [(0, 0), (0,)]
