"""Connections to next hops over real sockets: which candidate, how many, and what is used again."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from elemta.config import RouteTLS
from elemta.delivery.connections import Connections
from elemta.delivery.next_hop import Candidate, NextHop, hop_of
from elemta.delivery.routes import NextHopRoute
from elemta.delivery.settings import DeliverySettings
from elemta.metrics import DeliveryMetrics
from elemta.outcome import Outcome, ReachedStage, Status
from tests.support.hops import CLOSE, Harbour, SecureHop, message, open_content, reactor, read
from tests.support.metrics import record
from tests.support.waiting import until

SETTINGS = DeliverySettings("me.example", connect_timeout=5.0, head_start=0.1)
LOCAL = ip_address("127.0.0.1")
DELIVERED, DEFERRED, FAILED = Status.DELIVERED, Status.DEFERRED, Status.FAILED


class Quay(Harbour):
    """Connections and where they lead."""

    def __init__(self) -> None:
        super().__init__()
        metrics = DeliveryMetrics()
        self.told = record(metrics, "connections")
        self.open = record(metrics, "connections_open")
        self.connections = Connections(reactor, SETTINGS, read, metrics)

    async def send(self, *ports: int, **terms: Any) -> tuple[Outcome, ...]:
        """To these ports of this machine in order, as hosts of their own."""
        candidates = tuple(Candidate(f"mx{n}.example", port, (LOCAL,)) for n, port in enumerate(ports, 1))
        hop = replace(NextHop("example.com", candidates, tls=RouteTLS.NONE, route="mx:"), **terms)
        return await self.connections.send(hop, message(), open_content)

    def sending(self, *ports: int, **terms: Any) -> Deferred[tuple[Outcome, ...]]:
        return Deferred.fromCoroutine(self.send(*ports, **terms))


@pytest_twisted.async_yield_fixture
async def quay(tmp_path: Path) -> AsyncIterator[Quay]:
    """Its sockets end before ``tmp_path`` does, where some of them are."""
    quay = Quay()
    yield quay
    await quay.connections.stop()
    await quay.close()


# Used again


@ensureDeferred
async def test_the_next_message_takes_the_connection_of_the_last(quay: Quay) -> None:
    hop = SecureHop()
    port = await quay.listen(hop)
    sent = [await quay.send(port) for _ in range(5)]
    assert [each[0].status for each in sent] == [DELIVERED] * 5
    assert hop.connections == 1
    assert b"RSET" not in hop.verbs
    assert quay.told == ["opened", *["reused"] * 4]


@ensureDeferred
async def test_a_connection_is_closed_politely_after_its_rest_and_after_its_messages(quay: Quay) -> None:
    quay.connections.reconfigure(replace(SETTINGS, keep_idle=0.05, messages_per_connection=3))
    hop = SecureHop()
    port = await quay.listen(hop)
    for _ in range(4):
        await quay.send(port)
    assert hop.connections == 2
    await until(lambda: not quay.connections.open)
    assert hop.verbs.count(b"QUIT") == 2
    assert quay.open.count("down") == 2


@pytest.mark.parametrize("last_word", [b"", b"421 4.4.2 idle for too long\r\n"])
@ensureDeferred
async def test_a_connection_that_was_closed_while_it_rested_is_no_attempt(
    quay: Quay, last_word: bytes
) -> None:
    hop = SecureHop()
    port = await quay.listen(hop)
    await quay.send(port)
    hop.sessions[0].transport.write(last_word)
    hop.sessions[0].transport.loseConnection()
    sent = await quay.send(port)
    assert sent[0].status is DELIVERED
    assert hop.connections == 2


@pytest.mark.parametrize("answer", [CLOSE, b"421 4.4.2 idle for too long\r\n"])
@ensureDeferred
async def test_a_connection_that_turns_out_dead_at_the_first_word_is_no_attempt(
    quay: Quay, answer: bytes
) -> None:
    hop = SecureHop(replies={b"MAIL": [b"250 ok\r\n", answer]})
    port = await quay.listen(hop)
    await quay.send(port)
    sent = await quay.send(port)
    assert (sent[0].status, quay.told[-1]) == (DELIVERED, "opened")
    assert len(hop.messages) == 2
    assert hop.connections == 2


@ensureDeferred
async def test_a_connection_that_dies_after_the_first_answer_is_an_attempt(quay: Quay) -> None:
    hop = SecureHop(replies={b"RCPT": [b"250 ok\r\n", CLOSE]})
    port = await quay.listen(hop)
    await quay.send(port)
    sent = await quay.send(port)
    assert (sent[0].status, sent[0].reached) == (DEFERRED, ReachedStage.ANSWERED)
    assert hop.connections == 1


@ensureDeferred
async def test_a_message_that_was_refused_leaves_the_connection_for_the_next(quay: Quay) -> None:
    hop = SecureHop(replies={b"RCPT": [b"550 5.1.1 no\r\n"], b".": [b"554 5.7.1 spam\r\n"]})
    port = await quay.listen(hop)
    statuses = [(await quay.send(port))[0].status for _ in range(3)]
    assert statuses == [FAILED, FAILED, DELIVERED]
    assert hop.connections == 1
    assert hop.verbs.count(b"RSET") == 1


@pytest.mark.parametrize("other", [{"route": "other"}, {"destination": "example.net"}, {"lmtp": True}])
@ensureDeferred
async def test_a_connection_is_used_again_on_the_same_terms_only(quay: Quay, other: Any) -> None:
    hop = SecureHop(replies={b"LHLO": b"250 hop\r\n"})
    port = await quay.listen(hop)
    await quay.send(port)
    await quay.send(port, **other)
    assert quay.told[-1] == "opened"


@ensureDeferred
async def test_new_settings_use_no_old_connection(quay: Quay) -> None:
    hop = SecureHop()
    port = await quay.listen(hop)
    await quay.send(port)
    quay.connections.reconfigure(replace(SETTINGS, hostname="new.example"))
    await quay.send(port)
    assert hop.heard[0] == b"EHLO me.example"
    assert b"EHLO new.example" in hop.heard
    await until(lambda: hop.verbs.count(b"QUIT") == 1)


# Candidates


@ensureDeferred
async def test_the_next_candidate_is_tried_when_one_cannot_be_connected_to(quay: Quay) -> None:
    hop = SecureHop()
    sent = await quay.send(quay.closed_port(), port := await quay.listen(hop))
    assert (sent[0].status, sent[0].reached) == (DELIVERED, ReachedStage.ANSWERED)
    assert sent[0].next_hop == f"mx2.example[127.0.0.1]:{port}"
    assert quay.told == ["failed", "opened"]


@pytest.mark.parametrize(
    "replies",
    [
        {b"": b"421 4.3.2 closing\r\n"},
        {b"": b"450 4.7.1 not you\r\n"},
        {b"": b"554 5.7.1 never\r\n"},
        {b"": b"521 5.3.2 no mail here\r\n"},
        {b"": CLOSE},
        {b"": b"SSH-2.0-x\r\n"},
        {b"EHLO": b"421 4.7.0 busy\r\n"},
        {b"EHLO": b"451 4.7.0 busy\r\n"},
        {b"MAIL": b"421 4.7.0 busy\r\n"},
        {b"MAIL": CLOSE},
    ],
)
@ensureDeferred
async def test_the_next_candidate_is_tried_when_one_will_not_talk(quay: Quay, replies: Any) -> None:
    bad, good = SecureHop(replies=replies), SecureHop()
    sent = await quay.send(await quay.listen(bad), await quay.listen(good))
    assert sent[0].status is DELIVERED
    assert (bad.connections, good.connections) == (1, 1)


@pytest.mark.parametrize(
    ("verb", "reply", "status"),
    [
        (b"MAIL", b"550 5.7.1 no\r\n", FAILED),
        (b"MAIL", b"451 4.7.1 greylisted\r\n", DEFERRED),
        (b"RCPT", b"550 5.1.1 no\r\n", FAILED),
        (b"RCPT", b"450 4.2.1 later\r\n", DEFERRED),
        (b"RCPT", CLOSE, DEFERRED),
        (b"DATA", b"554 5.7.1 no\r\n", FAILED),
        (b".", b"451 4.3.0 no\r\n", DEFERRED),
        (b".", CLOSE, DEFERRED),
    ],
)
@ensureDeferred
async def test_an_answer_for_the_message_is_taken_nowhere_else(
    quay: Quay, verb: bytes, reply: bytes, status: Status
) -> None:
    first, second = SecureHop(replies={verb: reply}), SecureHop()
    sent = await quay.send(await quay.listen(first), await quay.listen(second))
    assert (sent[0].status, sent[0].reached) == (status, ReachedStage.ANSWERED)
    assert second.connections == 0


@ensureDeferred
async def test_only_when_every_candidate_says_that_it_never_takes_mail_it_has_failed(quay: Quay) -> None:
    never = [await quay.listen(SecureHop(replies={b"": b"521 5.3.2 no mail\r\n"})) for _ in range(2)]
    later = await quay.listen(SecureHop(replies={b"": b"421 4.3.2 closing\r\n"}))
    assert (await quay.send(*never))[0].status is FAILED
    assert (await quay.send(never[0], later))[0].status is DEFERRED
    assert (await quay.send(later, never[0]))[0].status is DEFERRED
    assert (await quay.send(never[0], quay.closed_port()))[0].status is DEFERRED


@ensureDeferred
async def test_a_bounded_number_of_servers_is_listened_to(quay: Quay) -> None:
    hops = [SecureHop(replies={b"": b"421 no\r\n"}) for _ in range(8)]
    sent = await quay.send(*[await quay.listen(hop) for hop in hops])
    assert (sent[0].status, sent[0].reached) == (DEFERRED, ReachedStage.NOWHERE)
    assert sum(hop.connections for hop in hops) == 3


@ensureDeferred
async def test_when_nobody_is_there_each_candidate_is_named(quay: Quay) -> None:
    sent = await quay.send(quay.closed_port(), quay.closed_port())
    (result,) = sent
    assert (result.status, result.enhanced, sent[0].reached) == (DEFERRED, "4.4.1", ReachedStage.NOWHERE)
    assert "mx1.example" in result.text
    assert "mx2.example" in result.text
    assert not quay.connections.open


@ensureDeferred
async def test_the_other_address_of_a_host_is_tried_when_the_first_will_not_talk(quay: Quay) -> None:
    bad, good = SecureHop(replies={b"": b"421 busy\r\n"}), SecureHop()
    port = await quay.listen_at_one_port({"::1": bad, "127.0.0.1": good})
    hop = NextHop("h", (Candidate("h", port, (LOCAL, ip_address("::1"))),), tls=RouteTLS.NONE)
    sent = await quay.connections.send(hop, message(), open_content)
    assert (sent[0].status, sent[0].next_hop) == (DELIVERED, f"h[127.0.0.1]:{port}")
    assert bad.connections == 1


@ensureDeferred
async def test_a_route_names_its_next_hop_by_name_address_or_socket(quay: Quay, tmp_path: Path) -> None:
    hop = SecureHop()
    port = await quay.listen(hop)
    for host, reached in (("localhost", f"localhost[127.0.0.1]:{port}"), ("127.0.0.1", f"127.0.0.1:{port}")):
        route = NextHopRoute(f"smtp://{host}:{port}", frozenset("*"), host=host, port=port)
        sent = await quay.connections.send(hop_of(route), message(), open_content)
        assert (sent[0].status, sent[0].next_hop) == (DELIVERED, reached)
    hop.replies[b"LHLO"] = b"250 hop\r\n"
    path = await quay.listen_unix(hop, tmp_path / "lmtp")
    unix = NextHopRoute(f"lmtp+unix://{path}", frozenset("*"), path=path, lmtp=True)
    for _ in range(2):
        sent = await quay.connections.send(hop_of(unix), message(), open_content)
        assert (sent[0].status, sent[0].next_hop) == (DELIVERED, path)
    assert quay.told[-1] == "reused"
    missing = NextHopRoute("lmtp+unix:///x", frozenset("*"), path=f"{tmp_path}/no", lmtp=True)
    sent = await quay.connections.send(hop_of(missing), message(), open_content)
    assert (sent[0].enhanced, sent[0].reached) == ("4.4.1", ReachedStage.NOWHERE)


@ensureDeferred
async def test_a_host_that_did_not_answer_stands_behind_the_others_for_a_while(quay: Quay) -> None:
    quay.connections.reconfigure(replace(SETTINGS, connect_timeout=0.3, silence_memory=600.0))
    hop = SecureHop()
    port = await quay.listen(hop)
    with socket.socket() as silent:
        # Its queue of connections is full, so the kernel answers no client.
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        waiting = [socket.socket() for _ in range(2)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(silent.getsockname())
        candidates = [
            Candidate("mx1.example", silent.getsockname()[1], (LOCAL,)),
            Candidate("mx2.example", port, (LOCAL,)),
        ]
        dialling = quay.connections.dialling
        assert dialling.in_order(candidates) == candidates
        sent = await quay.send(silent.getsockname()[1], port)
        assert sent[0].status is DELIVERED
        assert dialling.in_order(candidates) == candidates[::-1]
        quay.connections.reconfigure(SETTINGS)
        assert dialling.in_order(candidates) == candidates
        for each in waiting:
            each.close()


@ensureDeferred
async def test_a_host_that_refuses_keeps_its_place(quay: Quay) -> None:
    closed, port = quay.closed_port(), await quay.listen(SecureHop())
    await quay.send(closed, port)
    candidates = [Candidate(f"mx{n}.example", each, (LOCAL,)) for n, each in enumerate((closed, port), 1)]
    assert quay.connections.dialling.in_order(candidates) == candidates


# How many


@ensureDeferred
async def test_a_route_never_has_more_connections_than_it_may(quay: Quay) -> None:
    hop = SecureHop()
    port = await quay.listen(hop)
    sent = await gatherResults([quay.sending(port, max_connections=4) for _ in range(50)])
    assert all(each[0].status is DELIVERED for each in sent)
    assert hop.most == 4
    assert hop.connections < 20


@ensureDeferred
async def test_a_destination_never_has_more_connections_than_it_may(quay: Quay) -> None:
    quay.connections.reconfigure(replace(SETTINGS, max_per_destination=2))
    hop = SecureHop()
    port = await quay.listen(hop)
    await gatherResults([quay.sending(port, destination="example.com") for _ in range(20)])
    assert hop.most == 2


@ensureDeferred
async def test_a_connection_that_rests_makes_room_for_another_place(quay: Quay) -> None:
    first, second = SecureHop(), SecureHop()
    await quay.send(await quay.listen(first), max_connections=1)
    sent = await quay.send(await quay.listen(second), max_connections=1)
    assert sent[0].status is DELIVERED
    assert first.verbs[-1] == b"QUIT"
    assert not first.sessions


@ensureDeferred
async def test_many_for_one_place_take_turns_with_one_for_another(quay: Quay) -> None:
    busy, quiet = SecureHop(), SecureHop()
    busy_port, quiet_port = await quay.listen(busy), await quay.listen(quiet)
    flood = [quay.sending(busy_port, max_connections=1, destination="busy") for _ in range(60)]
    sent = await quay.send(quiet_port, max_connections=1, destination="quiet")
    assert sent[0].status is DELIVERED
    assert len(busy.messages) <= 20
    await gatherResults(flood)
    assert len(busy.messages) == 60
    assert busy.connections <= 3


@ensureDeferred
async def test_who_waits_too_long_for_a_connection_is_deferred_and_nobody_is_blamed(quay: Quay) -> None:
    quay.connections.reconfigure(replace(SETTINGS, connection_wait=0.1))
    hop = SecureHop(replies={b"MAIL": b""})
    port = await quay.listen(hop)
    stuck = quay.sending(port, max_connections=1)
    sent = await quay.send(port, max_connections=1)
    (result,) = sent
    assert (result.status, result.enhanced, sent[0].reached) == (DEFERRED, "4.4.5", ReachedStage.NOTHING_FREE)
    quay.connections.abandon()
    assert (await stuck)[0].status is DEFERRED


@ensureDeferred
async def test_a_connection_that_fails_gives_its_slot_back(quay: Quay) -> None:
    bad = await quay.listen(SecureHop(replies={b"": b"421 no\r\n"}))
    closed = quay.closed_port()
    for _ in range(3):
        await quay.send(bad, closed, max_connections=1)
    good = await quay.listen(SecureHop())
    assert (await quay.send(good, max_connections=1))[0].status is DELIVERED


# The end


@ensureDeferred
async def test_at_a_stop_every_connection_says_goodbye(quay: Quay) -> None:
    hops = [SecureHop() for _ in range(3)]
    for hop in hops:
        await quay.send(await quay.listen(hop))
    await quay.connections.stop()
    assert not quay.connections.open
    assert all(hop.verbs[-1] == b"QUIT" for hop in hops)


@ensureDeferred
async def test_a_next_hop_that_does_not_answer_the_goodbye_does_not_keep_the_stop_for_long(
    quay: Quay,
) -> None:
    hop = SecureHop(replies={b"QUIT": b""})
    await quay.send(await quay.listen(hop))
    deaf = hop.sessions[0].transport
    deaf.pauseProducing()
    began = reactor.seconds()
    await quay.connections.stop()
    assert reactor.seconds() - began < 20
    assert not quay.connections.open
    # What is paused does not notice that the other side is gone.
    deaf.resumeProducing()
    await until(lambda: not hop.sessions)


@ensureDeferred
async def test_at_the_end_of_the_grace_everything_is_cut_and_deferred(quay: Quay) -> None:
    hop = SecureHop(replies={b"MAIL": b""})
    port = await quay.listen(hop)
    sendings = [quay.sending(port, await quay.listen(SecureHop()), max_connections=2) for _ in range(5)]
    await until(lambda: b"MAIL" in hop.verbs)
    quay.connections.abandon()
    sent = await gatherResults(sendings)
    assert all(each[0].status is DEFERRED for each in sent)
    await until(lambda: not quay.connections.open)
    await deferLater(reactor, 0.01)


@ensureDeferred
async def test_the_content_is_opened_once_whatever_is_tried(quay: Quay) -> None:
    opened = []

    async def counted() -> BinaryIO:
        opened.append(1)
        return await open_content()

    bad = await quay.listen(SecureHop(replies={b"": b"421 no\r\n"}))
    good = await quay.listen(SecureHop())
    hop = NextHop("h", tuple(Candidate(str(port), port, (LOCAL,)) for port in (bad, good)), tls=RouteTLS.NONE)
    sent = await quay.connections.send(hop, message(), counted)
    assert sent[0].status is DELIVERED
    assert len(opened) == 1
