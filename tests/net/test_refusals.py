"""A client that is refused again and again: slower in its session, and limited in the fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from elemta.config import Counts, Identity, LimitConfig, Mode, OnExceed, PolicyCommon, Rate, ResourcesConfig
from elemta.domains import Domains
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.net.factory import ESMTPFactory
from elemta.policies.limits import LimitsOptions, LimitsPlugin
from elemta.policy import CONTINUE, Defer, Disconnect, LoadedPolicy, PolicyChain, Reject
from elemta.policy.relay_permission import RelayPermission
from elemta.policy.testing import make_services
from tests.net.conftest import Client, Place

RCPT = b"RCPT TO:<nobody@example.test>\r\n"
NO = "550 5.7.1 no such mailbox"
TOO_MANY = (
    "Too many refused commands from your address (limit harvest, 3 per minute), try again in 60 seconds"
)
OVER = f"450 4.7.1 {TOO_MANY}"


@pytest.fixture(autouse=True)
def _refuse_recipients(place: Place) -> None:
    place.policy.answers["rcpt"] = Reject("no such mailbox")


def in_transaction(client: Client) -> Client:
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\n")
    return client


# In one session


def test_after_ten_refusals_each_takes_a_second_in_order_and_others_do_not_wait(place: Place) -> None:
    client = in_transaction(place.connect())
    assert client.send((RCPT + b"NOOP\r\n") * 12) == [NO, "250 2.0.0 OK"] * 10
    assert in_transaction(place.connect()).send(RCPT) == [NO]
    place.clock.advance(0.9)
    assert client.said() == []
    place.clock.advance(0.1)
    assert client.said() == [NO, "250 2.0.0 OK"]
    place.clock.advance(1)
    assert client.said() == [NO, "250 2.0.0 OK"]


def test_a_thousand_pipelined_recipients_get_fifty_refusals_and_the_end_after_forty_seconds(
    place: Place,
) -> None:
    client = in_transaction(place.connect())
    client.send(RCPT * 1000)
    place.pass_time(39)
    assert not client.transport.disconnecting
    place.pass_time(1)
    assert client.transport.disconnecting
    replies = client.said()
    assert replies[-1] == "421 4.7.0 Too many refused commands"
    assert [code for _, code in place.counted.answered].count(550) == 50


def test_a_client_that_leaves_in_a_pause_leaves_no_timer_behind(place: Place) -> None:
    client = in_transaction(place.connect())
    client.send(RCPT * 11)
    assert place.clock.getDelayedCalls()
    client.lose()
    assert not place.clock.getDelayedCalls()
    assert not place.registry.connections


def test_a_client_that_closed_its_half_gets_the_answers_it_waits_for(place: Place) -> None:
    client = in_transaction(place.connect())
    client.send(RCPT * 12)
    client.protocol.readConnectionLost()
    place.pass_time(2)
    assert client.said() == [NO] * 2
    assert client.transport.disconnecting


def test_a_drain_ends_a_session_after_its_pause(place: Place) -> None:
    client = in_transaction(place.connect())
    client.send(RCPT * 11)
    place.registry.drain()
    assert client.said() == []
    place.clock.advance(1)
    assert client.said() == [NO, "421 4.3.2 Service shutting down, try again later"]


# In the fleet


def limit(name: str = "harvest", rate: str = "3/60", **more: object) -> LimitConfig:
    number, _, seconds = rate.partition("/")
    values: dict[str, object] = {"per": (Identity.IP,), "counts": Counts.REFUSALS, **more}
    return LimitConfig(name=name, rates=(Rate(int(number), float(seconds)),), **values)  # type: ignore[arg-type]


class Node:
    """One node under limits; ``store`` is shared by the nodes of a fleet."""

    def __init__(self, place: Place, store: LocalStore, limits: Sequence[LimitConfig]) -> None:
        resources = ResourcesConfig(max_requests_per_window=0, max_connections_per_ip=100)
        limiter = Limiter(rules_from_config(resources, limits), store)
        services = make_services(place.clock, limits=limiter)
        chain = PolicyChain(
            [
                LoadedPolicy("limits", LimitsPlugin().build(LimitsOptions(), services), PolicyCommon()),
                LoadedPolicy("scripted", place.policy, PolicyCommon()),
            ],
            place.clock,
            relay=RelayPermission(Domains(frozenset({"example.test"}))),
        )
        self.place = place
        self.factory: ESMTPFactory = place.factory
        assert self.factory.context is not None
        session = replace(self.factory.context.session, quick_refusals=1000, max_refusals=1000)
        self.factory.context = replace(self.factory.context, limiter=limiter, chain=chain, session=session)

    def client(self, ip: str = "192.0.2.1") -> Client:
        return self.place.connect(ip, factory=self.factory)


def nodes(place: Place, count: int, *limits: LimitConfig) -> list[Node]:
    store = LocalStore(place.clock)
    return [Node(place, store, limits) for _ in range(count)]


def test_the_nodes_together_refuse_as_many_recipients_as_the_limit_says_and_then_take_nothing(
    place: Place,
) -> None:
    one, other = nodes(place, 2, limit())
    clients = [in_transaction(node.client()) for node in (one, other, one, other, one)]
    assert [client.send(RCPT) for client in clients] == [[NO]] * 3 + [[OVER]] * 2
    # Neither a good recipient nor another sender is taken, nor a new connection.
    place.policy.answers["rcpt"] = CONTINUE
    assert clients[0].send(b"RCPT TO:<good@example.test>\r\n") == [OVER]
    assert clients[0].send(b"RSET\r\nMAIL FROM:<b@client.test>\r\n") == ["250 2.0.0 OK", OVER]
    greeting = other.client().said()
    assert greeting == [f"421 4.7.0 {TOO_MANY}"]
    assert in_transaction(other.client("198.51.100.1")).send(RCPT) == ["250 2.1.5 Recipient OK"]
    place.clock.advance(60)
    assert in_transaction(one.client()).send(RCPT) == ["250 2.1.5 Recipient OK"]


def test_what_is_accepted_refused_for_now_or_refused_by_a_limit_is_not_counted(place: Place) -> None:
    recipients = limit("few", "2/60", counts=Counts.RECIPIENTS, on_exceed=OnExceed.REJECT)
    (node,) = nodes(place, 1, limit(), recipients)
    client = in_transaction(node.client())
    place.policy.answers["rcpt"] = CONTINUE
    assert client.send(RCPT * 2) == ["250 2.1.5 Recipient OK"] * 2
    assert {reply[:3] for reply in client.send(RCPT * 20)} == {"550"}
    client.send(b"RSET\r\nMAIL FROM:<a@client.test>\r\n")
    place.policy.answers["rcpt"] = Defer("greylisted")
    assert client.send(RCPT * 2) == ["450 4.7.1 greylisted"] * 2
    client.send(b"RSET\r\nMAIL FROM:<a@client.test>\r\n")
    place.policy.answers["rcpt"] = Reject("no such mailbox")
    assert client.send(RCPT) == [NO]


@pytest.mark.parametrize("stage", ["helo", "mail", "rcpt", "data", "message"])
def test_a_refusal_at_any_stage_is_counted(place: Place, stage: str) -> None:
    (node,) = nodes(place, 1, limit(rate="1/60"))
    place.policy.answers["rcpt"] = CONTINUE
    place.policy.answers[stage] = Reject("no")
    client = node.client()
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<b@example.test>\r\n")
    said = client.send(b"DATA\r\n")
    if stage == "message":
        assert said[-1].startswith("354")
        client.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
    assert (
        node.client()
        .said()[0]
        .startswith("421 4.7.0 Too many refused commands from your address (limit harvest, 1 per minute)")
    )


def test_a_client_that_is_turned_away_by_a_policy_is_counted_too(place: Place) -> None:
    (node,) = nodes(place, 1, limit(rate="1/60"))
    place.policy.answers["connect"] = Reject("listed")
    assert node.client().said() == ["554 5.7.1 listed"]
    assert (
        node.client()
        .said()[0]
        .startswith("421 4.7.0 Too many refused commands from your address (limit harvest, 1 per minute)")
    )


def test_a_limit_that_is_observed_refuses_nothing_and_one_that_disconnects_does(place: Place) -> None:
    (node,) = nodes(place, 1, limit(mode=Mode.OBSERVE))
    assert in_transaction(node.client()).send(RCPT * 10) == [NO] * 10
    (node,) = nodes(place, 1, limit(on_exceed=OnExceed.DISCONNECT))
    client = in_transaction(node.client())
    said = client.send(RCPT * 10)
    assert said[:3] == [NO] * 3
    assert said[3].startswith("421 4.7.0")
    assert client.transport.disconnecting


def test_refusals_are_counted_per_what_is_known_of_the_client(place: Place) -> None:
    by_helo = limit(rate="1/60", per=(Identity.HELO,))
    by_sender = limit("senders", "2/60", per=(Identity.SENDER,))
    (node,) = nodes(place, 1, by_helo, by_sender)
    client = in_transaction(node.client())
    assert client.send(RCPT) == [NO]
    assert "with your HELO name (limit harvest, 1 per minute)" in client.send(RCPT)[0]
    other = node.client()
    assert other.send(b"EHLO other.test\r\nMAIL FROM:<a@client.test>\r\n" + RCPT)[-1] == NO
    third = node.client()
    said = third.send(b"EHLO third.test\r\nMAIL FROM:<a@client.test>\r\n")
    assert said[-1].startswith("450 4.7.1 Too many refused commands from this sender (limit senders, 2 per ")


def test_a_policy_that_closes_the_connection_for_now_is_no_refusal(place: Place) -> None:
    (node,) = nodes(place, 1, limit(rate="1/60"))
    place.policy.answers["rcpt"] = Disconnect("go")
    for _ in range(3):
        assert in_transaction(node.client()).send(RCPT) == ["421 4.7.0 go"]
