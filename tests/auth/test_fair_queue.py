"""The queue of the verifications: fair between networks, and known clients go first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from elemta.auth.fair_queue import KNOWN_IN_A_ROW, Claim, FairQueue


def filled(capacity: int, *claims: Claim) -> FairQueue[object]:
    """A queue with an item for each claim."""
    queue: FairQueue[object] = FairQueue(capacity)
    for claim in claims:
        assert queue.push(Item(claim), claim) is None
    return queue


class Item:
    """Something that waits, and its client."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim


def served(queue: FairQueue[object]) -> list[Claim]:
    order = []
    while (item := queue.pop()) is not None:
        assert isinstance(item, Item)
        order.append(item.claim)
    return order


FLOOD, REAL, OFFICE = Claim("203.0.113.0/24"), Claim("192.0.2.0/24"), Claim("198.51.100.0/24", known=True)


def test_networks_are_served_in_turn_whatever_one_of_them_has_waiting() -> None:
    assert served(filled(64, *[FLOOD] * 50, REAL))[:2] == [FLOOD, REAL]


def test_a_full_queue_still_has_a_place_for_a_network_that_has_fewer() -> None:
    queue = filled(64, *[FLOOD] * 64)
    item = Item(REAL)
    given_up = queue.push(item, REAL)
    assert isinstance(given_up, Item)
    assert given_up.claim is FLOOD
    assert len(queue) == 64
    assert served(queue)[1] is REAL


def test_a_full_queue_has_no_place_for_one_more_of_the_network_that_fills_it() -> None:
    queue = filled(3, *[FLOOD] * 3)
    item = Item(FLOOD)
    assert queue.push(item, FLOOD) is item
    assert len(queue) == 3


def test_twenty_five_networks_that_fill_the_queue_leave_a_place_to_one_more() -> None:
    claims = [Claim(f"10.0.{number}.0/24") for number in range(25)]
    queue = filled(64, *(claims * 3)[:64])
    assert queue.push(Item(REAL), REAL) is not None
    assert REAL in served(queue)[:26]


def test_known_clients_go_first_and_others_are_not_forgotten() -> None:
    queue = filled(64, *[REAL] * 2, *[OFFICE] * 10)
    order = served(queue)
    assert order[:KNOWN_IN_A_ROW] == [OFFICE] * KNOWN_IN_A_ROW
    assert order[KNOWN_IN_A_ROW] == REAL


def test_everybody_gives_way_to_a_known_client_and_no_known_one_to_a_stranger() -> None:
    strangers = [Claim(f"10.0.{number}.0/24") for number in range(4)]
    queue = filled(4, *strangers)
    assert [queue.push(Item(OFFICE), OFFICE) is None for _ in range(4)] == [False] * 4
    stranger = Item(REAL)
    assert queue.push(stranger, REAL) is stranger
    assert served(queue) == [OFFICE] * 4


@given(
    st.integers(1, 6),
    st.lists(st.one_of(st.none(), st.builds(Claim, st.sampled_from("abc"), st.booleans())), max_size=40),
)
def test_nothing_is_lost_or_served_twice_within_the_bound(capacity: int, steps: list[Claim | None]) -> None:
    queue: FairQueue[object] = FairQueue(capacity)
    inside: set[object] = set()
    for claim in steps:
        if claim is None:
            item = queue.pop()
            assert (item is None) == (not inside)
            inside.discard(item)
        else:
            item = Item(claim)
            inside.add(item)
            inside.discard(queue.push(item, claim))
        assert len(queue) == len(inside) <= capacity
    for item in list(inside)[::2]:
        assert queue.remove(item)
        assert not queue.remove(item)
        inside.discard(item)
    rest = []
    while (item := queue.pop()) is not None:
        rest.append(item)
    assert len(rest) == len(inside)
    assert set(rest) == inside
