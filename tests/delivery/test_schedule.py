"""The scheduler over a real spool and real connections: many destinations, destinations that are shut,
time passing."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import fail
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, globalLogPublisher
from zope.interface import implementer

from elemta.address import NULL, Address
from elemta.config import Counts, Identity, LimitConfig, PolicyCommon, Rate, ResourcesConfig
from elemta.delivery import DeliveryScheduler, Retries
from elemta.delivery.destinations import Destinations
from elemta.delivery.outbound_limits import OutboundLimiter
from elemta.delivery.routes import HoldRoute, MxRoute, NextHopRoute, Route
from elemta.dns import MailExchanger
from elemta.envelope import Envelope, Recipient
from elemta.errors import NoSuchDomain, ResolverTrouble, SpoolError
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.outcome import Outcome, Status
from elemta.policy import (
    CONTINUE,
    Defer,
    Hold,
    IDeliveryObserver,
    IDeliveryPolicy,
    LoadedPolicy,
    PolicyChain,
    RouteTo,
    Verdict,
)
from elemta.runtime import ProcessRuntime, Runtime
from elemta.spool import MessageState, Spool, SpoolSettings, Submission
from elemta.spool.records import PlannedPart
from tests.spool.mail import RecordingDisk, put
from tests.support.post import CLOSE, Hop, Post, reactor
from tests.support.runtime import runtime_of

DEAD = NextHopRoute("smtp://127.0.0.1:1", frozenset({"dead.example"}), host="127.0.0.1", port=1)


def to(route: NextHopRoute, *domains: str) -> NextHopRoute:
    return replace(route, domains=frozenset(domains))


async def destination_is_blocked(post: Post, destination: str = DEAD.target) -> None:
    delivery = post.delivery
    assert delivery is not None
    await post.until(lambda: delivery._destinations.failures(destination) and not delivery.under_way)


async def gone(post: Post) -> None:
    """Wait until nothing waits but notices."""
    for _ in range(2000):
        if not await post.queued():
            return
        await deferLater(reactor, 0.005)
    raise AssertionError("there is still mail")


@ensureDeferred
async def test_a_message_to_several_destinations_is_settled_for_each_on_its_own(post: Post) -> None:
    good, full = Hop(), Hop({"RCPT": b"452 4.2.2 full\r\n"})
    never = Hop({"RCPT": b"550 5.1.1 no such user\r\n"})
    post.start(
        to(await post.listen(good), "good.example"),
        to(await post.listen(full), "full.example"),
        to(await post.listen(never), "never.example"),
        DEAD,
    )
    queue_id = await post.send("a@good.example", "b@full.example", "c@never.example", "d@dead.example")
    await post.idle(4)
    record = await post.show(queue_id)
    assert [
        (str(said.recipient), said.pending, said.outcome and said.outcome.status)
        for said in record.recipients
    ] == [
        ("a@good.example", False, Status.DELIVERED),
        ("b@full.example", True, Status.DEFERRED),
        ("c@never.example", False, Status.FAILED),
        ("d@dead.example", True, Status.DEFERRED),
    ]
    assert record.message.state is MessageState.DEFERRED
    (bounce,) = await post.bounces()
    assert "c@never.example" in bounce
    assert len(good.messages) == 1


@ensureDeferred
async def test_when_a_destination_is_back_one_probe_brings_all_its_mail(post: Post) -> None:
    hop = Hop()
    route = await post.listen(hop)
    await post._ports.pop().stopListening()
    post.settings = replace(post.settings, retries=Retries((0.3,)))
    post.start(route)
    started = time.monotonic()
    for _ in range(50):
        await post.send("bob@example.com")
    await destination_is_blocked(post, route.target)
    attempts = len(post.observer.outcomes)
    assert attempts <= 2 + (time.monotonic() - started) / 0.3
    post._ports.append(reactor.listenTCP(route.port, hop, interface="127.0.0.1"))
    await gone(post)
    assert len(hop.messages) == 50
    # One more may have been made in vain before the host was back.
    assert len(post.observer.outcomes) <= attempts + 51


@ensureDeferred
async def test_all_that_waited_for_a_destination_is_due_without_a_commit(tmp_path: Path) -> None:
    disk = RecordingDisk()
    spool = await Spool.open(
        SpoolSettings(tmp_path / "spool", minimum_free=0), runtime=runtime_of(reactor, disk=disk)
    )
    try:
        now = time.time()
        destinations = Destinations(lambda destination: 10, 100)
        said = Outcome("", Address("bob", "example.com"), Status.DEFERRED, "down", "", "", now)
        ids = [(await put(spool, b"body")).queue_id for _ in range(40)]
        (found,) = await spool.due(now + 1, {"": 100})
        # The last is to be tried first.
        for wait, message in enumerate(reversed(found.messages)):
            retry_at = now + 100 + wait
            await spool.settle(message.queue_id, (), part=0, retry_at=retry_at, hold_reason=None)
        later = (await put(spool, b"body")).queue_id
        (found,) = await spool.due(now + 1, {"": 100})
        await spool.settle(later, (), part=0, retry_at=now + 1001, hold_reason=None)
        destinations.block("", now + 1000, said)
        destinations.probe_now([""])
        disk.diary.clear()
        taken: list[str] = []
        while wanted := destinations.wanted(now):
            until = destinations.brought_forward(wanted)
            for due in await spool.due(now, wanted, destinations.known(wanted), until):
                destinations.loaded(due, now)
            while (next_one := destinations.take(now, 100)) is not None:
                taken.append(next_one.queue_id)
                destinations.answered("", now, delivered=True)
                destinations.finished(next_one)
        assert taken == ids[::-1]
        assert "COMMIT" not in disk.diary
        # What waits for a time of its own goes on waiting.
        assert destinations.next_due() >= now + 100
    finally:
        await spool.close()


@ensureDeferred
async def test_a_destination_that_is_blocked_or_open_again_is_logged(post: Post) -> None:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        hop = Hop({"": [b"421 4.3.2 not now\r\n", b"421 4.3.2 not now\r\n"] + [b"220 hop\r\n"] * 9})
        route = await post.listen(hop)
        post.settings = replace(post.settings, retries=Retries((0.1,)))
        post.start(route)
        await post.send("bob@example.com")
        await gone(post)
        # The delivery is recorded first.
        await post.until(
            lambda: any(event.get("event") == "delivery.destination_reopened" for event in events)
        )
    finally:
        globalLogPublisher.removeObserver(events.append)
    told = [event for event in events if str(event.get("event")).startswith("delivery.destination_")]
    assert [event["event"] for event in told] == [
        "delivery.destination_blocked",
        "delivery.destination_blocked",
        "delivery.destination_reopened",
    ]
    assert [event.get("failures") for event in told] == [1, 2, None]
    assert "not now" in told[0]["reason"]


@ensureDeferred
async def test_mail_for_a_destination_that_stays_down_expires_untried_with_what_was_said_last(
    post: Post,
) -> None:
    post.settings = replace(post.settings, retries=Retries((3600.0,), expire=2.0), poll=0.05)
    post.start(DEAD)
    for _ in range(10):
        await post.send("bob@dead.example")
    await destination_is_blocked(post)
    attempts = len(post.observer.outcomes)
    await gone(post)
    assert len(post.observer.outcomes) == attempts <= 2
    bounces = await post.bounces()
    assert len(bounces) == 10
    assert all("Status: 5.4.7" in bounce and "no connection to 127.0.0.1:1" in bounce for bounce in bounces)


@ensureDeferred
async def test_a_message_in_many_dead_destinations_expires_with_one_notice_for_all(post: Post) -> None:
    dead = [
        NextHopRoute(f"smtp://127.0.0.1:{port}", frozenset({f"d{port}.example"}), host="127.0.0.1", port=port)
        for port in range(1, 6)
    ]
    post.settings = replace(post.settings, retries=Retries((3600.0,), expire=1.5), poll=0.05)
    post.start(*dead)
    await post.send(*[f"bob@d{port}.example" for port in range(1, 6)])
    await gone(post)
    (bounce,) = await post.bounces()
    assert all(f"Final-Recipient: rfc822; bob@d{port}.example" in bounce for port in range(1, 6))


@ensureDeferred
async def test_nobody_is_told_of_an_expired_notice_it_stays_on_hold(post: Post) -> None:
    post.settings = replace(post.settings, retries=Retries((3600.0,), expire=0.4), poll=0.05)
    post.sender = NULL
    post.start(DEAD)
    queue_id = await post.send("bob@dead.example")
    message = (await post.reached(queue_id, MessageState.HOLD)).message
    assert "gets no notice" in (message.hold_reason or "")
    assert [line.queue_id for line in await post.spool.list()] == [queue_id]


@ensureDeferred
async def test_a_sender_is_told_of_a_delay_once_also_over_a_restart(post: Post) -> None:
    post.settings = replace(post.settings, warn_after=1.5, poll=0.05)
    delivery = post.start(DEAD)
    await post.send("bob@dead.example")
    await destination_is_blocked(post)
    assert await post.bounces() == []
    while not await post.bounces():
        await deferLater(reactor, 0.01)
    await delivery.stopService()
    post.start(DEAD)
    await deferLater(reactor, 0.3)
    (notice,) = await post.bounces()
    assert "Action: delayed" in notice
    assert "no connection to 127.0.0.1:1" in notice
    assert len(await post.queued()) == 1


@ensureDeferred
async def test_new_routes_take_effect_on_what_waits_for_a_dead_destination(post: Post) -> None:
    hop = Hop()
    alive = to(await post.listen(hop), "dead.example")
    delivery = post.start(DEAD)
    for _ in range(20):
        await post.send("bob@dead.example", "eve@dead.example")
    await destination_is_blocked(post)
    delivery.reconfigure([alive], post.settings, post.observer.hooks)
    await gone(post)
    assert len(hop.messages) == 20


@ensureDeferred
async def test_an_operators_retry_probes_a_destination_and_if_it_is_back_all_its_mail_goes(
    post: Post,
) -> None:
    hop = Hop()
    route = await post.listen(hop)
    await post._ports.pop().stopListening()
    post.start(route)
    first = await post.send("bob@example.com")
    for _ in range(5):
        await post.send("bob@example.com")
    await destination_is_blocked(post, route.target)
    post._ports.append(reactor.listenTCP(route.port, hop, interface="127.0.0.1"))
    await post.spool.retry(first)
    await gone(post)
    assert len(hop.messages) == 6


@ensureDeferred
async def test_no_number_of_retries_moves_the_back_off_of_a_destination(post: Post) -> None:
    route = await post.listen(Hop())
    await post._ports.pop().stopListening()
    post.settings = replace(post.settings, retries=Retries((30.0, 300.0, 3600.0), jitter=0.0))
    delivery = post.start(route)
    first = await post.send("bob@example.com")
    await destination_is_blocked(post, route.target)
    regular, attempts = _next_probe(delivery, route.target), len(post.observer.outcomes)
    for _ in range(3):
        # Each is a command of its own.
        delivery.commands.commanded.clear()
        await post.spool.retry(first)
        attempts += 1
        await post.idle(attempts)
        await destination_is_blocked(post, route.target)
        assert delivery._destinations.failures(route.target) == 1
        assert _next_probe(delivery, route.target) == pytest.approx(regular, abs=0.01)


def _next_probe(delivery: DeliveryScheduler, name: str) -> float:
    destinations = delivery._destinations
    found = destinations.find(name) or destinations._resting.get(name)
    assert found is not None
    return found.shut_until


@ensureDeferred
async def test_a_command_about_many_messages_probes_a_dead_destination_once(post: Post) -> None:
    route = await post.listen(Hop())
    await post._ports.pop().stopListening()
    post.settings = replace(post.settings, retries=Retries((30.0,), jitter=0.0))
    post.start(route)
    ids = [await post.send("bob@example.com") for _ in range(20)]
    await destination_is_blocked(post, route.target)
    attempts = len(post.observer.outcomes)
    for queue_id in ids:
        await post.spool.retry(queue_id)
    await post.idle()
    assert len(post.observer.outcomes) == attempts + 1


@ensureDeferred
async def test_mail_of_an_older_spool_finds_its_destinations(tmp_path: Path) -> None:
    spool = await Spool.open(SpoolSettings(tmp_path / "spool", minimum_free=0), runtime=Runtime.of(reactor))
    post = Post(tmp_path, spool)
    for _ in range(30):
        await post.send("a@one.example", "b@two.example")
    # As an upgrade leaves it: in the destination without a name.
    assert [destination for destination, _ in await spool.destinations(None, 10)] == [""]
    one, two = Hop(), Hop()
    post.start(to(await post.listen(one), "one.example"), to(await post.listen(two), "two.example"))
    await gone(post)
    assert (len(one.messages), len(two.messages)) == (30, 30)
    await post.stop()
    await spool.close()


@ensureDeferred
async def test_a_plan_that_breaks_delays_nothing(post: Post) -> None:
    hop = Hop()
    post.start(await post.listen(hop))

    def broken(submission: Submission) -> tuple[PlannedPart, ...]:
        raise RuntimeError("no plan")

    post.spool.use_plan(broken)
    await post.send("bob@example.com")
    await gone(post)
    assert len(hop.messages) == 1


@ensureDeferred
async def test_a_recipient_is_not_given_up_before_its_notice_is_stored(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = post.spool.commit
    hop = Hop({"RCPT": b"550 5.1.1 no\r\n"})
    post.settings = replace(post.settings, retries=Retries((0.2,)))
    post.start(await post.listen(hop))
    queue_id = await post.send("bob@example.com")
    monkeypatch.setattr(post.spool, "commit", lambda *_, **__: fail(SpoolError("the disk is full")))
    await post.idle()
    record = await post.show(queue_id)
    assert (record.message.state, record.recipients[0].pending) == (MessageState.DEFERRED, True)
    monkeypatch.setattr(post.spool, "commit", commit)
    await gone(post)
    assert len(await post.bounces()) == 1


@ensureDeferred
async def test_a_destination_over_its_pace_waits_and_the_others_do_not(post: Post) -> None:
    limit = LimitConfig("pace", (Identity.DESTINATION,), Counts.MESSAGES, (Rate(3, 1.0),))
    pace = OutboundLimiter(
        Limiter(rules_from_config(ResourcesConfig(), (limit,)), LocalStore(ProcessRuntime.of_system()))
    )
    slow, quick = Hop(), Hop()
    routes = (to(await post.listen(slow), "slow.example"), to(await post.listen(quick), "quick.example"))
    started = time.monotonic()
    post.delivery = DeliveryScheduler(
        Runtime.of(reactor), post.spool, routes, post.settings, limiter=pace, hooks=post.observer.hooks
    )
    post.delivery.startService()
    for _ in range(9):
        await post.send("bob@slow.example")
    for _ in range(3):
        await post.send("bob@quick.example")
    await post.until(lambda: len(quick.messages) == 3)
    assert len(slow.messages) <= 3 or time.monotonic() - started > 1.0
    await gone(post)
    assert len(slow.messages) == 9
    # Three windows of a second: the first at once, then two more.
    assert time.monotonic() - started >= 2.0
    # To wait is no attempt. The last outcome is reported after its message left the queue.
    await post.idle(12)
    assert len(post.observer.outcomes) == 12


@dataclass
class Zone:
    """A resolver whose answers are a dict."""

    exchangers: dict[str, tuple[MailExchanger, ...] | Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def mail_exchangers(self, domain: str) -> tuple[MailExchanger, ...]:
        self.asked.append(domain)
        answer = self.exchangers.get(domain, NoSuchDomain(f"{domain} does not exist"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def addresses(self, host: str) -> tuple[IPv4Address, ...]:
        return (IPv4Address("127.0.0.1"),)


def by_mx(post: Post, zone: Zone, port: int) -> DeliveryScheduler:
    post.settings = replace(post.settings, mx_port=port)
    routes: tuple[Route, ...] = (
        HoldRoute("hold:", frozenset({"example.org"}), reason="a notice"),
        MxRoute("mx:", frozenset({"*"}), refuse_networks=()),
    )
    post.delivery = DeliveryScheduler(
        Runtime.of(reactor), post.spool, routes, post.settings, resolver=zone, hooks=post.observer.hooks
    )
    post.delivery.startService()
    return post.delivery


@ensureDeferred
async def test_by_mx_each_domain_is_a_destination_of_its_own(post: Post) -> None:
    hop = Hop()
    port = (await post.listen(hop)).port
    good = (MailExchanger(10, "mx.good.example"),)
    zone = Zone({"good.example": good, "bücher.example": good, "xn--bcher-kva.example": good})
    zone.exchangers["broken.example"] = ResolverTrouble("no server answered")
    delivery = by_mx(post, zone, port)
    queue_id = await post.send(
        "a@good.example", "b@xn--bcher-kva.example", "c@broken.example", "d@none.example"
    )
    await post.idle(4)
    assert sorted(zone.asked) == [
        "broken.example",
        "good.example",
        "none.example",
        "xn--bcher-kva.example",
    ]
    assert len(hop.messages) == 2
    assert [outcome.next_hop for outcome in post.observer.outcomes if outcome.status is Status.DELIVERED] == [
        f"mx.good.example[127.0.0.1]:{port}"
    ] * 2
    (bounce,) = await post.bounces()
    assert "d@none.example" in bounce
    assert "5.1.2" in bounce
    record = await post.show(queue_id)
    assert [str(recipient) for recipient in record.message.pending] == ["c@broken.example"]
    assert delivery._destinations.failures("broken.example") == 1


@ensureDeferred
async def test_a_domain_that_dns_can_not_answer_for_costs_one_question_per_interval(post: Post) -> None:
    zone = Zone({"broken.example": ResolverTrouble("no server answered")})
    by_mx(post, zone, 1)
    for _ in range(30):
        await post.send("bob@broken.example")
    await destination_is_blocked(post, "broken.example")
    await deferLater(reactor, 0.2)
    assert len(zone.asked) <= 2


@ensureDeferred
async def test_a_next_hop_that_always_breaks_off_is_left_alone_soon(post: Post) -> None:
    hop = Hop({"RCPT": CLOSE})
    route = await post.listen(hop)
    post.start(route)
    for _ in range(50):
        await post.send("bob@example.com")
    await destination_is_blocked(post, route.target)
    await deferLater(reactor, 0.1)
    assert len(post.observer.outcomes) <= 5


@ensureDeferred
async def test_one_message_that_makes_a_next_hop_break_off_does_not_shut_its_destination(post: Post) -> None:
    hop = Hop({"RCPT": [CLOSE, *[b"250 ok\r\n"] * 40]})
    post.start(await post.listen(hop))
    for _ in range(20):
        await post.send("bob@example.com")
    await post.until(lambda: len(hop.messages) == 19)
    await post.until(lambda: post.delivery is not None and not post.delivery.under_way)
    assert len(await post.queued()) == 1


@ensureDeferred
async def test_the_place_of_a_part_in_its_destination_is_in_the_spool(post: Post) -> None:
    post.start(DEAD)
    for sender in ("flood", "flood", "flood", "other"):
        post.sender = Address(sender, "example.org")
        await post.send("bob@dead.example")
    await destination_is_blocked(post)
    post.sender = Address("flood", "example.org")
    await post.send("bob@dead.example")
    post.sender = Address("late", "example.org")
    await post.send("bob@dead.example")
    (due,) = await post.spool.due(time.time(), {DEAD.target: 10})
    waiting = [
        message.envelope.sender.local for message in due.messages if message.state is MessageState.ACTIVE
    ]
    assert waiting.index("late") < len(waiting) - 1


@pytest.mark.parametrize("wrong", [lambda: None, tuple, lambda: (PlannedPart("x", 0.0, (1,)),)])
@ensureDeferred
async def test_a_plan_without_parts_loses_nobody(post: Post, wrong: Callable[[], object]) -> None:
    hop = Hop()
    post.start(await post.listen(hop))
    post.spool.use_plan(lambda _: wrong())  # type: ignore[arg-type,return-value]
    await post.send("bob@example.com")
    await gone(post)
    assert len(hop.messages) == 1


def parts_of(directory: Path) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(directory / "spool" / "p0" / "queue.db")
    try:
        return connection.execute("SELECT lane, positions FROM part ORDER BY message_id, number").fetchall()
    finally:
        connection.close()


@ensureDeferred
async def test_one_message_to_one_destination_is_one_short_row(post: Post, tmp_path: Path) -> None:
    post.start(DEAD, HoldRoute("hold:", frozenset({"*"})))
    await post.send("a@dead.example", "b@dead.example")
    await post.send("a@dead.example", "b@kept.example", "c@dead.example")
    assert parts_of(tmp_path) == [
        (DEAD.target, None),
        (DEAD.target, "[0, 2]"),
        ("hold:", "[1]"),
    ]


@implementer(IDeliveryPolicy, IDeliveryObserver)
class Router:
    """A policy that answers by local-part, and remembers what it is asked and told."""

    def __init__(self, **answers: Verdict | list[Verdict]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.told: list[str] = []

    def route(self, envelope: Envelope, recipient: Recipient) -> Verdict:
        self.asked.append(recipient.local)
        answer = self.answers.get(recipient.local, CONTINUE)
        if isinstance(answer, list):
            answer.append(answer.pop(0))
            return answer[-1]
        return answer

    def attempted(self, outcome: Outcome) -> None:
        self.told.append(f"{outcome.recipient.local} {outcome.status.value}")


def routed(post: Post, router: Router, *routes: Route) -> DeliveryScheduler:
    chain = PolicyChain([LoadedPolicy("router", router, PolicyCommon())], reactor)
    bounces = HoldRoute("hold:", frozenset({"example.org"}), reason="a notice")
    post.delivery = DeliveryScheduler(
        Runtime.of(reactor),
        post.spool,
        (bounces, *routes),
        post.settings,
        hooks=chain.delivery_hooks,
    )
    post.delivery.startService()
    return post.delivery


@ensureDeferred
async def test_a_policy_sends_recipients_their_own_ways(post: Post) -> None:
    usual, other = Hop(), Hop()
    route, elsewhere = await post.listen(usual), await post.listen(other)
    router = Router(
        other=RouteTo(elsewhere.target), keep=Hold("look at it"), later=Defer("not today", 451, "4.7.1")
    )
    routed(post, router, to(route, "example.com"))
    queue_id = await post.send(*[f"{name}@example.com" for name in ("usual", "other", "keep", "later")])
    await post.until(lambda: usual.messages and other.messages)
    for _ in range(1000):
        record = await post.show(queue_id)
        if sum(said.pending for said in record.recipients) == 2 and record.message.hold_reason:
            break
        await deferLater(reactor, 0.005)
    assert [line for line in usual.heard if line.startswith(b"RCPT")] == [b"RCPT TO:<usual@example.com>"]
    assert [line for line in other.heard if line.startswith(b"RCPT")] == [b"RCPT TO:<other@example.com>"]
    assert record.message.hold_reason == "look at it"
    await post.until(lambda: sorted(router.told) == ["other delivered", "usual delivered"])
    # Policies learn of a delivery before the record of recipients that wait.
    await post.until(lambda: post.delivery is not None and not post.delivery.under_way)
    said = {str(each.recipient): each for each in (await post.show(queue_id)).recipients}[
        "later@example.com"
    ].outcome
    assert said is not None
    assert (said.status, said.text, said.enhanced) == (Status.DEFERRED, "not today", "4.7.1")


@ensureDeferred
async def test_a_policy_that_changes_its_mind_every_time_does_not_keep_mail_going_round(post: Post) -> None:
    one, two = Hop(), Hop()
    first, second = await post.listen(one), await post.listen(two)
    router = Router(bob=[RouteTo(second.target), RouteTo(first.target)])
    routed(post, router, first)
    for _ in range(10):
        await post.send("bob@example.com")
    await gone(post)
    assert len(router.asked) == 10
    assert len(one.messages) == len(two.messages) == 5
