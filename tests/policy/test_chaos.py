"""A policy that does everything wrong, at every stage, never costs another session its answer."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from zope.interface import implementer

from elemta.config import OnError, PolicyCommon
from elemta.policy import (
    CONTINUE,
    IAuthPolicy,
    IConnectPolicy,
    IDataPolicy,
    IHeloPolicy,
    ILifecycle,
    IMailPolicy,
    IMessagePolicy,
    IOutcomeObserver,
    IRcptPolicy,
    LoadedPolicy,
    PolicyChain,
    Reject,
)
from elemta.policy.verdicts import reply_of
from tests.policy.conftest import LOCAL, Client, Scripted


def raises(*_: Any) -> Any:
    raise RuntimeError("chaos")


def exits(*_: Any) -> Any:
    raise SystemExit(1)


def recurses(*shown: Any) -> Any:
    return recurses(*shown)


def nonsense(*_: Any) -> Any:
    return "yes"


def nothing(*_: Any) -> Any:
    return None


def never(*_: Any) -> Any:
    return Deferred()


def ignores_its_end(*_: Any) -> Any:
    return Deferred(lambda deferred: deferred.callback(Deferred()))


def raises_at_its_end(*_: Any) -> Any:
    def canceller(_: Any) -> None:
        raise RuntimeError("chaos")

    return Deferred(canceller)


def cancelled(*_: Any) -> Any:
    deferred: Deferred[Any] = Deferred()
    deferred.cancel()
    return deferred


async def raises_later(*_: Any) -> Any:
    raise RuntimeError("chaos")


async def cancels_itself(*_: Any) -> Any:
    raise CancelledError


async def ends_deep(*_: Any) -> Any:
    for _each in range(5000):
        await succeed(None)
    return object()


async def never_ends(*_: Any) -> Any:
    await Deferred()


async def edits_and_raises(*shown: Any) -> Any:
    for thing in shown:
        if hasattr(thing, "add_header"):
            thing.add_header("X-Chaos", "1")
        if hasattr(thing, "replace_body"):
            thing.replace_body(io.BytesIO(b"\r\n.\r\n"))
    raise RuntimeError("chaos")


def edits_nonsense(*shown: Any) -> Any:
    for thing in shown:
        if hasattr(thing, "replace_body"):
            thing.replace_body("no file")
        if hasattr(thing, "add_header"):
            thing.add_header("X-Chaos", "a\r\n\r\nbody")
    return CONTINUE


CHAOS: list[Callable[..., Any]] = [
    raises,
    exits,
    recurses,
    nonsense,
    nothing,
    never,
    ignores_its_end,
    raises_at_its_end,
    cancelled,
    raises_later,
    cancels_itself,
    ends_deep,
    never_ends,
    edits_and_raises,
    edits_nonsense,
]


@implementer(
    IConnectPolicy,
    IHeloPolicy,
    IAuthPolicy,
    IMailPolicy,
    IRcptPolicy,
    IDataPolicy,
    IMessagePolicy,
    IOutcomeObserver,
    ILifecycle,
)
class Chaos(Scripted):
    """Asked about clients of one network it does what it was made with; of others it has no opinion."""

    def __init__(self, what: Callable[..., Any]) -> None:
        super().__init__()
        self.what = what

    def _say(self, stage: str, *shown: Any) -> Any:
        return self.what(*shown) if str(shown[0].client_ip).startswith("198.51.100.") else CONTINUE

    def committed(self, session: Any, transaction: Any, queue_id: str) -> Any:
        return self.what(session)

    def refused(self, session: Any, transaction: Any) -> Any:
        return self.what(session)

    def disconnected(self, session: Any) -> Any:
        return self.what(session)

    def decided(self, session: Any, policy: str, stage: Any, verdict: Any) -> Any:
        return self.what(session)

    def start(self, predecessor: object | None) -> Any:
        return self.what(self)

    def stop(self) -> Any:
        return self.what(self)


STAGES = ("connect", "helo", "auth", "mail", "rcpt", "data", "message")


@pytest.mark.parametrize("what", CHAOS, ids=lambda what: what.__name__)
@pytest.mark.parametrize("stage_name", STAGES)
def test_chaos_costs_its_own_session_its_own_verdict_and_no_other_anything(
    stage: Any, what: Any, stage_name: str, unhandled_errors: list[Any]
) -> None:
    last = Reject("last", code=550, enhanced="5.7.1")
    loaded = [
        LoadedPolicy("chaos", Chaos(what), PolicyCommon(timeout=5.0, on_error=OnError.DEFER)),
        LoadedPolicy("last", Scripted(last), PolicyCommon()),
    ]
    stage.chain = PolicyChain(loaded, stage.clock, stage.counted, relay=LOCAL)
    victim, honest = Client(stage.chain, ip="198.51.100.1"), Client(stage.chain, ip="203.0.113.1")
    answers: list[Any] = []
    asked = getattr(victim, stage_name)()
    for _ in range(20):
        # At once, whatever the other waits for.
        decision = getattr(honest, stage_name)()
        assert not isinstance(decision, Deferred)
        assert decision.verdict == last
    if isinstance(asked, Deferred):
        asked.addBoth(answers.append)
        stage.clock.advance(5.0)
        (asked,) = answers
    reply = reply_of(asked.verdict)
    assert reply is not None
    assert reply.code // 100 == (5 if what is edits_nonsense and asked.verdict == last else 4)
    victim.talk.refused(victim.transaction)
    victim.talk.disconnected()
    assert getattr(honest, stage_name)().verdict == last
    honest.talk.committed(honest.transaction)
    honest.talk.disconnected()
    stage.clock.advance(5.0)
    unhandled_errors.clear()


@pytest.mark.parametrize("what", CHAOS, ids=lambda what: what.__name__)
def test_chaos_in_start_and_stop_ends_within_its_timeout(what: Any, unhandled_errors: list[Any]) -> None:
    from tests.policy.test_lifecycle import House

    house = House()
    good = house.living("good")
    chain = house.chain(Chaos(what), good)
    started = house.begin(chain)
    house.clock.advance(5.0)
    assert started == [None]
    assert house.history == ["good starts after nothing"]
    stopped = house.stop()
    house.clock.advance(5.0)
    assert stopped == [None]
    assert house.history[-1] == "good stops"
    unhandled_errors.clear()
