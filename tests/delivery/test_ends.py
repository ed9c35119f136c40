"""Observers hear of the end of each recipient once it is recorded, and why nothing more is tried."""

from __future__ import annotations

from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.task import Clock
from zope.interface import implementer

from elemta.address import Address
from elemta.config import PolicyCommon
from elemta.delivery.delivery_record import settle_surely
from elemta.delivery.notices import FollowUp
from elemta.envelope import Client, Envelope, MailParameters, Notify, Recipient
from elemta.errors import SpoolError
from elemta.metrics import PolicyMetrics
from elemta.outcome import Outcome, Status
from elemta.policy import IDeliveryObserver
from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.policy.policy_calls import attempted_of, ended_of
from elemta.policy.runner import ChainSettings, LoadedPolicy, PolicyRunner

ANNA = Recipient(Address("anna", "example.org"), notify=Notify.FAILURE)
BERT = Recipient(Address("bert", "example.org"))


class Message:
    queue_id, part = "2CmXq07DRb3", 0
    envelope = Envelope(
        "2CmXq07DRb3", Address("s", "x.test"), (ANNA, BERT), 1.0, 10, MailParameters(), Client()
    )
    pending = (ANNA, BERT)


class Queue:
    """A queue that records, or fails, as the test says."""

    def __init__(self, observer: Any, error: Exception | None = None) -> None:
        self.observer, self.error = observer, error
        self.recorded: list[Any] = []

    async def settle(self, queue_id: str, outcomes: Any, **_: Any) -> None:
        if self.error is not None:
            raise self.error
        self.recorded.append(outcomes)


@implementer(IDeliveryObserver)
class Observer:
    def __init__(self) -> None:
        self.ends: list[Any] = []

    def attempted(self, outcome: Outcome) -> None:
        raise AssertionError("no attempt was made")

    def ended(self, envelope: Envelope, recipient: Recipient, outcome: Outcome) -> None:
        self.ends.append((envelope.queue_id, recipient, outcome.status, outcome.reason))


@implementer(IDeliveryObserver)
class First:
    """As in version 1 of the contract."""

    def attempted(self, outcome: Outcome) -> None:
        raise AssertionError("no attempt was made")


def hooks(policy: Any) -> DeliveryHooks:
    clock: Any = Clock()
    loaded = LoadedPolicy("p", policy, PolicyCommon())
    runner = PolicyRunner(loaded, clock, PolicyMetrics(), ChainSettings())
    attempted, ended = attempted_of(runner, policy), ended_of(runner, policy)
    return DeliveryHooks((), [attempted] if attempted else [], clock, (), [ended] if ended else [])


def outcome(recipient: Recipient, status: Status, reason: str = "") -> Outcome:
    return Outcome("2CmXq07DRb3", recipient.address, status, "", "mx:", "", 1.0, reason=reason)


@pytest.mark.parametrize(
    ("outcomes", "held", "expected"),
    [
        ([outcome(ANNA, Status.DELIVERED)], None, [(ANNA, Status.DELIVERED, "delivered")]),
        ([outcome(BERT, Status.FAILED)], None, [(BERT, Status.FAILED, "failed")]),
        ([outcome(BERT, Status.FAILED, "expired")], None, [(BERT, Status.FAILED, "expired")]),
        ([outcome(BERT, Status.DEFERRED)], None, []),
        (
            [outcome(ANNA, Status.DELIVERED), outcome(BERT, Status.FAILED)],
            "undeliverable",
            [(ANNA, Status.DELIVERED, "delivered")],
        ),
    ],
)
@ensureDeferred
async def test_what_ended_is_told_after_it_was_recorded(outcomes: Any, held: Any, expected: Any) -> None:
    observer, message = Observer(), Message()
    queue: Any = Queue(hooks(observer))
    await settle_surely(queue, message, outcomes, hold_reason=held)  # type: ignore[arg-type]
    assert observer.ends == [("2CmXq07DRb3", *each) for each in expected]
    failing: Any = Queue(hooks(observer), SpoolError("no"))
    with pytest.raises(SpoolError):
        await settle_surely(failing, message, outcomes, hold_reason=held)  # type: ignore[arg-type]
    assert len(observer.ends) == len(expected)


@ensureDeferred
async def test_an_observer_of_version_1_and_a_queue_without_one_are_told_nothing() -> None:
    for observer in (None, hooks(First())):
        queue: Any = Queue(observer)
        await settle_surely(queue, Message(), [outcome(ANNA, Status.DELIVERED)])  # type: ignore[arg-type]
        assert len(queue.recorded) == 1


def test_what_is_given_up_by_age_is_expired_and_what_a_host_refused_then_is_not() -> None:
    following = FollowUp(Status.FAILED)
    deferred, failed, delivered = (
        outcome(ANNA, status) for status in (Status.DEFERRED, Status.FAILED, Status.DELIVERED)
    )
    assert [each.reason for each in following.recorded([deferred, failed, delivered])] == ["expired", "", ""]
