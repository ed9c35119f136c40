"""Every queued part has a next event: whatever happened before, mail ends in its time.

The spool is the real one, on disk, and so is the delivery service; the clock is the test's, and work for
threads is done in the turn of the reactor.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elemta.address import NULL, Address
from elemta.delivery import DeliveryScheduler, DeliverySettings, Retries
from elemta.delivery.outbound_limits import Permit, Throttled
from elemta.delivery.routes import MxRoute, Route
from elemta.delivery.transports import Transports
from elemta.envelope import Client, Envelope, MailParameters, Notify, Recipient
from elemta.outcome import Attempt, Outcome, ReachedStage, Status
from elemta.policy.verdicts import CONTINUE, Defer, Hold, RouteTo, Verdict
from elemta.spool import HoldCause, MessageState, Spool, SpoolSettings, Submission
from elemta.spool.records import QueuedMessage
from tests.support.runtime import SimulatedReactor, simulated_runtime

START = 1_700_000_000.0
EXPIRE = 4000.0
# Beyond the end of a message: the longest wait for a limit here, a walk, and time for the last attempt.
SLACK = 1000.0
# All others are on hold.
MOVING = (MessageState.ACTIVE, MessageState.DEFERRED)
DOMAINS = ("one.example", "two.example", "three.example")
SETTINGS = DeliverySettings(
    "me.example",
    Retries((60.0, 900.0, 3000.0), expire=EXPIRE),
    warn_after=1500.0,
    poll=60.0,
    max_messages=8,
)


@dataclass
class Network:
    """What comes of an attempt at each destination, and which limits and policies there are."""

    clock: Clock
    answers: dict[str, tuple[ReachedStage, Status, float, float]]
    waits: dict[str, Throttled]
    verdicts: dict[str, Verdict]
    counts: bool = True
    asks: bool = True
    tells: bool = False

    async def deliver(
        self, message: QueuedMessage, ways: Mapping[Route, Sequence[Recipient]]
    ) -> tuple[Outcome, ...]:
        everyone = [each for recipients in ways.values() for each in recipients]
        reached, status, seconds, code = self.answers.get(everyone[0].domain, GOOD)
        if seconds:
            waited: Deferred[None] = Deferred()
            self.clock.callLater(seconds, waited.callback, None)
            await waited
        now = self.clock.seconds()
        attempt = Attempt(message.queue_id, "mx:", wall=lambda: now)
        return tuple(
            attempt.outcome(each.address, status, int(code), "4.4.2", "so", reached=reached)
            for each in everyone
        )

    def acquire(
        self, destination: str, envelope: Envelope, recipients: Sequence[Recipient]
    ) -> Permit | Throttled:
        return self.waits.get(recipients[0].domain, Permit())

    def connect(self, destination: str) -> Permit:
        return Permit()

    def done(self, go: Permit, *, sent: bool = True) -> None:
        pass

    def route(self, envelope: Envelope, recipient: Recipient) -> Any:
        return mock.Mock(verdict=self.verdicts.get(recipient.domain, CONTINUE))


GOOD = (ReachedStage.ANSWERED, Status.DELIVERED, 0.1, 250.0)
ANSWERS = st.sampled_from(
    [
        GOOD,
        (ReachedStage.ANSWERED, Status.DEFERRED, 0.1, 450.0),
        (ReachedStage.ANSWERED, Status.DEFERRED, 40.0, 0.0),  # it broke off
        (ReachedStage.ANSWERED, Status.FAILED, 0.1, 550.0),
        (ReachedStage.NOWHERE, Status.DEFERRED, 0.0, 0.0),
        (ReachedStage.NOWHERE, Status.DEFERRED, 120.0, 0.0),
        (ReachedStage.NOTHING_FREE, Status.DEFERRED, 0.0, 0.0),
    ]
)
WAITS = st.builds(Throttled, st.sampled_from([20.0, 600.0]), st.just("pace"), st.booleans())
VERDICTS = st.sampled_from([Hold("for now"), Defer("later"), RouteTo("smtp://relay.example.net:25")])
# How a destination does: what comes of an attempt, a limit that is full, and what a policy says.
Place = tuple[tuple[ReachedStage, Status, float, float], Throttled | None, Verdict]
PLACE = st.one_of(
    st.tuples(ANSWERS, st.none(), st.just(CONTINUE)),
    st.tuples(ANSWERS, WAITS, st.just(CONTINUE)),
    st.tuples(ANSWERS, WAITS, VERDICTS),
)


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.clock = SimulatedReactor()
        self.clock.advance(START)
        runtime = simulated_runtime(self.clock)
        retries = replace(SETTINGS.retries, uniform=runtime.randomness.uniform)
        self.network = Network(self.clock, {}, {}, {})
        self.spool: Spool = self.done(
            Spool.open(
                SpoolSettings(self.directory, minimum_free=0, reserve=4096, inline_limit=1000),
                runtime=runtime,
            )
        )
        self.patches = ExitStack()
        self.patches.enter_context(
            mock.patch.object(Transports, "deliver", lambda _, *args: self.network.deliver(*args[:2]))
        )
        # So that hours are not made of seconds.
        self.patches.enter_context(mock.patch("elemta.delivery.attempt._NOTHING_FREE", 50.0))
        self.delivery = DeliveryScheduler(
            runtime,
            self.spool,
            (MxRoute("mx:", frozenset("*"), max_connections=2),),
            replace(SETTINGS, retries=retries),
            limiter=self.network,  # type: ignore[arg-type]
            hooks=self.network,  # type: ignore[arg-type]
        )
        self.delivery.startService()

    def done(self, work: Any) -> Any:
        """What a coroutine of the spool gives, after as many turns of the reactor as it takes."""
        results: list[Any] = []
        deferred = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
        deferred.addBoth(results.append)
        for _ in range(1000):
            if results:
                break
            self.clock.advance(0)
        (result,) = results
        if hasattr(result, "raiseException"):
            result.raiseException()
        return result

    def run_for(self, seconds: float) -> None:
        """Let time pass, from event to event."""
        end = self.clock.seconds() + seconds
        events = 0
        while (now := self.clock.seconds()) < end:
            events += 1
            assert events < seconds + 2000, "something is done again and again"
            following = min((call.getTime() for call in self.clock.getDelayedCalls()), default=end)
            self.clock.advance(max(min(following, end) - now, 0.001))

    def queued(self) -> list[Any]:
        return list(self.done(self.spool.list(limit=10_000)))

    @rule(
        domains=st.lists(st.sampled_from(DOMAINS), min_size=1, max_size=3),
        sender=st.sampled_from([Address("ann", "one.example"), Address("eve", "gone.example"), NULL]),
        notify=st.sampled_from([None, Notify.NEVER, Notify.SUCCESS | Notify.FAILURE | Notify.DELAY]),
        size=st.sampled_from([10, 5000]),
        number=st.integers(1, 12),
        held=st.sampled_from([None, None, None, "quarantined"]),
    )
    def send(
        self,
        domains: list[str],
        sender: Address,
        notify: Notify | None,
        size: int,
        number: int,
        held: str | None,
    ) -> None:
        for _ in range(number):
            writer = self.spool.begin()
            writer.write(b"Subject: x\r\n\r\n" + b"x" * size)
            everyone = tuple(
                Recipient(Address(f"user{place}", domain), notify) for place, domain in enumerate(domains)
            )
            now = self.clock.seconds()
            submission = Submission(sender, everyone, MailParameters(), Client(), b"", now, held)
            self.done(self.spool.commit(writer, submission))

    @initialize(places=st.tuples(PLACE, PLACE, PLACE))
    def begin(self, places: tuple[Place, ...]) -> None:
        for domain, place in zip(DOMAINS, places, strict=True):
            self.change(domain, place)

    @rule(domain=st.sampled_from(DOMAINS), place=PLACE)
    def change(self, domain: str, place: Place) -> None:
        answer, wait, verdict = place
        self.network.answers[domain] = answer
        self.network.verdicts[domain] = verdict
        if wait is None:
            self.network.waits.pop(domain, None)
        else:
            self.network.waits[domain] = wait

    @rule(seconds=st.sampled_from([0.05, 1.0, 61.0, 700.0, 2500.0]))
    def pass_time(self, seconds: float) -> None:
        self.run_for(seconds)

    @precondition(lambda self: self.queued())
    @rule(place=st.integers(0, 100), act=st.sampled_from(["hold", "release", "retry", "delete"]))
    def operate(self, place: int, act: str) -> None:
        found = self.queued()
        line = found[place % len(found)]
        if act == "retry" and line.state not in MOVING:
            return
        self.done(getattr(self.spool, act)(line.queue_id))

    @precondition(lambda self: self.queued())
    @rule(place=st.integers(0, 100))
    def lose_body(self, place: int) -> None:
        bodies = sorted((self.directory / "p0" / "bodies").iterdir())
        if bodies:
            bodies[place % len(bodies)].unlink()

    @rule()
    def reload(self) -> None:
        self.delivery.reconfigure(self.delivery.routes, SETTINGS, self.network)  # type: ignore[arg-type]

    @rule()
    def restart(self) -> None:
        stopped = self.delivery.stop_within(1.0)
        self.run_for(10.0)
        assert stopped.called
        self.delivery.startService()

    def teardown(self) -> None:
        try:
            self.check()
        finally:
            stopped = self.delivery.stop_within(0.0)
            self.run_for(10.0)
            assert stopped.called
            self.done(self.spool.close())
            self.patches.close()
            shutil.rmtree(self.directory)

    def check(self) -> None:
        """Nothing is done any more, and the network stays as it is."""
        end = self.clock.seconds()
        self.run_for(EXPIRE + SLACK)
        late = [line for line in self.queued() if line.state in MOVING and line.received_at < end]
        assert late == []
        # A hold that ends gives a notice, which ends, too; so each has its time.
        for _ in range(5):
            if self.left_to_operators():
                return
            self.run_for(EXPIRE + SLACK)
        assert self.left_to_operators(), self.queued()

    def left_to_operators(self) -> bool:
        """Whether nothing is in the queue but what an operator put on hold."""
        return all(
            line.state is MessageState.HOLD and self.causes(line.queue_id) == {HoldCause.OPERATOR}
            for line in self.queued()
        )

    def causes(self, queue_id: str) -> set[HoldCause]:
        rows = self.spool._reader.all(
            "SELECT hold FROM part WHERE message_id = (SELECT id FROM message WHERE queue_id = ?)",
            (queue_id,),
        )
        return {HoldCause(cause) for (cause,) in rows}


_BOUNDS: dict[str, Any] = {
    "stateful_step_count": 12,
    "deadline": None,
    # A failure says enough; to make it smaller would take far longer than to find it.
    "phases": (Phase.explicit, Phase.reuse, Phase.generate),
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}


def test_whatever_happened_mail_that_nobody_cares_for_ends_in_its_time() -> None:
    run_state_machine_as_test(Histories, settings=settings(max_examples=6, **_BOUNDS))  # type: ignore[no-untyped-call]


@pytest.mark.campaign
def test_in_many_more_histories_mail_ends_in_its_time() -> None:
    run_state_machine_as_test(Histories, settings=settings(max_examples=200, **_BOUNDS))  # type: ignore[no-untyped-call]
