"""The driver for a value now or a Deferred later, against a model: the same steps on values alone."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.python.failure import Failure

from elemta.deferred_value import MaybeDeferred, Steps, detached, handled, run, value_of


class StepError(Exception):
    """What a step may fail with."""


@dataclass(frozen=True)
class Step:
    """One thing that is waited for: how it arrives, whether it fails, and whether a failure is caught."""

    how: str
    fails: bool
    caught: bool


HOWS = ["value", "fired", "later"]
steps_of_all_kinds = st.lists(
    st.builds(Step, st.sampled_from(HOWS), st.booleans(), st.booleans()).filter(
        lambda step: not (step.how == "value" and step.fails)
    ),
    max_size=12,
)


def awaited(step: Step, number: int, later: list[tuple[Deferred[Any], Any]]) -> object:
    outcome: Any = Failure(StepError(number)) if step.fails else number
    if step.how == "value":
        return number
    if step.how == "fired":
        return fail(outcome) if step.fails else succeed(number)
    deferred: Deferred[Any] = Deferred()
    later.append((deferred, outcome))
    return deferred


def generator(steps: list[Step], later: list[tuple[Deferred[Any], Any]], seen: list[object]) -> Steps[int]:
    for number, step in enumerate(steps):
        try:
            seen.append((yield awaited(step, number, later)))
        except StepError as error:
            if not step.caught:
                raise
            seen.append(str(error))
    return len(steps)


def expected(steps: list[Step]) -> tuple[list[object], int | None]:
    """What is seen, and what is returned: None where a failure comes through."""
    seen: list[object] = []
    for number, step in enumerate(steps):
        if step.fails and not step.caught:
            return seen, None
        seen.append(str(number) if step.fails else number)
    return seen, len(steps)


def waits(steps: list[Step]) -> bool:
    """Whether any Deferred that is reached has not fired yet."""
    for step in steps:
        if step.how == "later":
            return True
        if step.fails and not step.caught:
            return False
    return False


@given(steps_of_all_kinds)
def test_steps_see_the_same_however_values_arrive(steps: list[Step]) -> None:
    later: list[tuple[Deferred[Any], Any]] = []
    seen: list[object] = []
    wanted, value = expected(steps)
    if value is None and not waits(steps):
        with pytest.raises(StepError):
            run(generator(steps, later, seen))
        assert seen == wanted
        return
    result = run(generator(steps, later, seen))
    assert isinstance(result, Deferred) is waits(steps)
    if not isinstance(result, Deferred):
        assert (seen, result) == (wanted, value)
        return
    reached: list[object] = []
    result.addBoth(reached.append)
    while later:
        assert not reached
        deferred, outcome = later.pop(0)
        if isinstance(outcome, Failure):
            deferred.errback(outcome)
        else:
            deferred.callback(outcome)
    assert seen == wanted
    if value is None:
        (failure,) = reached
        assert isinstance(failure, Failure)
        assert failure.check(StepError)
    else:
        assert reached == [value]


@pytest.mark.parametrize("first", ["value", "fired", "later"])
@pytest.mark.parametrize("kind", ["value", "fired"])
def test_the_stack_does_not_grow_with_the_steps(first: str, kind: str) -> None:
    later: list[tuple[Deferred[Any], Any]] = []
    count = 20_000

    def many() -> Steps[int]:
        total = yield awaited(Step(first, False, False), 0, later)
        for _ in range(count):
            total += yield (succeed(1) if kind == "fired" else 1)
        return total

    result = run(many())
    if isinstance(result, Deferred):
        reached: list[int] = []
        result.addCallback(reached.append)
        later[0][0].callback(0)
        (result,) = reached
    assert result == count


def test_a_chain_of_waits_does_not_grow_the_stack() -> None:
    """Each step waits, and the next Deferred fires while the step before is resumed."""
    waiting: list[Deferred[int]] = []

    def many() -> Steps[int]:
        for _ in range(5_000):
            deferred: Deferred[int] = Deferred()
            waiting.append(deferred)
            yield deferred
        return 1

    result = run(many())
    assert isinstance(result, Deferred)
    reached: list[int] = []
    result.addCallback(reached.append)
    while waiting:
        waiting.pop().callback(0)
    assert reached == [1]


def test_to_cancel_cancels_what_is_waited_for() -> None:
    cancelled: list[object] = []
    cleaned: list[str] = []

    def steps() -> Steps[None]:
        try:
            yield Deferred(cancelled.append)
        finally:
            cleaned.append("cleaned")

    result = run(steps())
    assert isinstance(result, Deferred)
    result.cancel()
    assert (len(cancelled), cleaned) == (1, ["cleaned"])
    failures: list[Failure] = []
    result.addErrback(failures.append)
    assert failures[0].check(CancelledError)


def test_steps_may_answer_when_they_are_cancelled() -> None:
    def steps() -> Steps[str]:
        try:
            yield Deferred()
        except CancelledError:
            return "gave up"
        return "went on"

    result = run(steps())
    assert isinstance(result, Deferred)
    result.cancel()
    reached: list[str] = []
    result.addCallback(reached.append)
    assert reached == ["gave up"]


@pytest.mark.parametrize("fails", [False, True])
def test_steps_that_end_after_they_were_cancelled(fails: bool) -> None:
    """A canceller may leave its Deferred unfired for a while: then the result has failed already."""
    never_cancelled: Deferred[int] = Deferred(lambda deferred: None)
    stubborn: Deferred[int] = Deferred()

    def steps() -> Steps[int]:
        try:
            yield never_cancelled
        except CancelledError:
            value: int = yield stubborn
            if fails:
                raise StepError from None
            return value
        return 0

    result = run(steps())
    assert isinstance(result, Deferred)
    failures: list[Failure] = []
    result.addErrback(failures.append)
    result.cancel()
    assert failures[0].check(CancelledError)
    stubborn.callback(1)
    unhandled: list[Failure] = []
    stubborn.addErrback(unhandled.append)
    assert [bool(failure.check(StepError)) for failure in unhandled] == ([True] if fails else [])


def test_a_failure_that_is_yielded_as_a_value_is_a_value() -> None:
    failure = Failure(StepError())

    def steps() -> Steps[object]:
        return (yield failure)

    assert run(steps()) is failure


def test_steps_that_nobody_resumes_are_collected() -> None:
    cleaned: list[str] = []

    def steps() -> Steps[None]:
        try:
            yield Deferred()
        finally:
            cleaned.append("cleaned")

    started = steps()
    known = weakref.ref(started)
    result = run(started)
    del started, result
    gc.collect()
    assert known() is None
    assert cleaned == ["cleaned"]


def test_a_value_that_is_there_is_detached_as_it_is() -> None:
    assert detached(7, pytest.fail, pytest.fail) == 7


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("cancelled", [False, True])
def test_to_cancel_a_detached_wait_cancels_no_work(fails: bool, cancelled: bool) -> None:
    stopped: list[object] = []
    work: Deferred[int] = Deferred(stopped.append)
    unwanted: list[object] = []
    failed: list[object] = []
    waited: list[object] = []
    wait = detached(work, unwanted.append, failed.append)
    assert isinstance(wait, Deferred)
    wait.addBoth(waited.append)
    if cancelled:
        wait.cancel()
        (failure,) = waited
        assert isinstance(failure, Failure)
        assert failure.check(CancelledError)
        waited.clear()
    result: Any = Failure(StepError()) if fails else 7
    if fails:
        work.errback(result)
    else:
        work.callback(result)
    assert stopped == []
    assert waited == ([] if cancelled else [result])
    assert unwanted == ([7] if cancelled and not fails else [])
    assert failed == ([result] if cancelled and fails else [])


def test_a_coroutine_waits_only_for_a_deferred() -> None:
    async def both(value: MaybeDeferred[int]) -> int:
        return await value_of(value) + await value_of(1)

    reached: list[int] = []
    Deferred.fromCoroutine(both(6)).addCallback(reached.append)
    assert reached == [7]
    later: Deferred[int] = Deferred()
    Deferred.fromCoroutine(both(later)).addCallback(reached.append)
    assert reached == [7]
    later.callback(1)
    assert reached == [7, 2]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("raises", [False, True], ids=["answers", "raises"])
def test_what_is_handled_goes_through_one_step_whenever_it_arrives(
    how: str, fails: bool, raises: bool
) -> None:
    later: list[tuple[Deferred[Any], Any]] = []

    def step(value: int, more: str) -> str:
        return end(f"step {value} {more}")

    def failed(failure: Failure, more: str) -> str:
        return end(f"failed {failure.value} {more}")

    def end(text: str) -> str:
        if raises:
            raise StepError(text)
        return text

    fails = fails and how != "value"
    text = f"{'failed' if fails else 'step'} 7 more"
    if how == "value" and raises:
        with pytest.raises(StepError, match=text):
            handled(7, step, failed, "more")
        return
    found: object = handled(awaited(Step(how, fails, caught=False), 7, later), step, failed, "more")
    for deferred, outcome in later:
        deferred.callback(outcome)
    if how == "later" or raises:
        assert isinstance(found, Deferred)
        results: list[Any] = []
        found.addBoth(results.append)
        (found,) = results
    assert str(found.value if isinstance(found, Failure) else found) == text
