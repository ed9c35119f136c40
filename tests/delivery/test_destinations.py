"""Whose turn it is, and which destination is left alone: destinations over a queue that is a dict, and a
clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elemta.address import Address
from elemta.delivery import Retries
from elemta.delivery.destination import FIRST_WINDOW, MOST_BROKEN_OFF
from elemta.delivery.destinations import Destinations
from elemta.envelope import Envelope, Recipient
from elemta.outcome import Outcome, Status
from elemta.spool import DestinationDue, MessageState, QueuedMessage

PLACES = 100
LOCAL = "maildir:"


def reason(text: str = "refused") -> Outcome:
    return Outcome("Q", Address("bob", "x.example"), Status.DEFERRED, text, "mx:", "x.example", 0.0)


@dataclass
class Scheduled:
    """Destinations over a queue that is a dict; ``now`` is the time."""

    limit: int = 20
    now: float = 1000.0
    queue: dict[tuple[str, int], QueuedMessage] = field(default_factory=dict)
    looks: int = 0
    taken: list[QueuedMessage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.destinations = Destinations(
            lambda destination: None if destination == LOCAL else self.limit, PLACES
        )
        self.number = 0

    def send(self, destination: str, sender: str = "s", *, tell: bool = True) -> QueuedMessage:
        """A new message; ``tell``: as after its commit, else it is only in the queue."""
        self.number += 1
        origin = Address(sender, "example.org")
        envelope = Envelope(
            f"Q{self.number:06}", origin, (Recipient(Address("bob", "x.example")),), self.now, 1
        )
        turn = self.destinations.turn(destination, origin, self.now)
        message = QueuedMessage(
            envelope, MessageState.ACTIVE, 0, envelope.recipients, turn, destination=destination
        )
        self.queue[message.key] = message
        if tell:
            self.destinations.enter(message, self.now)
        return message

    def look(self) -> None:
        wanted = self.destinations.wanted(self.now)
        if not wanted:
            return
        self.looks += 1
        known, until = self.destinations.known(wanted), self.destinations.brought_forward(wanted)
        for destination, most in wanted.items():
            there = [message for message in self.queue.values() if message.destination == destination]
            due = sorted(
                (
                    message
                    for message in there
                    if message.key not in known.get(destination, ())
                    and (
                        message.state is MessageState.ACTIVE
                        or message.next_attempt_at <= max(self.now, until.get(destination, self.now))
                    )
                ),
                key=lambda message: (
                    message.state is not MessageState.ACTIVE,
                    message.next_attempt_at,
                    message.key,
                ),
            )
            later = [
                message.next_attempt_at
                for message in there
                if message.state is MessageState.DEFERRED and message.next_attempt_at > self.now
            ]
            following = self.now if len(due) > most else min(later, default=None)
            self.destinations.loaded(DestinationDue(destination, tuple(due[:most]), following), self.now)

    def take(self) -> QueuedMessage | None:
        self.look()
        message = self.destinations.take(self.now, PLACES - len(self.under_way))
        if message is not None:
            self.taken.append(message)
            self.under_way[message.key] = message
        return message

    def take_all(self) -> list[QueuedMessage]:
        found = []
        while len(self.under_way) < PLACES and (message := self.take()) is not None:
            found.append(message)
        return found

    @property
    def under_way(self) -> dict[tuple[str, int], QueuedMessage]:
        return self.__dict__.setdefault("_under_way", {})

    def end(self, message: QueuedMessage) -> None:
        del self.under_way[message.key]
        self.destinations.finished(message)

    def deliver(self, message: QueuedMessage) -> None:
        del self.queue[message.key]
        self.destinations.answered(message.destination, self.now, delivered=True)
        self.end(message)

    def defer(self, message: QueuedMessage, until: float) -> None:
        self.queue[message.key] = replace(
            message, state=MessageState.DEFERRED, next_attempt_at=until, attempts=message.attempts + 1
        )
        self.destinations.due_at(message.destination, until)
        self.end(message)

    def find_down(self, message: QueuedMessage, epoch: int, started: float, wait: float = 60.0) -> bool:
        """The attempt found the destination down; whether the destination is blocked for it."""
        destination = message.destination
        blocked = self.destinations.failed(destination, epoch, started)
        if blocked:
            self.destinations.block(destination, self.now + wait, reason())
        found = self.destinations.find(destination)
        assert found is not None
        until = found.shut_until if found.shut_until < inf else found.regular_probe
        self.defer(message, until if found.failures else self.now + 3600.0)
        return blocked


def test_destinations_take_turns_however_long_their_lines_are() -> None:
    queue = Scheduled()
    for _ in range(50):
        queue.send("long.example")
    for destination in ("a.example", "b.example"):
        queue.send(destination)
    first = [queue.take() for _ in range(4)]
    assert [message.destination for message in first if message] == [
        "long.example",
        "a.example",
        "b.example",
        "long.example",
    ]


def test_a_destination_starts_with_few_and_widens_with_each_success_up_to_its_limit() -> None:
    queue = Scheduled(limit=5)
    for _ in range(100):
        queue.send("x.example")
    widths = []
    for _ in range(5):
        batch = queue.take_all()
        widths.append(len(batch))
        for message in batch:
            queue.deliver(message)
    assert widths == [FIRST_WINDOW, 4, 5, 5, 5]


def test_mail_that_ends_here_does_not_start_slowly() -> None:
    queue = Scheduled()
    for _ in range(300):
        queue.send(LOCAL)
    assert len(queue.take_all()) > PLACES // 3


def test_a_flood_from_one_sender_waits_behind_itself_while_others_pass() -> None:
    queue = Scheduled(limit=2)
    for _ in range(5000):
        queue.send("x.example", "flood")
    for message in queue.take_all():
        queue.deliver(message)
    late = {queue.send("x.example", f"other{i}").key for i in range(5)}
    served = 0
    while late & queue.queue.keys():
        for message in queue.take_all():
            queue.deliver(message)
            served += 1
    # Those in memory before them may go first, and two floods at a time share.
    assert served <= 20


def test_two_floods_share_a_destination_whenever_they_began() -> None:
    queue = Scheduled(limit=2)
    for _ in range(1000):
        queue.send("x.example", "first")
    for _ in range(100):
        for message in queue.take_all():
            queue.deliver(message)
    for _ in range(1000):
        queue.send("x.example", "second")
    before = len(queue.taken)
    for _ in range(200):
        for message in queue.take_all():
            queue.deliver(message)
    senders = Counter(message.envelope.sender.local for message in queue.taken[before + 20 :])
    assert abs(senders["first"] - senders["second"]) <= 10


def test_a_destination_that_is_down_costs_one_probe_per_interval_however_much_waits() -> None:
    queue = Scheduled()
    for _ in range(1000):
        queue.send("dead.example")
    retries = Retries((60.0, 300.0, 900.0), jitter=0.0)
    attempts = 0
    while queue.now < 1000.0 + 3 * 3600:
        batch, epoch = queue.take_all(), queue.destinations.epoch("dead.example")
        for message in batch:
            attempts += 1
            failures = queue.destinations.failures("dead.example")
            queue.find_down(message, epoch, queue.now, retries.after_failures(failures + 1, 0.0))
        assert queue.destinations.is_shut("dead.example", queue.now)
        wake = queue.destinations.next_due()
        assert wake > queue.now
        queue.now = wake
    # Two at first, then after 1, 5, 15, 15, … minutes.
    assert attempts == FIRST_WINDOW + 2 + (3 * 3600 - 60 - 300) // 900
    assert queue.destinations.blocked == 1
    assert queue.looks < 3 * attempts


def test_the_others_that_were_under_way_do_not_make_it_worse() -> None:
    queue = Scheduled()
    for _ in range(10):
        queue.send("x.example")
    for message in queue.take_all():
        queue.deliver(message)
    batch = queue.take_all()
    assert len(batch) == 4
    queue.now += 30.0
    epoch = queue.destinations.epoch("x.example")
    blocked = [queue.find_down(message, epoch, queue.now - 1.0) for message in batch]
    assert blocked == [True, False, False, False]
    assert queue.destinations.failures("x.example") == 1


def test_the_next_probe_is_another_message_and_a_success_reopens_the_destination_at_once() -> None:
    queue = Scheduled()
    sent = [queue.send("x.example") for _ in range(30)]
    for message in queue.take_all():
        queue.find_down(message, queue.destinations.epoch("x.example"), queue.now)
    queue.now += 61.0
    (probe,) = queue.take_all()
    assert probe == sent[2]
    assert queue.take() is None
    assert queue.destinations.answered("x.example", queue.now, delivered=False)
    queue.end(probe)
    del queue.queue[probe.key]
    assert queue.destinations.blocked == 0
    while batch := queue.take_all():
        for message in batch:
            queue.deliver(message)
    assert not queue.queue


def test_where_others_get_through_the_number_is_halved_instead() -> None:
    queue = Scheduled()
    for _ in range(100):
        queue.send("x.example")
    for _ in range(4):
        for message in queue.take_all():
            queue.deliver(message)
    batch = queue.take_all()
    epoch, started = queue.destinations.epoch("x.example"), queue.now
    queue.now += 1.0
    queue.deliver(batch[0])
    assert not queue.find_down(batch[1], epoch, started)
    assert queue.destinations.failures("x.example") == 0
    for message in batch[2:]:
        queue.deliver(message)
    destination = queue.destinations.find("x.example")
    assert destination is not None
    assert destination.window <= len(batch)


def test_a_destination_that_only_breaks_off_is_tried_by_one_and_soon_left_alone() -> None:
    queue = Scheduled()
    for _ in range(100):
        queue.send("x.example")
    for _ in range(3):
        for message in queue.take_all():
            queue.deliver(message)
    down = []
    for message in queue.take_all()[:MOST_BROKEN_OFF]:
        down.append(queue.destinations.broke_off("x.example"))
        queue.defer(message, queue.now + 60.0)
    assert down == [False] * (MOST_BROKEN_OFF - 1) + [True]
    destination = queue.destinations.find("x.example")
    assert destination is not None
    assert destination.window == 1


def test_slow_destinations_never_take_the_last_places() -> None:
    queue = Scheduled(limit=1000)
    for destination in ("quick", "slow0", "slow1", "slow2"):
        queue.send(f"{destination}.example")
    for message in queue.take_all():
        queue.deliver(message)
    for destination in range(3):
        for _ in range(500):
            queue.send(f"slow{destination}.example")
    for _ in range(8):
        # They get wide by success, then all stand still.
        for message in queue.take_all():
            queue.deliver(message)
    queue.take_all()
    widths = Counter(message.destination for message in queue.under_way.values())
    assert min(widths.values()) > PLACES // 5
    quick = queue.send("quick.example")
    assert queue.take() == quick


def test_destinations_that_were_down_share_a_part_of_the_places() -> None:
    queue = Scheduled()
    for destination in range(PLACES):
        message = queue.send(f"d{destination}.example")
        assert queue.take() == message
        queue.find_down(message, queue.destinations.epoch(message.destination), queue.now)
    queue.now += 61.0
    probes = queue.take_all()
    assert PLACES // 5 < len(probes) <= PLACES // 3
    queue.send("alive.example")
    assert queue.take() is not None


def test_destinations_that_never_answered_do_not_take_all_places() -> None:
    queue = Scheduled()
    queue.send("known.example")
    queue.deliver(queue.take_all()[0])
    for destination in range(2 * PLACES):
        queue.send(f"stalls{destination}.example")
    queue.take_all()
    assert len(queue.under_way) == PLACES - PLACES // 4
    for destination in ("known.example", LOCAL):
        message = queue.send(destination)
        assert queue.take() == message


def test_what_must_wait_holds_up_its_destination_alone_and_costs_no_look() -> None:
    queue = Scheduled()
    for _ in range(10):
        queue.send("paced.example")
    message = queue.take()
    assert message is not None
    queue.destinations.put_back(message, queue.now + 10.0)
    queue.end(message)
    looks = queue.looks
    assert queue.take() is None
    assert queue.destinations.next_due() == queue.now + 10.0
    assert queue.looks == looks
    assert queue.destinations.failures("paced.example") == 0
    queue.now += 10.0
    assert len({message.key for message in queue.take_all()}) == FIRST_WINDOW


def test_what_was_done_while_the_queue_was_asked_is_not_done_again() -> None:
    queue = Scheduled()
    first, second, third = (queue.send("x.example", tell=False) for _ in range(3))
    queue.destinations.due_at("x.example", 0.0)
    wanted = queue.destinations.wanted(queue.now)
    assert set(wanted) == {"x.example"}
    # Meanwhile one was announced, attempted and delivered, and another one is under way.
    queue.destinations.enter(first, queue.now)
    queue.destinations.enter(second, queue.now)
    assert queue.destinations.take(queue.now, PLACES) == first
    assert queue.destinations.take(queue.now, PLACES) == second
    queue.under_way[first.key] = first
    queue.deliver(first)
    queue.destinations.loaded(DestinationDue("x.example", (first, second, third), None), queue.now)
    assert queue.destinations.take(queue.now, PLACES) == third
    assert queue.destinations.take(queue.now, PLACES) is None


def test_memory_is_bounded_and_no_destination_fills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elemta.delivery.destination_table.MOST_WAITING", 200)
    queue = Scheduled()
    for _ in range(1000):
        queue.send("a.example")
        queue.send("b.example", tell=False)
    queue.destinations.due_at("b.example", 0.0)
    queue.look()
    assert queue.destinations.waiting <= 200
    destinations = Counter(message.destination for message in queue.take_all())
    assert set(destinations) == {"a.example", "b.example"}
    assert queue.destinations.waiting <= 200


def test_a_destination_without_mail_is_forgotten_also_when_it_was_down() -> None:
    queue = Scheduled()
    message = queue.send("x.example")
    other = queue.send("dead.example")
    assert {queue.take(), queue.take()} == {message, other}
    queue.deliver(message)
    queue.find_down(other, queue.destinations.epoch("dead.example"), queue.now)
    assert len(queue.destinations) == 1
    del queue.queue[other.key]
    queue.now += 61.0
    queue.look()
    assert (len(queue.destinations), queue.destinations.blocked, queue.destinations.next_due()) == (0, 0, inf)


def test_what_is_brought_forward_is_due_at_once_and_what_is_deferred_then_waits_for_its_own_time() -> None:
    queue = Scheduled()
    sent = [queue.send("x.example") for _ in range(9)]
    for message in queue.take_all():
        queue.find_down(message, queue.destinations.epoch("x.example"), queue.now, 600.0)
    queue.now += 100.0
    assert queue.take() is None
    queue.destinations.probe_early(["x.example"])
    (probe,) = queue.take_all()
    assert queue.take() is None
    queue.deliver(probe)
    greylisted = []
    while batch := queue.take_all():
        for message in batch:
            if message.key in (sent[0].key, sent[5].key):
                greylisted.append(message.key)
                queue.defer(message, queue.now + 60.0)
            else:
                queue.deliver(message)
    # All were attempted, once each; those that were deferred since are not before their time.
    assert sorted(greylisted) == [sent[0].key, sent[5].key]
    assert len(queue.queue) == 2
    assert queue.destinations.next_due() == queue.now + 60.0
    queue.now += 60.0
    assert len(queue.take_all()) == 2


def test_an_early_probe_that_fails_shuts_its_destination_again() -> None:
    queue = Scheduled()
    for _ in range(9):
        queue.send("x.example")
    for message in queue.take_all():
        queue.find_down(message, queue.destinations.epoch("x.example"), queue.now, 600.0)
    queue.now += 100.0
    queue.destinations.probe_early(["x.example"])
    (probe,) = queue.take_all()
    assert queue.find_down(probe, queue.destinations.epoch("x.example"), queue.now, 600.0)
    assert (queue.take(), queue.destinations.failures("x.example")) == (None, 3)
    assert queue.destinations.next_due() == queue.now + 600.0
    queue.now += 600.0
    assert len(queue.take_all()) == 1


def test_an_operator_has_a_destination_probed_at_once() -> None:
    queue = Scheduled()
    for _ in range(5):
        queue.send("dead.example")
    for message in queue.take_all():
        queue.find_down(message, queue.destinations.epoch("dead.example"), queue.now)
    assert queue.take() is None
    queue.destinations.probe_now(["dead.example"])
    assert queue.take() is not None
    assert queue.take() is None


def test_senders_beyond_number_are_forgotten_before_memory_is_full() -> None:
    queue = Scheduled()
    queue.send("x.example")
    for i in range(30_000):
        queue.destinations.turn("x.example", Address(f"s{i}", "example.org"), queue.now)
    destination = queue.destinations.find("x.example")
    assert destination is not None
    assert len(destination._turns) <= 10_000


def test_destinations_beyond_number_are_forgotten_too() -> None:
    queue = Scheduled()
    for i in range(10_005):
        queue.destinations.answered(f"d{i}.example", queue.now, delivered=True)
    assert len(queue.destinations._answered) == 10_000


def test_what_was_tried_before_its_time_is_tried_again_at_its_time() -> None:
    """Though other mail of the destination, which was down, keeps it brought forward until then."""
    queue = Scheduled()
    for _ in range(4):
        queue.send("x.example")
    first, second = queue.take_all()
    queue.find_down(first, queue.destinations.epoch("x.example"), queue.now)
    queue.destinations.probe_now(["x.example"])
    queue.defer(second, queue.now)
    queue.now += 100.0
    while taken := queue.take_all():
        for message in taken:
            queue.deliver(message)
    assert not queue.queue


EVENTS = ["send", "quiet", "take", "deliver", "defer", "down", "wait", "operator", "early"]


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(EVENTS),
            st.integers(0, 3),
        ),
        min_size=10,
        max_size=120,
    )
)
def test_whatever_happens_each_message_is_taken_by_one_at_a_time_and_all_are_served(
    events: list[tuple[str, int]],
) -> None:
    queue = Scheduled(limit=3)
    for event, which in events:
        destination = f"d{which}.example"
        busy = [message for message in queue.under_way.values() if message.destination == destination]
        if event == "send":
            queue.send(destination, f"s{which}")
        elif event == "quiet":
            queue.send(destination, tell=False)
            queue.destinations.due_at(destination, queue.now)
        elif event == "take":
            before = set(queue.under_way)
            message = queue.take()
            assert message is None or message.key not in before
        elif event == "wait":
            queue.now += 10.0**which
        elif event == "operator":
            queue.destinations.probe_now([destination])
        elif event == "early":
            queue.destinations.probe_early([destination])
        elif busy and event == "deliver":
            queue.deliver(busy[0])
        elif busy and event == "defer":
            queue.defer(busy[0], queue.now + 5.0 * which)
        elif busy:
            queue.find_down(busy[0], queue.destinations.epoch(destination), queue.now)
    for _ in range(10_000):
        for message in list(queue.under_way.values()):
            queue.deliver(message)
        if not queue.take_all():
            wake = queue.destinations.next_due()
            if wake == inf:
                break
            queue.now = max(queue.now, wake)
    assert not queue.queue
    assert (len(queue.destinations), queue.destinations.blocked, queue.destinations.waiting) == (0, 0, 0)


@pytest.mark.parametrize("senders", [1, 3, 300])
def test_mail_in_the_spool_leaves_before_mail_that_arrives_later(senders: int) -> None:
    """As many messages arrive as leave, so that the line never gets shorter."""
    scheduled = Scheduled()
    number, under_way = 0, list[QueuedMessage]()

    def send() -> QueuedMessage:
        nonlocal number
        number += 1
        return scheduled.send("x.example", f"s{number % senders}")

    waited = [send() for _ in range(300)]
    for _ in range(1000):
        scheduled.now += 0.01
        send()
        under_way += scheduled.take_all()
        scheduled.deliver(under_way.pop(0))
    # None of the first is overtaken by one that came later.
    assert {each.key for each in scheduled.taken[:300]} == {each.key for each in waited}
    for sender in {each.envelope.sender for each in waited}:
        own = [each.key for each in scheduled.taken if each.envelope.sender == sender]
        assert own == sorted(own)


def test_a_sender_with_little_mail_passes_what_a_flood_left_in_the_spool() -> None:
    scheduled = Scheduled()
    for _ in range(500):
        scheduled.send("x.example", "flood")
    under_way = scheduled.take_all()
    for _ in range(30):
        scheduled.deliver(under_way.pop(0))
        under_way += scheduled.take_all()
    few = scheduled.send("x.example", "few")
    begun = len(scheduled.taken)
    while few not in scheduled.taken:
        scheduled.deliver(under_way.pop(0))
        under_way += scheduled.take_all()
    assert len(scheduled.taken) - begun <= 2


# Pauses


def test_nothing_is_attempted_in_a_paused_destination_until_it_is_resumed() -> None:
    world = Scheduled()
    before = world.send("x")
    world.destinations.pause("x")
    after, other = world.send("x"), world.send("y")
    assert world.take_all() == [other]
    assert world.destinations.is_shut("x", world.now)
    world.now += 1e6
    world.destinations.probe_now(["x"])
    world.destinations.probe_early(["x"])
    assert world.take_all() == []
    world.destinations.resume("x", world.now)
    assert world.take_all() == [before, after]


def test_a_pause_before_any_mail_holds_what_comes_later_and_after_a_new_start() -> None:
    world = Scheduled()
    world.destinations.pause("x")
    held = [world.send("x") for _ in range(3)]
    assert world.take_all() == []
    world.destinations.start_over([], [])
    world.destinations.due_at("x", 0.0)
    assert world.take_all() == []
    world.destinations.resume("x", world.now)
    assert set(world.take_all()) <= set(held)
    assert world.taken


def test_what_is_under_way_when_its_destination_is_paused_ends_and_nothing_follows() -> None:
    world = Scheduled()
    messages = [world.send("x") for _ in range(10)]
    under_way = world.take_all()
    world.destinations.pause("x")
    for message in under_way:
        world.deliver(message)
    assert world.take_all() == []
    world.destinations.resume("x", world.now)
    assert world.take() in messages


@pytest.mark.parametrize("before", [False, True])
def test_a_pause_does_not_move_the_back_off_of_a_destination_that_is_down(before: bool) -> None:
    world = Scheduled()
    first = world.send("x")
    epoch = world.destinations.epoch("x")
    assert world.take() is first
    if before:
        world.destinations.pause("x")
    world.find_down(first, epoch, world.now, wait=500.0)
    if not before:
        world.destinations.pause("x")
    world.now += 100.0
    assert world.take_all() == []
    world.destinations.resume("x", world.now)
    assert world.take() is not None
    assert world.destinations.regular_probe("x", world.now) == pytest.approx(1500.0)


def test_a_probe_tries_one_message_that_waits_for_a_later_time() -> None:
    world = Scheduled()
    message, other = world.send("x"), world.send("x")
    for taken, until in ((world.take(), 5000.0), (world.take(), 6000.0)):
        assert taken is not None
        world.defer(taken, until)
    assert world.take_all() == []
    world.destinations.probe("x", world.now)
    assert [each.key for each in world.take_all()] == [message.key]
    assert other.key not in world.under_way


def test_a_probe_tries_one_message_also_where_the_first_that_was_known_is_gone() -> None:
    world = Scheduled()
    gone, message = world.send("x"), world.send("x")
    for taken, until in ((world.take(), 5000.0), (world.take(), 6000.0)):
        assert taken is not None
        world.defer(taken, until)
    assert world.take_all() == []
    del world.queue[gone.key]
    world.destinations.probe("x", world.now, 6000.0)
    assert [each.key for each in world.take_all()] == [message.key]
