"""A policy that does everything wrong, at every stage, never costs another session its answer."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from zope.interface import implementer

from elemta.address import Address
from elemta.config import OnError, PolicyCommon
from elemta.envelope import Client as Sender
from elemta.envelope import Envelope, Recipient
from elemta.errors import NotSigned
from elemta.outcome import Outcome, Status
from elemta.policy import (
    CONTINUE,
    Defer,
    Hold,
    IAuthPolicy,
    IConnectPolicy,
    IDataPolicy,
    IDeliveryObserver,
    IDeliveryPolicy,
    IHeloPolicy,
    ILifecycle,
    ILoginObserver,
    ILoginPolicy,
    IMailPolicy,
    IMessagePolicy,
    IOutcomeObserver,
    IRcptPolicy,
    ISigner,
    LoadedPolicy,
    LoginOutcome,
    PolicyChain,
    Reject,
    RouteTo,
)
from elemta.policy.message_view import MessageContent
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


def exits_at_its_end(*_: Any) -> Any:
    def canceller(_: Any) -> None:
        raise SystemExit(1)

    return Deferred(canceller)


class Unspeakable(Exception):
    """An error that can't be put into words."""

    def __repr__(self) -> str:
        raise RuntimeError("chaos")

    __str__ = __repr__


def raises_without_words(*_: Any) -> Any:
    raise Unspeakable


class Proxy:
    """An object of no class, as proxies for a context are outside of it."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise SystemExit(1)


def proxied(*_: Any) -> Any:
    return Proxy()


async def raises_without_words_later(*_: Any) -> Any:
    raise Unspeakable


def is_without_words_at_its_end(*_: Any) -> Any:
    return Deferred(lambda deferred: deferred.errback(Unspeakable()))


async def exits_when_cancelled(*_: Any) -> Any:
    try:
        await Deferred()
    except CancelledError:
        raise SystemExit(1) from None


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


def blocks(*_: Any) -> Any:
    """Computes for a while, before it raises: the others are answered behind it."""
    sum(range(300_000))
    raise RuntimeError("chaos")


LEAKED: list[Any] = []


def tidy(unhandled_errors: list[Any]) -> None:
    """Let what chaos left behind be found now, and not in another test."""
    if LEAKED:
        LEAKED.clear()
        gc.collect()
    unhandled_errors.clear()


def leaks(*shown: Any) -> Any:
    """Keeps all that it saw, opens and never closes, and leaves a failure that it never looks at."""
    LEAKED.extend(shown)
    LEAKED.extend(thing.open() for thing in shown if hasattr(thing, "open"))
    LEAKED.append(fail(RuntimeError("chaos")))
    LEAKED.append(Deferred.fromCoroutine(raises_later()))
    return Deferred()


CHAOS: list[Callable[..., Any]] = [
    blocks,
    leaks,
    raises,
    exits,
    recurses,
    nonsense,
    nothing,
    never,
    ignores_its_end,
    raises_at_its_end,
    exits_at_its_end,
    raises_without_words,
    raises_without_words_later,
    is_without_words_at_its_end,
    proxied,
    exits_when_cancelled,
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
    ILoginPolicy,
    ILoginObserver,
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

    def login(self, session: Any, username: str) -> Any:
        return self._say("login", session)

    def login_ended(self, session: Any, username: str, outcome: LoginOutcome) -> Any:
        return self.what(session)

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


STAGES = ("connect", "helo", "login", "auth", "mail", "rcpt", "data", "message")


class Last(Scripted):
    """Refuses at every stage."""

    def login(self, session: Any, username: str) -> Any:
        return self.answer


implementer(ILoginPolicy)(Last)


def ask(client: Client, stage_name: str) -> Any:
    if stage_name == "login":
        return client.talk.ask_login("anna")
    return getattr(client, stage_name)()


@pytest.mark.parametrize("what", CHAOS, ids=lambda what: what.__name__)
@pytest.mark.parametrize("stage_name", STAGES)
def test_chaos_costs_its_own_session_its_own_verdict_and_no_other_anything(
    stage: Any, what: Any, stage_name: str, unhandled_errors: list[Any]
) -> None:
    last = Reject("last", code=550, enhanced="5.7.1")
    loaded = [
        LoadedPolicy("chaos", Chaos(what), PolicyCommon(timeout=5.0, on_error=OnError.DEFER)),
        LoadedPolicy("last", Last(last), PolicyCommon()),
    ]
    stage.chain = PolicyChain(loaded, stage.clock, stage.counted, relay=LOCAL)
    affected, honest = Client(stage.chain, ip="198.51.100.1"), Client(stage.chain, ip="203.0.113.1")
    answers: list[Any] = []
    asked = ask(affected, stage_name)
    for _ in range(20):
        # At once, whatever the other waits for.
        decision = ask(honest, stage_name)
        assert not isinstance(decision, Deferred)
        assert decision.verdict == last
    if isinstance(asked, Deferred):
        asked.addBoth(answers.append)
        stage.clock.advance(5.0)
        (asked,) = answers
    reply = reply_of(asked.verdict)
    assert reply is not None
    assert reply.code // 100 == (5 if what is edits_nonsense and asked.verdict == last else 4)
    affected.talk.login_ended("anna", LoginOutcome.BAD)
    affected.talk.refused(affected.transaction)
    affected.talk.disconnected()
    assert ask(honest, stage_name).verdict == last
    honest.talk.committed(honest.transaction)
    honest.talk.disconnected()
    stage.clock.advance(5.0)
    tidy(unhandled_errors)


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
    tidy(unhandled_errors)


# On the way out

RECIPIENT = Recipient(Address("bob", "example.net"))
OUTCOME = Outcome("Q1", RECIPIENT.address, Status.DELIVERED, "ok", "mx:", "mail.example.net", 1.0)


def envelope(sender: str) -> Envelope:
    client = Sender("192.0.2.7", "client.example", "mx", "s1", None)
    return Envelope("Q1", Address(sender, "example.org"), (RECIPIENT,), 1.0, 1000, client=client)


AFFECTED, HONEST = envelope("affected"), envelope("honest")


@implementer(IDeliveryPolicy, IDeliveryObserver, ISigner)
class ChaosOut:
    """Does what it was made with to the mail of one sender."""

    def __init__(self, what: Callable[..., Any]) -> None:
        self.what = what

    def route(self, envelope: Any, recipient: Any) -> Any:
        return self.what(envelope) if envelope is AFFECTED else CONTINUE

    def sign(self, envelope: Any, message: Any) -> Any:
        return self.what(message) if envelope is AFFECTED else None

    def attempted(self, outcome: Any) -> Any:
        return self.what(outcome)

    def ended(self, envelope: Any, recipient: Any, outcome: Any) -> Any:
        return self.what(envelope)

    def recording(self, envelope: Any, recipient: Any, outcome: Any) -> Any:
        return self.what(envelope)


@implementer(IDeliveryPolicy, IDeliveryObserver, ISigner)
class GoodOut:
    """Stands behind it in the chain."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def route(self, envelope: Any, recipient: Any) -> Any:
        return RouteTo("smtp://relay.example.net:25")

    def sign(self, envelope: Any, message: Any) -> None:
        message.add_header("X-Signed", "yes")

    def attempted(self, outcome: Any) -> None:
        self.heard.append("attempted")

    def ended(self, envelope: Any, recipient: Any, outcome: Any) -> None:
        self.heard.append("ended")

    def recording(self, envelope: Any, recipient: Any, outcome: Any) -> None:
        self.heard.append("recording")


def content() -> MessageContent:
    return MessageContent(20, b"Subject: hi\r\n\r\nhi\r\n", lambda: io.BytesIO(b"Subject: hi\r\n\r\nhi\r\n"))


@pytest.mark.parametrize("on_error", [OnError.DEFER, OnError.REJECT])
@pytest.mark.parametrize("what", CHAOS, ids=lambda what: what.__name__)
def test_chaos_on_the_way_out_costs_no_other_mail_its_route_and_no_observer_its_facts(
    stage: Any, what: Any, on_error: OnError, unhandled_errors: list[Any]
) -> None:
    good = GoodOut()
    loaded = [
        LoadedPolicy("chaos", ChaosOut(what), PolicyCommon(timeout=5.0, on_error=on_error)),
        LoadedPolicy("good", good, PolicyCommon()),
    ]
    hooks = PolicyChain(loaded, stage.clock, stage.counted, relay=LOCAL).delivery_hooks
    routed, signed = (
        Answers(hooks.route(AFFECTED, RECIPIENT)),
        Answers(maybeDeferred(hooks.sign, AFFECTED, content())),
    )
    for _ in range(20):
        decision = hooks.route(HONEST, RECIPIENT)
        assert not isinstance(decision, Deferred)
        assert decision.verdict == RouteTo("smtp://relay.example.net:25")
    assert hooks.sign(HONEST, content()) == b"X-Signed: yes\r\n"
    hooks.attempted(OUTCOME, AFFECTED)
    waiting = hooks.recording(AFFECTED, RECIPIENT, OUTCOME)
    hooks.ended(AFFECTED, RECIPIENT, OUTCOME)
    assert good.heard == ["attempted", "recording", "ended"]
    stage.clock.advance(5.0)
    # The record waits for the timeout, and no longer.
    assert all(each.called for each in waiting)
    # Never a bounce: the mail waits, or is on hold.
    assert (
        isinstance(routed.one.verdict, Defer if on_error is OnError.DEFER else Hold) or what is edits_nonsense
    )
    # Nothing is the answer of a policy that signs.
    assert isinstance(signed.one, NotSigned) == (what is not nothing)
    tidy(unhandled_errors)


class Answers:
    """What came of a call, now or later."""

    def __init__(self, answer: Any) -> None:
        self.all: list[Any] = []
        if isinstance(answer, Deferred):
            answer.addBoth(lambda result: self.all.append(getattr(result, "value", result)))
        else:
            self.all.append(answer)

    @property
    def one(self) -> Any:
        (only,) = self.all
        return only
