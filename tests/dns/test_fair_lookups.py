"""One dead zone, or many, take no capacity from others: neither from healthy zones, users, nor deliveries."""

from __future__ import annotations

import gc
import itertools
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import dns.message
import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from elemta.dns.answers import DnsQuestion, RecordType
from elemta.dns.lookup_table import LookupTable
from elemta.dns.names import zone_of
from elemta.dns.questions import Questions
from elemta.dns.resolver import DnsResolver
from elemta.dns.settings import ResolverSettings
from elemta.errors import ResolverTrouble
from elemta.runtime import Runtime
from tests.support.nameservers import ScriptedNameserver, reply

reactor: Any = real_reactor


def half_dead(query: dns.message.Message, over: str) -> dns.message.Message | None:
    """A server that says nothing of zones whose name begins with "dead", and has a text for all others."""
    name = query.question[0].name
    labels = name.to_text(omit_final_dot=True).split(".")
    return None if labels[-2].startswith("dead") else reply(query, f"{name} 60 IN TXT {labels[0]}")


class Attacked:
    """A resolver that is asked about dead names, so many a second, while a test's block runs."""

    def __init__(self, address: tuple[str, int], a_second: int, dead: Callable[[int], str]) -> None:
        self.resolver = DnsResolver(
            Runtime.of(reactor), nameservers=[address], settings=ResolverSettings(deadline=10)
        )
        self._a_second = a_second
        self._dead = dead
        self._on = True
        self.pending: list[Deferred[Any]] = []
        self._attack: Deferred[None] | None = None

    async def __aenter__(self) -> DnsResolver:
        self.resolver.start()
        # As many as a longer attack would have brought under way
        self._ask_for(min(1000, 8 * self._a_second))
        self._attack = Deferred.fromCoroutine(self._go_on())
        return self.resolver

    async def __aexit__(self, *_: object) -> None:
        self._on = False
        assert self._attack is not None
        await self._attack
        await self.resolver.stop()
        for each in self.pending:
            with pytest.raises(ResolverTrouble):
                await each

    async def _go_on(self) -> None:
        while self._on:
            await deferLater(reactor, 0.05)
            self._ask_for(max(1, self._a_second // 20))

    def _ask_for(self, count: int) -> None:
        user = self.resolver.of_user("reverse-dns")
        for _ in range(count):
            name = self._dead(len(self.pending))
            self.pending.append(Deferred.fromCoroutine(user.text(name)))
            self.pending[-1].addErrback(lambda failure: failure)


DEAD_NAMES = {
    "one zone": lambda number: f"host{number}.dead.test",
    "many zones": lambda number: f"mail.dead{number}.test",
}


@ensureDeferred
@pytest.mark.parametrize("a_second", [20, 200])
@pytest.mark.parametrize("names", DEAD_NAMES)
async def test_dead_zones_leave_all_answers_of_a_healthy_zone_intact(a_second: int, names: str) -> None:
    with ScriptedNameserver(half_dead) as server:
        async with Attacked(server.address, a_second, DEAD_NAMES[names]) as resolver:
            users: list[Questions] = [resolver.of_user("reverse-dns"), resolver.of_user("spf"), resolver]
            answers = []
            for number in range(120):
                answers.append(Deferred.fromCoroutine(users[number % 3].text(f"x{number}.healthy.test")))
                await deferLater(reactor, 0.01)
            for number, answer in enumerate(answers):
                assert await answer == (f"x{number}",)


@ensureDeferred
@pytest.mark.parametrize("names", DEAD_NAMES)
async def test_deliveries_are_answered_at_once_while_all_other_room_is_taken(names: str) -> None:
    with ScriptedNameserver(half_dead) as server:
        async with Attacked(server.address, 200, DEAD_NAMES[names]) as resolver:
            waited = []
            for number in range(20):
                started = time.monotonic()
                assert await resolver.deliveries.text(f"d{number}.healthy.test") == (f"d{number}",)
                waited.append(time.monotonic() - started)
            # 0.1 s on a machine that has nothing else to do
            assert sorted(waited)[10] < 1.0
            assert len(resolver._of_deliveries) == 0


@ensureDeferred
async def test_dead_zones_take_no_memory_however_many_are_asked_for() -> None:
    with ScriptedNameserver(half_dead) as server:
        settings = ResolverSettings(deadline=60, lookups=50)
        resolver = DnsResolver(Runtime.of(reactor), nameservers=[server.address], settings=settings)
        resolver.start()

        async def ask(number: int) -> None:
            with pytest.raises(ResolverTrouble, match=r"too many lookups|stops"):
                await resolver.text(f"mail.dead{number}.test")

        pending: list[Deferred[None]] = []
        numbers = itertools.count()

        async def flood() -> int:
            for _ in range(10):
                pending.extend([Deferred.fromCoroutine(ask(next(numbers))) for _ in range(50)])
                await deferLater(reactor, 0.01)
                assert len(resolver._shared) == 50
            pending[:] = [each for each in pending if not each.called]
            assert len(pending) == 50
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            await flood()
            before = await flood()
            after = await flood()
        finally:
            tracemalloc.stop()
        await resolver.stop()
        for each in pending:
            await each
        # 500 lookups with their sockets would be several MiB.
        assert after - before < 1024 * 1024


@ensureDeferred
async def test_callers_that_ask_again_when_their_lookup_ends_for_others_do_so_without_recursion() -> None:
    """As what looks for exchangers first, and for addresses where those can't be looked up."""
    with ScriptedNameserver(half_dead) as server:
        settings = ResolverSettings(deadline=60, lookups=1000)
        resolver = DnsResolver(Runtime.of(reactor), nameservers=[server.address], settings=settings)
        resolver.start()

        async def ask(number: int) -> None:
            with pytest.raises(ResolverTrouble, match=r"too many lookups|stops|not running"):
                await resolver.text(f"x{number}.dead.test")
            with pytest.raises(ResolverTrouble, match=r"too many lookups|stops|not running"):
                await resolver.addresses(f"x{number}.dead.test")

        pending = [Deferred.fromCoroutine(ask(number)) for number in range(500)]
        await deferLater(reactor, 0.05)
        assert len(resolver._shared) == 250
        pending += [Deferred.fromCoroutine(ask(number)) for number in range(500, 510)]
        await resolver.stop()
        for each in pending:
            await each


# The table of lookups


def question(name: str) -> DnsQuestion:
    return DnsQuestion(name, RecordType.TXT)


def test_where_there_is_no_room_the_oldest_of_the_busiest_user_ends() -> None:
    table = LookupTable(40)
    first, _ = table.add("quiet", question("a.first.test"))
    for number in range(39):
        table.add("busy", question(f"a.b{number}.test"))
    _, ended = table.add("quiet", question("a.last.test"))
    assert ended is not None
    assert (ended.user, ended.question.name) == ("busy", "a.b0.test")
    assert table.find("quiet", first.question) is first
    assert len(table) == 40


def test_one_zone_has_a_quarter_and_ends_its_own_oldest() -> None:
    table = LookupTable(40)
    ended = [table.add("user", question(f"x{number}.dead.test"))[1] for number in range(30)]
    assert ended[:10] == [None] * 10
    assert [each.question.name for each in ended[10:] if each] == [f"x{n}.dead.test" for n in range(20)]
    assert table.add("user", question("x.alive.test"))[1] is None


def test_the_table_has_room_for_what_ended_and_keeps_nothing_of_it() -> None:
    table = LookupTable(20)
    chance = random.Random(5)
    for number in range(2000):
        table.add(f"u{number % 3}", question(f"a.z{chance.randrange(50)}.x{number}.test"))
        for under_way in table.all()[: chance.randrange(3)]:
            table.remove(under_way)
            table.remove(under_way)
        assert len(table) <= 20
    for under_way in table.all():
        table.remove(under_way)
    assert (len(table), table._of_user, table._of_zone) == (0, {}, {})


@pytest.mark.parametrize(
    ("name", "zone"),
    [
        ("mail.example.org", "example.org"),
        ("a.b.c.example.org", "example.org"),
        ("example.org", "example.org"),
        ("test", "test"),
        ("mail.example.co.uk", "example.co.uk"),
        ("4.3.2.1.in-addr.arpa", "2.1.in-addr.arpa"),
        ("0." * 20 + "8.b.d.0.1.0.0.2.1.2.3.4.ip6.arpa", "8.b.d.0.1.0.0.2.1.2.3.4.ip6.arpa"),
    ],
)
def test_a_name_is_in_the_zone_that_one_owner_answers_for(name: str, zone: str) -> None:
    assert zone_of(name) == zone
