"""Lookups among many callers and bad servers: deadlines, sharing, cancelling, overload, forged answers."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import dns.flags
import dns.message
import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from elemta.dns import MailExchanger
from elemta.dns.resolver import DnsResolver
from elemta.dns.settings import ResolverSettings
from elemta.errors import NoSuchDomain, ResolverTrouble
from elemta.metric_registry import MetricRegistry
from elemta.metrics import DnsMetrics
from elemta.runtime import Runtime
from tests.support.metrics import value
from tests.support.nameservers import ScriptedNameserver, free_dns_port, reply
from tests.support.waiting import until

reactor: Any = real_reactor


def address(query: dns.message.Message, over: str) -> dns.message.Message:
    """Every name has one IPv4 address."""
    name = query.question[0].name
    return reply(query, f"{name} 60 IN A 192.0.2.1") if query.question[0].rdtype == 1 else reply(query)


def silence(query: dns.message.Message, over: str) -> None:
    return None


class Lookups:
    """A resolver that runs as long as a test's block."""

    def __init__(self, servers: Sequence[ScriptedNameserver | tuple[str, int]], **settings: Any) -> None:
        addresses = [each.address if isinstance(each, ScriptedNameserver) else each for each in servers]
        self.registry = MetricRegistry()
        self.resolver = DnsResolver(
            Runtime.of(reactor),
            nameservers=addresses,
            settings=ResolverSettings(**settings),
            metrics=DnsMetrics(self.registry),
        )

    async def __aenter__(self) -> DnsResolver:
        self.resolver.start()
        return self.resolver

    async def __aexit__(self, *_: object) -> None:
        await self.resolver.stop()


# Servers that don't answer


@ensureDeferred
async def test_nobody_waits_longer_than_the_deadline_for_a_server_that_never_answers() -> None:
    with ScriptedNameserver(silence) as server:
        async with Lookups([server], deadline=0.4) as resolver:
            started = time.monotonic()
            with pytest.raises(ResolverTrouble, match=r"no answer (in time|within)"):
                await resolver.addresses("host.test")
            assert 0.3 < time.monotonic() - started < 10


@ensureDeferred
async def test_a_deadline_is_the_callers_own_also_where_two_share_a_lookup() -> None:
    def late(query: dns.message.Message, over: str) -> dns.message.Message:
        gate.wait(20)
        return reply(query, "host.test. 60 IN TXT late")

    gate = threading.Event()
    with ScriptedNameserver(late) as server:
        async with Lookups([server], deadline=20) as resolver:
            hurried = Deferred.fromCoroutine(resolver.text("host.test", timeout=0.3))
            patient = Deferred.fromCoroutine(resolver.text("host.test"))
            with pytest.raises(ResolverTrouble, match=r"no answer within 0\.3 s"):
                await hurried
            gate.set()
            assert await patient == ("late",)


@ensureDeferred
async def test_trouble_of_a_caller_in_a_hurry_is_not_remembered() -> None:
    with ScriptedNameserver(silence) as server:
        async with Lookups([server], deadline=20) as resolver:
            for _ in range(2):
                with pytest.raises(ResolverTrouble):
                    await resolver.text("host.test", timeout=0.2)
        assert len(server.asked) == 2


@ensureDeferred
async def test_a_silent_server_is_passed_over_and_then_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elemta.dns.lookup.ANSWER_SECONDS", (0.1, 0.2))
    with ScriptedNameserver(silence) as silent, ScriptedNameserver(address) as good:
        async with Lookups([silent, good], deadline=5) as resolver:
            assert await resolver.addresses("one.test") == (ip_address("192.0.2.1"),)
            before = len(silent.asked)
            assert await resolver.addresses("two.test") == (ip_address("192.0.2.1"),)
            assert len(silent.asked) == before


@ensureDeferred
async def test_a_port_on_which_nobody_listens_is_passed_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elemta.dns.lookup.ANSWER_SECONDS", (25.0,))
    with ScriptedNameserver(address) as good:
        async with Lookups([("127.0.0.1", free_dns_port()), good], deadline=30) as resolver:
            started = time.monotonic()
            assert await resolver.addresses("host.test")
            assert time.monotonic() - started < 20  # less than the wait for a server that is silent


@ensureDeferred
async def test_a_server_that_fails_leaves_the_question_to_the_next() -> None:
    with (
        ScriptedNameserver(lambda query, over: reply(query, rcode="SERVFAIL")) as failing,
        ScriptedNameserver(address) as good,
    ):
        async with Lookups([failing, good]) as resolver:
            assert await resolver.addresses("host.test")
        assert failing.asked


@ensureDeferred
async def test_a_question_without_edns_reaches_a_server_that_drops_those_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("elemta.dns.lookup.ANSWER_SECONDS", (0.1, 1.0))

    def old(query: dns.message.Message, over: str) -> dns.message.Message | None:
        return None if query.edns >= 0 else address(query, over)

    with ScriptedNameserver(old) as server:
        async with Lookups([server]) as resolver:
            assert await resolver.addresses("host.test")


@ensureDeferred
async def test_a_server_that_does_not_understand_edns_is_asked_without() -> None:
    """RFC 6891 §6.2.2."""

    def old(query: dns.message.Message, over: str) -> dns.message.Message:
        return reply(query, rcode="FORMERR") if query.edns >= 0 else address(query, over)

    with ScriptedNameserver(old) as server:
        async with Lookups([server]) as resolver:
            assert await resolver.addresses("host.test")
        assert {edns for _, _, edns in server.asked} == {True, False}


# Answers that can't be trusted or used


@ensureDeferred
async def test_answers_to_another_question_are_passed_over() -> None:
    """RFC 5452 §9.1."""

    def forged_first(query: dns.message.Message, over: str) -> None:
        sender = server._udp
        for change in ("id", "name", "short"):
            forged = reply(query, "host.test. 60 IN TXT forged")
            if change == "id":
                forged.id ^= 1
            if change == "name":
                other = dns.message.make_query("other.test", "TXT", id=query.id)
                forged = reply(other, "other.test. 60 IN TXT forged")
            wire = forged.to_wire()
            sender.sendto(wire[:8] if change == "short" else wire, peers[-1])
        sender.sendto(reply(query, "host.test. 60 IN TXT true").to_wire(), peers[-1])

    peers: list[Any] = []
    with ScriptedNameserver(forged_first) as server:
        receive = server._udp.recvfrom

        class Noting:
            """Remembers the callers."""

            def __getattr__(self, name: str) -> Any:
                return getattr(udp, name)

            def recvfrom(self, size: int) -> Any:
                data, peer = receive(size)
                peers.append(peer)
                return data, peer

        udp = server._udp
        server._udp = Noting()  # type: ignore[assignment]
        async with Lookups([server]) as resolver:
            assert await resolver.text("host.test") == ("true",)


@ensureDeferred
async def test_a_truncated_answer_is_fetched_over_tcp() -> None:
    """RFC 7766 §5."""

    def long(query: dns.message.Message, over: str) -> dns.message.Message:
        if over == "tcp":
            return reply(query, *(f"d.test. 60 IN MX {n} host{n}.d.test." for n in range(300)))
        cut = reply(query)
        cut.flags |= dns.flags.TC
        return cut

    with ScriptedNameserver(long) as server:
        async with Lookups([server]) as resolver:
            found = await resolver.mail_exchangers("d.test")
            # The preferred ones of more than are good for anything.
            assert found == tuple(MailExchanger(n, f"host{n}.d.test") for n in range(256))
        assert [over for over, _, _ in server.asked] == ["udp", "tcp"]


@ensureDeferred
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda query, over: query.id.to_bytes(2, "big") + b"\x81\x80" + b"\xff" * 20, "malformed answer"),
        (lambda query, over: reply(query, rcode="REFUSED"), "REFUSED"),
        (
            lambda query, over: reply(query, "a.test. 60 IN CNAME b.test.", "b.test. 60 IN CNAME a.test."),
            "loop of aliases",
        ),
        (
            lambda query, over: reply(query, "a.test. 60 IN TXT x", rcode="NXDOMAIN"),
            "contradicts itself",
        ),
    ],
    ids=["malformed", "refused", "loop", "contradiction"],
)
async def test_an_answer_of_no_use_is_trouble(answer: Any, words: str) -> None:
    with ScriptedNameserver(answer) as server:
        async with Lookups([server]) as resolver:
            with pytest.raises(ResolverTrouble, match=words):
                await resolver.text("a.test")


@ensureDeferred
async def test_a_tcp_connection_that_closes_early_is_trouble() -> None:
    def cut(query: dns.message.Message, over: str) -> dns.message.Message | None:
        answer = reply(query)
        answer.flags |= dns.flags.TC
        return answer if over == "udp" else None

    with ScriptedNameserver(cut) as server:
        async with Lookups([server]) as resolver:
            with pytest.raises(ResolverTrouble, match="closed the connection"):
                await resolver.text("a.test")


@ensureDeferred
async def test_a_referral_is_not_taken_for_a_name_without_records() -> None:
    """RFC 2308 §2.2."""

    def refer(query: dns.message.Message, over: str) -> dns.message.Message:
        return dns.message.from_text(
            reply(query).to_text().replace(";AUTHORITY", ";AUTHORITY\ntest. 60 IN NS n.test.")
        )

    def refer_with_id(query: dns.message.Message, over: str) -> dns.message.Message:
        answer = refer(query, over)
        answer.id = query.id
        return answer

    with ScriptedNameserver(refer_with_id) as server:
        async with Lookups([server]) as resolver:
            with pytest.raises(ResolverTrouble, match="does not resolve for others"):
                await resolver.mail_exchangers("a.test")


# One family of addresses in trouble


@ensureDeferred
async def test_the_addresses_that_could_be_looked_up_do_when_the_others_could_not() -> None:
    def half(query: dns.message.Message, over: str) -> dns.message.Message:
        return address(query, over) if query.question[0].rdtype == 1 else reply(query, rcode="SERVFAIL")

    with ScriptedNameserver(half) as server:
        async with Lookups([server]) as resolver:
            assert await resolver.addresses("host.test") == (ip_address("192.0.2.1"),)


@ensureDeferred
async def test_no_address_of_one_kind_and_trouble_with_the_other_is_trouble() -> None:
    def half(query: dns.message.Message, over: str) -> dns.message.Message:
        return reply(query, rcode="SERVFAIL") if query.question[0].rdtype == 1 else reply(query)

    with ScriptedNameserver(half) as server:
        async with Lookups([server]) as resolver:
            with pytest.raises(ResolverTrouble, match=r"A of host\.test"):
                await resolver.addresses("host.test")


@ensureDeferred
async def test_a_name_that_exists_for_one_kind_of_address_exists() -> None:
    """Load balancers that know no AAAA say that the name does not exist."""

    def balancer(query: dns.message.Message, over: str) -> dns.message.Message:
        rcode = "NXDOMAIN" if query.question[0].rdtype == 28 else "NOERROR"
        has_one = query.question[0].name.to_text().startswith("one.") and rcode == "NOERROR"
        return address(query, over) if has_one else reply(query, rcode=rcode)

    with ScriptedNameserver(balancer) as server:
        async with Lookups([server]) as resolver:
            assert await resolver.addresses("one.test") == (ip_address("192.0.2.1"),)
            assert await resolver.addresses("none.test") == ()


# Many callers


@ensureDeferred
async def test_callers_with_one_question_share_one_query_and_one_that_leaves_disturbs_nobody() -> None:
    gate = threading.Event()

    def slow(query: dns.message.Message, over: str) -> dns.message.Message:
        gate.wait(5)
        return reply(query, "host.test. 60 IN TXT shared")

    with ScriptedNameserver(slow) as server:
        async with Lookups([server]) as resolver:
            lookups = [
                Deferred.fromCoroutine(resolver.text(name)) for name in ("host.test", "HOST.test.") * 3
            ]
            for gone in (lookups[0], lookups[3]):
                gone.cancel()
                with pytest.raises(CancelledError):
                    await gone
            gate.set()
            for lookup in lookups:
                if lookup not in (lookups[0], lookups[3]):
                    assert await lookup == ("shared",)
        assert len(server.asked) == 1


@ensureDeferred
async def test_what_everybody_left_is_given_up_with_its_socket() -> None:
    with ScriptedNameserver(silence) as server:
        lookups = Lookups([server], deadline=60)
        async with lookups as resolver:
            before = open_sockets()
            left = [Deferred.fromCoroutine(resolver.addresses(f"{name}.test")) for name in range(20)]
            assert (len(lookups.resolver._shared), open_sockets() - before) == (40, 40)
            for each in left:
                each.cancel()
                with pytest.raises(CancelledError):
                    await each
            assert len(lookups.resolver._shared) == 0
            await until(lambda: open_sockets() == before)


def open_sockets() -> int:
    """How many sockets this process has."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


@ensureDeferred
async def test_stopping_ends_what_is_under_way_at_once_and_takes_nothing_more() -> None:
    with ScriptedNameserver(silence) as server:
        lookups = Lookups([server], deadline=30)
        async with lookups as resolver:
            waiting = [Deferred.fromCoroutine(resolver.text(f"{name}.test")) for name in range(5)]
            await until(lambda: len(server.asked) == 5)
            started = time.monotonic()
            await resolver.stop()
            assert time.monotonic() - started < 15
            for lookup in waiting:
                with pytest.raises(ResolverTrouble, match="stops"):
                    await lookup
            with pytest.raises(ResolverTrouble, match="not running"):
                await resolver.text("late.test")
            resolver.start()
            resolver.start()


@ensureDeferred
async def test_the_reactor_goes_on_while_a_lookup_waits() -> None:
    with ScriptedNameserver(silence) as server:
        async with Lookups([server], deadline=0.5) as resolver:
            lookup = Deferred.fromCoroutine(resolver.text("slow.test"))
            gaps, last = [], time.monotonic()
            while not lookup.called:
                await deferLater(reactor, 0.005)
                gaps.append(time.monotonic() - last)
                last = time.monotonic()
            with pytest.raises(ResolverTrouble):
                await lookup
            assert len(gaps) > 20
            assert max(gaps) < 0.25


# What is remembered


@ensureDeferred
async def test_answers_absences_and_trouble_are_remembered_and_all_questions_are_counted() -> None:
    def answer(query: dns.message.Message, over: str) -> dns.message.Message:
        rcodes = {"gone": "NXDOMAIN", "bad": "SERVFAIL"}
        name = query.question[0].name
        first = name.labels[0].decode()
        return reply(
            query, *([f"{name} 60 IN TXT x"] * (first == "good")), rcode=rcodes.get(first, "NOERROR")
        )

    with ScriptedNameserver(answer) as server:
        lookups = Lookups([server])
        async with lookups as resolver:
            for _ in range(3):
                assert await resolver.text("good.test") == ("x",)
                assert await resolver.text("empty.test") == ()
                with pytest.raises(NoSuchDomain):
                    await resolver.text("gone.test")
                with pytest.raises(ResolverTrouble):
                    await resolver.text("bad.test")
        assert sorted(name for _, name, _ in server.asked) == [
            "bad.test",
            "empty.test",
            "gone.test",
            "good.test",
        ]
        for outcome in ("answered", "empty", "nonexistent", "failed"):
            counted = value(lookups.registry, "elemta_dns_questions_total", type="txt", outcome=outcome)
            assert counted == 3
        assert value(lookups.registry, "elemta_dns_cache_hits_total") == 8
        assert value(lookups.registry, "elemta_dns_question_duration_seconds_count") == 4
        assert value(lookups.registry, "elemta_dns_question_duration_seconds_sum") > 0
