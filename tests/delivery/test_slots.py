"""Which delivery may have a connection: bounds that hold, and turns."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import sampled_from
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elemta.delivery.slots import ConnectionSlot, ConnectionSlots, NoSlotError


class Desk:
    """Slots, and what was granted in the order in which it was."""

    def __init__(self, per_destination: int = 2) -> None:
        self.clock = Clock()
        self.slots: ConnectionSlots[str] = ConnectionSlots(self.clock, per_destination)
        self.granted: list[Any] = []
        self.refused: list[str] = []

    def want(self, destination: str, *, route: str = "mx:", most: int = 3, usable: str = "") -> Deferred[Any]:
        wanted = self.slots.acquire(route, destination, most, 60.0, lambda connection: connection == usable)
        wanted.addCallbacks(self.granted.append, self._refused)
        return wanted

    def _refused(self, failure: Any) -> None:
        failure.trap(NoSlotError)
        self.refused.append(str(failure.value))

    @property
    def destinations(self) -> list[str]:
        return [slot.destination for slot in self.granted]


def test_a_route_and_a_destination_have_their_bounds() -> None:
    desk = Desk()
    for destination in ("a", "a", "a", "b", "b"):
        desk.want(destination)
    assert desk.destinations == ["a", "a", "b"]
    assert desk.slots.is_full("mx:", "c", 3)
    assert not desk.slots.is_full("smtp://other", "c", 3)


def test_without_a_destination_only_the_route_counts() -> None:
    desk = Desk()
    for _ in range(5):
        desk.want("", route="smtp://smarthost", most=4)
    assert len(desk.granted) == 4


def test_what_is_given_back_goes_to_destinations_in_turn() -> None:
    desk = Desk(per_destination=9)
    for destination in "aaaaaabbcc":
        desk.want(destination, most=1)
    order = []
    while desk.granted:
        slot = desk.granted.pop(0)
        order.append(slot.destination)
        desk.slots.release(slot)
    assert "".join(order) == "aabcabcaaa"


def test_a_destination_that_is_full_does_not_keep_the_others_waiting() -> None:
    desk = Desk(per_destination=1)
    for destination in ("a", "a", "a", "b"):
        desk.want(destination)
    assert desk.destinations == ["a", "b"]


def test_who_waits_too_long_is_told_and_forgotten() -> None:
    desk = Desk()
    desk.want("a", most=1)
    desk.want("a", most=1)
    desk.clock.advance(59)
    assert not desk.refused
    desk.clock.advance(2)
    assert desk.refused == ["no connection was free within 60 s: all that are allowed are busy"]
    desk.slots.release(desk.granted[0])
    assert len(desk.granted) == 1
    assert not desk.slots._lines
    assert not desk.clock.getDelayedCalls()


def test_a_connection_is_passed_on_to_who_can_use_it_and_keeps_its_slot() -> None:
    desk = Desk()
    desk.want("a", most=1)
    slot = desk.granted.pop()
    desk.want("a", most=1, usable="x")
    desk.want("b", most=1, usable="y")
    assert desk.slots.others_wait(slot)
    assert not desk.slots.pass_on(slot, "y")
    assert desk.slots.pass_on(slot, "x")
    assert desk.granted == ["x"]
    assert desk.slots.is_full("mx:", "", 1)


def test_a_thousand_who_give_back_at_once_do_not_pile_up() -> None:
    desk = Desk(per_destination=2000)
    first = desk.want("a", most=1)
    assert first.called
    for _ in range(1000):
        wanted = desk.slots.acquire("mx:", "a", 1, 60.0, lambda _: False)
        wanted.addCallback(desk.slots.release)
    desk.slots.release(desk.granted[0])
    assert not desk.slots._lines


def test_when_all_is_over_nobody_waits() -> None:
    desk = Desk()
    for _ in range(5):
        desk.want("a")
    desk.slots.give_up("Elemta is stopping")
    assert desk.refused == ["Elemta is stopping"] * 3
    assert not desk.clock.getDelayedCalls()


def test_after_the_end_nobody_begins_to_wait_and_no_timer_is_set() -> None:
    desk = Desk()
    desk.want("a")
    slot = desk.granted.pop()
    desk.slots.give_up("Elemta is stopping")
    desk.slots.keep_back(slot, 60.0)
    desk.want("a")
    assert desk.refused == ["Elemta is stopping"]
    assert not desk.granted
    assert not desk.clock.getDelayedCalls()


def test_a_route_may_say_how_many_a_destination_of_its_own_has() -> None:
    desk = Desk(per_destination=1)
    for _ in range(4):
        desk.slots.acquire("mx:3", "a", 500, 60.0, lambda _: False, per_destination=3).addCallback(
            desk.granted.append
        )
    desk.want("b")
    desk.want("b")
    assert desk.destinations == ["a", "a", "a", "b"]


class AnyOrder(RuleBasedStateMachine):
    """Whatever is asked and given back in whatever order: no bound breaks, and none waits without need."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(per_destination=2)
        self.asked = 0

    @property
    def held(self) -> list[ConnectionSlot]:
        return self.desk.granted

    @rule(destination=sampled_from("abc"))
    def ask(self, destination: str) -> None:
        self.asked += 1
        self.desk.want(destination)

    @precondition(lambda self: self.held)
    @rule(end=sampled_from([0, -1]))
    def give_back(self, end: int) -> None:
        self.asked -= 1
        self.desk.slots.release(self.held.pop(end))

    @invariant()
    def bounds_hold(self) -> None:
        counts = Counter(slot.destination for slot in self.held)
        assert len(self.held) <= 3
        assert all(count <= 2 for count in counts.values())

    @invariant()
    def nobody_waits_without_need(self) -> None:
        if len(self.held) == self.asked:
            return
        waiting = self.desk.slots._lines["mx:"].waiting
        counts = Counter(slot.destination for slot in self.held)
        assert len(self.held) == 3 or all(counts[destination] == 2 for destination in waiting)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
