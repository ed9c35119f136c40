"""After an outage on this side: one destination that answers has all others probed soon, a few at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock

from elemta.delivery.early_probes import AT_ONCE, MOST_AT_ONCE, SPREAD, EarlyProbes
from elemta.delivery.local_faults import ON_A_KEPT_CONNECTION, WORKS_BY_MX, of_route, works_by_host
from elemta.outcome import LocalFault
from tests.support.simulated import (
    GOOD,
    NAMELESS,
    NO_SOCKET,
    REFUSED,
    SILENT,
    UNREACHABLE,
    Answer,
    Simulation,
)

MINUTE = 60.0
DESTINATIONS = 300
OUTAGES = {"unreachable": UNREACHABLE, "silent": SILENT, "names": NAMELESS, "sockets": NO_SOCKET}


def network(end: float, during: Answer, begin: float = MINUTE) -> Callable[[str, float], Answer]:
    """Destinations between two times; beside those that are down always."""

    def answer(destination: str, now: float) -> Answer:
        if begin <= now < end:
            return during
        return {"dead": SILENT, "none": REFUSED}.get(destination[:4], GOOD)

    return answer


@pytest.fixture
def simulate(request: pytest.FixtureRequest) -> Callable[..., Simulation]:
    def made(*args: Any, **settings: Any) -> Simulation:
        simulation = Simulation(*args, warn_after=0.0, poll=60.0, **settings)
        request.addfinalizer(simulation.stop)
        simulation.start()
        return simulation

    return made


@pytest.mark.parametrize(
    ("minutes", "kind"),
    [
        *((25, kind) for kind in OUTAGES),
        (90, "unreachable"),
        pytest.param(300, "unreachable", marks=pytest.mark.campaign),
        pytest.param(300, "silent", marks=pytest.mark.campaign),
    ],
)
def test_after_an_outage_each_destination_gets_mail_a_minute_after_the_first_one(
    simulate: Callable[..., Simulation], minutes: int, kind: str
) -> None:
    end = MINUTE + minutes * MINUTE
    simulation = simulate(network(end, OUTAGES[kind]))
    destinations = [f"d{number}.example" for number in range(DESTINATIONS)]
    for destination in destinations[: DESTINATIONS // 2]:
        # One half of them is known before.
        simulation.send(destination)
    simulation.run(MINUTE - 1.0, step=1.0)
    simulation.send("d0.example")
    simulation.run(2.0)
    for number in range(60):
        simulation.send(f"dead{number}.example")
        simulation.send(f"none{number}.example")
    sent = {destination: [simulation.send(destination) for _ in range(3)] for destination in destinations}
    simulation.run(end - simulation.now, step=1.0)
    assert not any(queue_id in simulation.delivered for each in sent.values() for queue_id in each)
    before = len(simulation.attempts)
    simulation.run(12 * MINUTE, step=1.0)
    first = {
        destination: min(simulation.delivered[queue_id] for queue_id in each)
        for destination, each in sent.items()
    }
    assert min(first.values()) - end <= 10 * MINUTE
    assert max(first.values()) - min(first.values()) <= MINUTE
    # All of a destination's mail follows, and they come one after the other.
    assert max(simulation.delivered.values()) - min(first.values()) <= 1.2 * MINUTE
    seconds = Counter(int(when / SPREAD) for when in first.values())
    assert max(seconds.values()) <= 3 * AT_ONCE
    # What is down all the same gets one early probe, beside the regular ones.
    after = Counter(
        destination for _, destination, _ in simulation.attempts[before:] if destination not in first
    )
    assert max(after.values()) <= 4


@pytest.mark.parametrize("minutes", [25, 90, 300])
def test_in_an_outage_each_destination_has_one_probe_at_a_time(
    simulate: Callable[..., Simulation], minutes: int
) -> None:
    simulation = simulate(network(minutes * MINUTE, UNREACHABLE, begin=0.0))
    for number in range(20):
        simulation.send(f"d{number}.example")
    simulation.run(minutes * MINUTE, step=1.0)
    assert len(simulation.attempts) <= 20 * (6 + minutes / 9)


def test_destinations_that_are_dead_while_others_answer_are_not_probed_early(
    simulate: Callable[..., Simulation],
) -> None:
    simulation = simulate(network(0.0, GOOD))
    for number in range(20):
        simulation.send(f"dead{number}.example")
    for _ in range(360):
        simulation.send("d.example")
        simulation.run(10.0, step=1.0)
    # After 1, 5, and then about every 10 minutes.
    attempts = Counter(destination for _, destination, _ in simulation.attempts)
    assert max(attempts[f"dead{number}.example"] for number in range(20)) <= 9


# What one answer shows of the others

BY_ADDRESS, BY_NAME = works_by_host("192.0.2.1"), works_by_host("mx.example.net")
HERE = works_by_host("127.0.0.1")
SOCKETS, NETWORK, NAMES = LocalFault.SOCKETS, LocalFault.NETWORK, LocalFault.NAMES


@pytest.mark.parametrize(
    ("lacked", "works", "probed"),
    [
        (NETWORK, WORKS_BY_MX, True),
        (NAMES, WORKS_BY_MX, True),
        (SOCKETS, WORKS_BY_MX, True),
        (NETWORK | NAMES, WORKS_BY_MX, True),
        (of_route(NETWORK), WORKS_BY_MX, False),
        (of_route(NAMES), WORKS_BY_MX, False),
        (NETWORK, BY_ADDRESS, False),
        (NAMES, BY_NAME, False),
        (NETWORK | SOCKETS, BY_ADDRESS, False),
        (SOCKETS, BY_ADDRESS, True),
        (of_route(NETWORK), BY_ADDRESS, True),
        (of_route(NAMES), BY_ADDRESS, False),
        (of_route(NAMES), BY_NAME, True),
        # A Unix socket, or a server on this machine, says nothing of the network.
        (of_route(NETWORK), HERE, False),
        (of_route(NETWORK), works_by_host(""), False),
        (SOCKETS, HERE, True),
        # Nor does a connection that was there before say anything of new ones.
        (SOCKETS, ON_A_KEPT_CONNECTION[WORKS_BY_MX], False),
        (NAMES, ON_A_KEPT_CONNECTION[WORKS_BY_MX], False),
        (NETWORK, ON_A_KEPT_CONNECTION[WORKS_BY_MX], True),
        (LocalFault.NONE, WORKS_BY_MX, False),
    ],
)
def test_an_answer_has_those_probed_that_lacked_only_what_it_shows_to_work(
    lacked: LocalFault, works: LocalFault, probed: bool
) -> None:
    clock, names = Clock(), list[str]()
    probes = EarlyProbes(clock, clock.seconds, names.extend, lambda: 500)
    probes.failed("down.example", lacked, 1000.0, answered_before=True)
    probes.answered(works, 1100.0, names_known=False)
    clock.pump([0.0, SPREAD, SPREAD])
    assert names == ["down.example"] * probed
    assert not clock.getDelayedCalls()


def test_an_answer_of_a_destination_whose_names_are_known_says_nothing_of_name_servers() -> None:
    clock, names = Clock(), list[str]()
    probes = EarlyProbes(clock, clock.seconds, names.extend, lambda: 500)
    probes.failed("a.example", NAMES, 1000.0, answered_before=True)
    probes.failed("b.example", NETWORK, 1000.0, answered_before=True)
    probes.answered(WORKS_BY_MX, 1100.0, names_known=True)
    clock.advance(0.0)
    assert names == ["b.example"]


def test_they_are_probed_a_few_at_a_time_and_first_those_that_answered_before() -> None:
    clock, lots = Clock(), list[list[str]]()
    probes = EarlyProbes(clock, clock.seconds, lambda names: lots.append(list(names)), lambda: 500)
    for number in range(25):
        probes.failed(f"new{number}", NETWORK, 1000.0, answered_before=False)
        probes.failed(f"known{number}", NETWORK | SOCKETS, 1000.0, answered_before=True)
    probes.forget("known3")
    probes.answered(WORKS_BY_MX, 1100.0, names_known=False)
    clock.pump([0.0] + [SPREAD] * 10)
    assert [len(lot) for lot in lots] == [10, 10, 10, 10, 9]
    assert {name for lot in lots for name in lot[:24]} >= {f"new{number}" for number in range(25)}
    order = [name for lot in lots for name in lot]
    assert all(name.startswith("known") for name in order[:24])
    assert "known3" not in order
    assert probes.suspects == 0


@pytest.mark.parametrize("suspects", [20, 4_000, 12_000, 50_000])
def test_all_are_probed_within_a_minute_however_many_they_are(suspects: int) -> None:
    clock, lots = Clock(), list[tuple[float, int]]()
    probes = EarlyProbes(
        clock, clock.seconds, lambda names: lots.append((clock.seconds(), len(names))), lambda: 500
    )
    for number in range(suspects):
        probes.failed(f"d{number}", NETWORK, 1000.0, answered_before=number % 2 == 0)
    probes.answered(WORKS_BY_MX, 1100.0, names_known=False)
    clock.pump([0.0] + [SPREAD] * 600)
    assert sum(size for _, size in lots) == suspects
    assert lots[-1][0] <= MINUTE
    assert max(size for _, size in lots) <= max(AT_ONCE, suspects // 500, 1) <= MOST_AT_ONCE
    assert not clock.getDelayedCalls()
    # The next ones are few again.
    for number in range(30):
        probes.failed(f"e{number}", NETWORK | SOCKETS, 1200.0, answered_before=False)
    del lots[:]
    probes.answered(WORKS_BY_MX, 2000.0, names_known=False)
    clock.pump([0.0] + [SPREAD] * 10)
    assert [size for _, size in lots] == [AT_ONCE] * 3


def test_no_more_are_probed_than_there_are_places_for_them() -> None:
    clock, lots, free = Clock(), list[int](), [3]
    probes = EarlyProbes(clock, clock.seconds, lambda names: lots.append(len(names)), lambda: free[0])
    for number in range(20):
        probes.failed(f"d{number}", NETWORK, 1000.0, answered_before=True)
    probes.answered(WORKS_BY_MX, 1100.0, names_known=False)
    clock.pump([0.0, SPREAD])
    assert lots == [3, 3]
    for taken in (0, -2):
        free[0] = taken
        clock.pump([SPREAD] * 5)
        assert lots == [3, 3]
    free[0] = 500
    clock.pump([SPREAD] * 3)
    assert lots == [3, 3, 10, 4]
    assert not clock.getDelayedCalls()


def test_mail_for_new_destinations_does_not_wait_for_all_early_probes(
    simulate: Callable[..., Simulation],
) -> None:
    def answer(destination: str, now: float) -> Answer:
        return UNREACHABLE if now < 10 * MINUTE else Answer(seconds=2.0)

    simulation = simulate(answer, max_messages=8)
    for number in range(300):
        simulation.send(f"d{number}.example")
    simulation.run(10 * MINUTE, step=1.0)
    while not simulation.delivered:
        simulation.run(1.0)
    began = simulation.now
    simulation.run(10.0)
    assert len(simulation.delivered) < 100
    new = simulation.send("new.example")
    simulation.run(8.0)
    assert simulation.delivered[new] - began <= 18.0


def test_one_that_is_still_down_at_its_early_probe_waits_for_its_regular_one() -> None:
    clock, names = Clock(), list[str]()
    probes = EarlyProbes(clock, clock.seconds, names.extend, lambda: 500)
    for turn in range(1, 5):
        clock.advance(1000.0)
        now = clock.seconds()
        probes.failed("v6only.example", NETWORK, now, answered_before=False)
        probes.answered(WORKS_BY_MX, now + 100.0, names_known=False)
        clock.pump([0.0, SPREAD])
        # Its first failure of each two is a regular probe's, the second an early one's.
        assert len(names) == (turn + 1) // 2


def test_what_lacks_something_else_at_its_early_probe_gets_another_when_that_works_but_each_once() -> None:
    """An outage that ends in steps: the network is back first, and name servers later."""
    clock, names = Clock(), list[str]()
    probes = EarlyProbes(clock, clock.seconds, names.extend, lambda: 500)
    probes.failed("a.example", NETWORK, 0.0, answered_before=True)
    for turn, lacked in enumerate([NAMES, SOCKETS, NETWORK, NAMES, SOCKETS]):
        clock.advance(1000.0)
        probes.answered(WORKS_BY_MX, clock.seconds(), names_known=False)
        clock.pump([0.0, SPREAD])
        assert len(names) == min(turn + 1, 3)
        clock.advance(500.0)
        if turn < 3:
            probes.failed("a.example", lacked, clock.seconds(), answered_before=True)


def test_mail_leaves_soon_after_name_servers_answer_though_the_network_was_back_before(
    simulate: Callable[..., Simulation],
) -> None:
    back, names_back = 91 * MINUTE, 96 * MINUTE

    def answer(destination: str, now: float) -> Answer:
        if destination == "cached.example":
            # It has no mail meanwhile, and its names are known.
            return GOOD
        if MINUTE <= now < names_back:
            return UNREACHABLE if now < back else NAMELESS
        return GOOD

    simulation = simulate(answer)
    simulation.send("cached.example")
    simulation.run(MINUTE)
    sent = [simulation.send(f"d{number}.example") for number in range(100)]
    simulation.run(back - simulation.now, step=1.0)
    simulation.send("cached.example")
    simulation.run(names_back + 1.0 - simulation.now, step=1.0)
    # One whose names were unknown before shows that they are found again.
    simulation.send("new.example")
    simulation.run(MINUTE, step=1.0)
    assert all(queue_id in simulation.delivered for queue_id in sent)


@pytest.mark.parametrize(
    ("answers", "started", "probed"),
    [
        ([900.0], 1000.0, []),  # long before it: perhaps a fault here, which perhaps lasts
        ([950.0], 1000.0, []),  # shortly before it: no fault here
        ([900.0, 1010.0], 1000.0, ["down"]),  # the fault ended while it waited
        ([950.0, 1010.0], 1000.0, []),
        ([], 1000.0, []),
        ([1010.0], 1000.0, ["down"]),
    ],
)
def test_an_attempt_that_began_before_the_end_of_an_outage_is_made_again_soon(
    answers: list[float], started: float, probed: list[str]
) -> None:
    clock, names = Clock(), list[str]()
    probes = EarlyProbes(clock, clock.seconds, names.extend, lambda: 500)
    for when in answers:
        probes.answered(WORKS_BY_MX, when, names_known=False)
    probes.failed("down", NETWORK, started, answered_before=True)
    clock.pump([0.0, SPREAD])
    assert names == probed


def test_while_no_place_is_free_any_number_of_answers_leaves_no_more_than_the_names() -> None:
    clock, names, free = Clock(), list[str](), [0]
    probes = EarlyProbes(clock, clock.seconds, names.extend, lambda: free[0])
    for number in range(1000):
        probes.failed(f"d{number % 20}", NETWORK, 1000.0 + 200 * number, answered_before=number % 2 == 0)
        probes.answered(WORKS_BY_MX, 1065.0 + 200 * number, names_known=False)
        clock.advance(SPREAD)
    assert probes._waiting == 20
    assert sum(map(len, probes._to_probe)) <= 4
    free[0] = 500
    clock.pump([SPREAD] * 10)
    assert sorted(names) == sorted(f"d{number}" for number in range(20))
