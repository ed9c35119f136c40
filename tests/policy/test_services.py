"""What a policy reaches the world with, and the doubles of all of it in PolicyTester."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from zope.interface import implementer

from elemta.errors import BackendError, NoSuchDomain, ResolverTrouble, StoreUnavailable
from elemta.policy import (
    CONTINUE,
    Defer,
    ILifecycle,
    IPolicyPlugin,
    IRcptPolicy,
    NoOptions,
    Reject,
    Services,
)
from elemta.policy import policy_threads as threads_module
from elemta.policy.policy_resolver import PolicyResolver
from elemta.policy.policy_threads import PolicyThreads
from elemta.policy.testing import (
    PolicyTester,
    RecordedMetrics,
    UnavailableStore,
    Zone,
    http_answer,
    make_services,
)
from elemta.runtime import Runtime
from tests.policy.conftest import Client
from tests.support.waiting import until


def plugin_of(ask: Any) -> Any:
    """A plugin whose policy answers each RCPT with ``ask(services)``."""

    @implementer(IRcptPolicy, ILifecycle)
    class Policy:
        def __init__(self, services: Services) -> None:
            self.services = services
            self.life: list[object] = []

        def start(self, predecessor: object | None) -> None:
            self.life.append(("start", predecessor))

        def stop(self) -> None:
            self.life.append("stop")

        async def rcpt(self, session: Any, transaction: Any, recipient: Any) -> Any:
            return await ask(self.services)

    @implementer(IPolicyPlugin)
    class Plugin:
        name = "asking"
        options = NoOptions

        def build(self, options: Any, services: Services) -> Policy:
            return Policy(services)

    return Plugin()


def test_the_tester_has_a_double_of_every_service() -> None:
    async def ask(services: Services) -> Any:
        assert await services.threads(lambda a, b=0: a + b, 1, b=2) == 3
        pool: Any = services.reactor.getThreadPool()  # type: ignore[attr-defined]
        assert await deferToThreadPool(services.reactor, pool, int, "7") == 7
        assert await services.store.set("k", b"v", ttl=60)
        assert await services.store.add("n", ttl=60) == 1
        stream = await services.connect("unix:/run/clamd.ctl")
        stream.write(b"PING")
        assert await stream.read_until(b"\n", 100) == b"PONG\n"
        await stream.close()
        answer = await services.http.request("POST", "http://rspamd:11333/checkv2", body=b"mail")
        assert (answer.status, answer.headers["x"], answer.body) == (200, "1", b"{}")
        assert await services.resolver.text("example.net") == ("v=spf1 -all",)
        assert (services.hostname, services.node_id) == ("mx9.example.com", "mx9")
        services.log.info("asked", zone="z")
        return Reject("all asked")

    tester = PolicyTester(
        plugin_of(ask),
        connections={"unix:/run/clamd.ctl": lambda data: b"PONG\n" if data == b"PING" else None},
        http={"http://rspamd:11333/checkv2": http_answer(200, b"{}", {"X": "1"})},
        resolver=Zone(texts_of={"example.net": ["v=spf1 -all"]}),
        hostname="mx9.example.com",
        node_id="mx9",
    )
    tester.start()
    assert tester.rcpt("someone@example.com") == Reject("all asked")
    tester.stop()
    assert tester.policy.life == [("start", None), "stop"]
    assert tester.connections.written == [[b"PING"]]
    assert tester.connections.open == 0
    (request,) = tester.http.requests
    assert (request.method, request.body) == ("POST", b"mail")
    result: list[Any] = []
    Deferred.fromCoroutine(tester.store.get("k")).addBoth(result.append)
    assert result == [b"v"]
    tester.clock.advance(61)
    Deferred.fromCoroutine(tester.store.get("k")).addBoth(result.append)
    assert result == [b"v", None]


@pytest.mark.parametrize(
    ("fails", "error"),
    [
        (lambda s: s.threads(int, "x"), ValueError),
        (lambda s: s.connect("unix:/none"), BackendError),
        (lambda s: s.connect("unix:/broken"), OSError),
        (lambda s: s.http.request("GET", "http://none/"), BackendError),
        (lambda s: s.http.request("GET", "http://broken/"), BackendError),
        (lambda s: s.http.request("GET", "nonsense"), ValueError),
        (lambda s: s.store.get("k"), StoreUnavailable),
        (lambda s: s.resolver.records("none.test", "TLSA"), NoSuchDomain),
    ],
)
def test_each_double_can_fail(fails: Any, error: type[Exception]) -> None:
    async def ask(services: Services) -> Any:
        with pytest.raises(error):
            await fails(services)
        return Defer("failed")

    tester = PolicyTester(
        plugin_of(ask),
        store=UnavailableStore(),
        connections={"unix:/broken": OSError("no")},
        http={"http://broken/": BackendError("no")},
    )
    assert tester.rcpt("someone@example.com") == Defer("failed")


async def silent_read(services: Services) -> None:
    stream = await services.connect("unix:/silent")
    stream.write(b"hello")
    await stream.read(1)


@pytest.mark.parametrize(
    "waits",
    [
        lambda s: s.http.request("GET", "http://silent/"),
        silent_read,
    ],
)
def test_a_silent_double_takes_the_time_that_the_call_has(waits: Any) -> None:
    async def ask(services: Services) -> Any:
        with pytest.raises(BackendError):
            await waits(services)
        return Defer(f"after {services.reactor.seconds():.1f} s")

    tester = PolicyTester(
        plugin_of(ask),
        {"timeout": "2s"},
        connections={"unix:/silent": lambda data: b""},
        http={"http://silent/": Deferred()},
    )
    assert tester.rcpt("someone@example.com", wait=1.8) == Defer("after 1.8 s")


def test_records_of_any_type_are_in_the_zone() -> None:
    async def ask(services: Services) -> Any:
        found = await services.resolver.records("_25._tcp.mx.test", "TLSA")
        assert await services.resolver.records("_25._tcp.mx.test", "SRV") == ()
        return Defer(found[0])

    zone = Zone(records_of={("_25._tcp.mx.test", "TLSA"): ["3 1 1 ab"]})
    assert PolicyTester(plugin_of(ask), resolver=zone).rcpt("a@example.com") == Defer("3 1 1 ab")


def test_services_made_by_hand_refuse_what_they_were_not_given() -> None:
    full = make_services()
    bare = Services(full.reactor, full.limits, full.domains, RecordedMetrics(), full.log)

    async def all_fail() -> str:
        with pytest.raises(BackendError):
            await bare.threads(int, "1")
        with pytest.raises(BackendError):
            await bare.connect("unix:/x")
        with pytest.raises(BackendError):
            await bare.http.request("GET", "http://x/")
        with pytest.raises(ResolverTrouble):
            await bare.resolver.records("x.test", "MX")
        return "done"

    done: list[Any] = []
    Deferred.fromCoroutine(all_fail()).addBoth(done.append)
    assert done == ["done"]


# Threads


@ensureDeferred
async def test_work_is_done_in_threads_of_the_policys_own() -> None:
    import threading

    threads = PolicyThreads(Runtime.of(reactor).threads, "mine")  # type: ignore[arg-type]
    name = await threads(lambda: threading.current_thread().name)
    assert "elemta-policy-mine" in name
    with pytest.raises(ZeroDivisionError):
        await threads(lambda: 1 // 0)
    threads.close()


@ensureDeferred
async def test_threads_that_never_end_fill_their_own_pool_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(threads_module, "MOST_WAITING", 6)
    world = Runtime.of(reactor).threads  # type: ignore[arg-type]
    stuck, other = PolicyThreads(world, "stuck"), PolicyThreads(world, "other")
    release = threading.Event()
    waiting = [stuck(release.wait) for _ in range(6)]
    with pytest.raises(BackendError):
        await stuck(int)
    assert await other(int, "1") == 1
    for each in waiting[:3]:
        each.addErrback(lambda _: None)
        each.cancel()
    with pytest.raises(BackendError):
        await stuck(int)  # the work goes on, whether or not anything waits for it
    stuck.close()  # and nothing waits for it here
    release.set()
    await until(lambda: stuck.waiting == 0)
    other.close()


def test_a_thread_that_never_ends_does_not_keep_the_process_from_ending() -> None:
    code = """
import threading
from twisted.internet import reactor
from elemta.policy.policy_threads import PolicyThreads
from elemta.runtime import Runtime
threads = PolicyThreads(Runtime.of(reactor).threads, "stuck")
threads(threading.Event().wait)
def end():
    threads.close()
    reactor.stop()
reactor.callLater(0.1, end)
reactor.run()
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=root)


# Deadlines and causes


class Slow:
    """A resolver that never answers, and notes how long it may take."""

    def __init__(self) -> None:
        self.times: list[float | None] = []

    async def text(self, name: str, *, timeout: float | None = None) -> tuple[str, ...]:
        self.times.append(timeout)
        await Deferred()
        return ()


@implementer(IRcptPolicy)
class Asking:
    def __init__(self, resolver: Any) -> None:
        self.resolver = resolver

    async def rcpt(self, session: Any, transaction: Any, recipient: Any) -> Any:
        await self.resolver.text("example.net")
        return CONTINUE


def test_a_lookup_is_told_what_the_call_has_left(stage: Any) -> None:
    slow: Any = Slow()
    policy = Asking(PolicyResolver(slow, stage.clock, 10.0))
    client = stage.play(policy, timeout=2.0)
    client.rcpt()
    assert slow.times == [pytest.approx(1.8)]


def test_names_that_clients_choose_never_open_the_breaker(stage: Any) -> None:
    """Five networks that ask about dead zones: the sixth still has the whole timeout."""
    slow: Any = Slow()
    client = stage.play(Asking(PolicyResolver(slow, stage.clock, 10.0)), timeout=2.0)
    for number in range(20):
        client = stage.another(ip=f"198.51.{number}.1", helo=f"helo{number}.example")
        client.begin(f"x{number}.dead.example")
        client.rcpt()
        stage.clock.advance(2.0)
    assert stage.chain.open_breakers() == {"p1": False}
    assert not stage.events("policy.breaker_open")
    assert Client(stage.chain, ip="203.0.113.1").rcpt()
    stage.clock.advance(1.9)
    stage.clock.advance(0.1)
    assert stage.counted.failed_[-1][-1] == "timeout"


@implementer(IRcptPolicy)
class OverBackend:
    """Asks DNS about what the client chose, and then a backend of its own."""

    def __init__(self, services: Services, stage: Any) -> None:
        self.services, self.resolver = services, PolicyResolver(services.resolver, stage.clock, 10.0)

    async def rcpt(self, session: Any, transaction: Any, recipient: Any) -> Any:
        await self.resolver.text("example.net")
        return await self.services.http.request("GET", "http://silent/")


def test_a_backend_of_its_own_that_fails_for_all_opens_the_breaker(stage: Any) -> None:
    zone = Zone(texts_of={"example.net": ["x"]})
    services = make_services(stage.clock, resolver=zone, http={"http://silent/": lambda _: Deferred()})
    stage.play(OverBackend(services, stage), timeout=2.0)
    for number in range(6):
        stage.another(ip=f"198.51.{number}.1", helo=f"helo{number}.example").rcpt()
        stage.clock.advance(2.0)
    assert stage.chain.open_breakers() == {"p1": True}


def test_a_policy_that_answers_without_its_backend_does_not_make_everybody_wait(stage: Any) -> None:
    """It catches the failure, so it always answers; the wait for the backend is shortened all the same."""

    @implementer(IRcptPolicy)
    class Catching:
        async def rcpt(self, session: Any, transaction: Any, recipient: Any) -> Any:
            try:
                await services.http.request("GET", "http://silent/")
            except BackendError:
                return Defer("later")
            return CONTINUE

    services = make_services(stage.clock, http={"http://silent/": lambda _: Deferred()})
    stage.play(Catching(), timeout=2.0)
    for number in range(6):
        stage.another(ip=f"198.51.{number}.1", helo=f"helo{number}.example").rcpt()
        stage.clock.advance(2.0)
    assert stage.chain.open_breakers() == {"p1": True}
    for number in range(4):
        decision = stage.another(ip=f"203.0.{number}.1").rcpt()
        stage.clock.advance(0.4 if number == 3 else 2.0)
    assert decision.result.verdict == Defer("later")
