"""Connections of the policy service: order, bounds, and limits that answer later or not at all."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from elemta.config import PolicyServiceConfig, ResourcesConfig
from elemta.errors import StoreUnavailable
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.metrics import PolicyServiceMetrics
from elemta.policy_service.question_queue import MOST_ASKED
from elemta.policy_service.requests import MAX_REQUEST
from elemta.policy_service.service import LOCAL_TROUBLE, REQUEST_SECONDS, PolicyServiceFactory
from tests.support.runtime import runtime_of

CONFIG = PolicyServiceConfig(name="postfix", endpoint="tcp:10031")


def request(**attributes: str) -> bytes:
    given = {"request": "smtpd_access_policy", "protocol_state": "RCPT", **attributes}
    return ("".join(f"{name}={text}\n" for name, text in given.items()) + "\n").encode()


class World:
    """A connection whose decisions the test makes."""

    def __init__(self) -> None:
        self.clock = Clock()
        metrics = PolicyServiceMetrics()
        self.factory = PolicyServiceFactory(CONFIG, metrics, self.clock)
        rules = rules_from_config(ResourcesConfig(), ())
        self.factory.set_limits(Limiter(rules, LocalStore(runtime_of(self.clock))), CONFIG.charge_messages_at)
        self.waiting: list[Deferred[str]] = []
        self.asked: list[str] = []
        self.at_once = False
        self.factory.decider.decide = self._decide  # type: ignore[method-assign]
        self.protocol = self.factory.buildProtocol(None)
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)

    def _decide(self, asked: object) -> object:
        self.asked.append(asked.helo)
        if self.at_once:
            return "DUNNO"
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def receive(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    @property
    def sent(self) -> bytes:
        return self.transport.value()


@pytest.fixture
def world() -> World:
    return World()


def test_answers_come_in_the_order_of_the_requests(world):
    world.receive(request(helo_name="one") + request(helo_name="two"))
    assert world.asked == ["one"]
    world.waiting[0].callback("DUNNO")
    world.waiting[1].callback("REJECT 5.7.1 no")
    assert world.asked == ["one", "two"]
    assert world.sent == b"action=DUNNO\n\naction=REJECT 5.7.1 no\n\n"


def test_thousands_of_requests_at_once_are_answered(world):
    world.at_once = True
    world.receive(request() * 5000)
    assert world.sent == b"action=DUNNO\n\n" * 5000


def test_thousands_of_requests_whose_answers_are_there_already_are_answered(world):
    def decide(_asked: object) -> Deferred[str]:
        done: Deferred[str] = Deferred()
        done.callback("DUNNO")
        return done

    world.factory.decider.decide = decide
    world.receive(request() * 5000)
    assert world.sent == b"action=DUNNO\n\n" * 5000


def test_a_client_that_sends_and_does_not_wait_is_not_read_beyond_a_bound(world):
    world.receive(request())
    while world.transport.producerState == "producing":
        world.receive(request() * 100)
    assert len(world.protocol._reader) < 2 * MAX_REQUEST
    world.at_once = True
    world.waiting[0].callback("DUNNO")
    assert world.transport.producerState == "producing"
    assert len(world.protocol._reader) == 0


@pytest.mark.parametrize("data", [b"x" * MAX_REQUEST, b"nonsense\n\n", b"size=x\n\n", b"\xff\0\n\n"])
def test_what_is_no_request_closes_this_connection_only(world, data):
    other = world.factory.buildProtocol(None)
    other.makeConnection(StringTransport())
    world.receive(data)
    assert world.transport.disconnecting
    assert not other.transport.disconnecting
    assert world.sent == b""
    world.receive(request())
    assert world.asked == []


def test_a_request_that_does_not_end_closes_the_connection_in_time_and_an_idle_one_stays(world):
    world.clock.advance(REQUEST_SECONDS * 10)
    assert not world.transport.disconnecting
    world.receive(b"request=smtpd_access_policy\n")
    world.clock.advance(REQUEST_SECONDS - 1)
    assert not world.transport.disconnecting
    world.clock.advance(2)
    assert world.transport.disconnecting


def test_octets_that_come_one_by_one_do_not_lengthen_the_time_of_a_request(world):
    for octet in (b"a", b"=", b"b"):
        world.receive(octet)
        world.clock.advance(REQUEST_SECONDS / 3)
    assert world.transport.disconnecting


def test_each_request_has_a_time_of_its_own(world):
    world.at_once = True
    whole = request()
    for _ in range(10):  # each leaves a part of the next one
        world.receive(whole[20:] if world.sent else whole)
        world.receive(whole[:20])
        world.clock.advance(REQUEST_SECONDS - 1)
    assert world.sent == b"action=DUNNO\n\n" * 10
    assert not world.transport.disconnecting


def test_a_request_that_waits_for_its_answer_has_ended(world):
    whole = request()
    world.receive(whole[:20])
    world.receive(whole[20:])
    world.clock.advance(REQUEST_SECONDS + 1)
    assert not world.transport.disconnecting


def test_a_client_that_reads_no_answer_does_not_keep_a_connection_that_is_closed(world):
    aborted = []
    world.transport.abortConnection = lambda: aborted.append(True)
    world.receive(b"nonsense\n\n")
    world.clock.advance(REQUEST_SECONDS + 1)
    assert aborted
    world.protocol.connectionLost()
    assert world.clock.getDelayedCalls() == []


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("a fault"), RecursionError()])
def test_local_trouble_defers_and_the_connection_goes_on(world, error):
    world.receive(request() + request())
    world.waiting[0].errback(error)
    world.waiting[1].callback("DUNNO")
    assert world.sent == f"action={LOCAL_TROUBLE}\n\naction=DUNNO\n\n".encode()


@pytest.mark.parametrize("more", [{}, {"size": "huge"}, {"client_address": "nowhere"}])
def test_a_request_of_another_kind_gets_dunno_whatever_its_attributes_mean(world, more):
    world.receive(request(request="junk_mail_policy", **more))
    world.receive(request(request="", **more))
    world.receive(b"size=1\nprotocol_state=RCPT\n\n")
    assert world.sent == b"action=DUNNO\n\n" * 3
    assert world.asked == []


def test_a_client_that_leaves_before_its_answer_costs_nothing(world):
    world.receive(request() + request())
    world.protocol.connectionLost()
    world.waiting[0].callback("DUNNO")
    assert world.asked == [""]
    assert world.clock.getDelayedCalls() == []


def test_a_client_that_sends_no_more_gets_its_answers_and_then_the_end(world):
    world.receive(request() + request())
    world.protocol.readConnectionLost()
    world.waiting[0].callback("DUNNO")
    assert not world.transport.disconnecting
    world.waiting[1].callback("DUNNO")
    assert world.sent == b"action=DUNNO\n\n" * 2
    assert world.transport.disconnecting


def test_a_daemon_that_stops_reads_no_further_requests(world):
    world.receive(request(helo_name="one") + request(helo_name="two"))
    world.factory.close_connections()
    assert world.transport.producerState == "paused"
    world.waiting[0].callback("DUNNO")
    # A client that goes on asking must not keep the daemon from its end.
    assert world.transport.producerState == "paused"
    assert not world.transport.disconnecting
    world.waiting[1].callback("DUNNO")
    assert world.sent == b"action=DUNNO\n\n" * 2
    assert world.transport.disconnecting


def test_a_daemon_that_stops_answers_what_it_has_charged(world):
    idle = world.factory.buildProtocol(None)
    idle.makeConnection(StringTransport())
    world.receive(request(helo_name="one") + request(helo_name="two") + request()[:-1])
    world.factory.close_connections()
    assert idle.transport.disconnecting
    assert not world.transport.disconnecting
    world.waiting[0].callback("DUNNO")
    assert world.asked == ["one", "two"]
    world.waiting[1].callback("DUNNO")
    assert world.sent == b"action=DUNNO\n\n" * 2
    assert world.transport.disconnecting


def test_open_connections_are_counted(world):
    metrics = world.factory._metrics
    assert value_of(metrics.connections) == 1
    world.protocol.connectionLost()
    world.protocol.connectionLost()
    assert value_of(metrics.connections) == 0


def value_of(gauge) -> float:
    return gauge.labels("postfix")._value.get()


def test_a_client_that_does_not_read_gets_no_more_answers_and_is_closed_in_time(world):
    world.at_once = True
    world.protocol.pauseProducing()
    world.receive(request() * 3)
    assert world.sent == b""
    assert world.transport.producerState == "paused"
    world.protocol.resumeProducing()
    assert world.sent == b"action=DUNNO\n\n" * 3
    assert world.transport.producerState == "producing"
    world.protocol.pauseProducing()
    world.clock.advance(REQUEST_SECONDS + 1)
    assert world.transport.disconnecting


def test_a_client_that_falls_behind_while_its_answer_is_made_goes_on_later(world):
    world.receive(request(helo_name="one") + request(helo_name="two"))
    world.protocol.pauseProducing()
    world.waiting[0].callback("DUNNO")
    assert world.asked == ["one"]
    world.protocol.resumeProducing()
    assert world.asked == ["one", "two"]


def crowd(world: World, clients: int) -> list[StringTransport]:
    """So many connections with a question each; that of the world is not one of them."""
    transports = []
    for number in range(clients):
        protocol, transport = world.factory.buildProtocol(None), StringTransport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        protocol.dataReceived(request(helo_name=str(number)))
        transports.append(transport)
    return transports


def test_so_many_are_asked_at_a_time_and_the_others_in_their_order(world):
    transports = crowd(world, MOST_ASKED + 5)
    assert len(world.asked) == MOST_ASKED
    for number in range(MOST_ASKED + 5):
        world.waiting[number].callback("DUNNO")
        assert len(world.asked) == min(MOST_ASKED + number + 1, MOST_ASKED + 5)
    assert world.asked == [str(number) for number in range(MOST_ASKED + 5)]
    assert {transport.value() for transport in transports} == {b"action=DUNNO\n\n"}


def test_a_client_that_leaves_before_its_turn_is_charged_nothing(world):
    transports = crowd(world, MOST_ASKED + 4)
    transports[-4].protocol.connectionLost()
    transports[-3].protocol.writeConnectionLost()
    for waiting in world.waiting[:3]:
        waiting.errback(RuntimeError("a fault"))
    assert world.asked[MOST_ASKED:] == [str(MOST_ASKED + 2), str(MOST_ASKED + 3)]
    transports[-3].protocol.connectionLost()
    assert world.clock.getDelayedCalls() == []


def test_a_client_that_sends_no_more_gets_its_answers_after_its_turn(world):
    transport = crowd(world, MOST_ASKED + 1)[-1]
    transport.protocol.dataReceived(request(helo_name="behind"))
    transport.protocol.readConnectionLost()
    world.waiting[0].callback("DUNNO")
    world.waiting[MOST_ASKED].callback("DUNNO")
    assert not transport.disconnecting
    world.waiting[MOST_ASKED + 1].callback("DUNNO")
    assert transport.value() == b"action=DUNNO\n\n" * 2
    assert transport.disconnecting


def test_answers_that_are_there_at_once_take_several_turns_of_the_reactor(world):
    transports = crowd(world, 3 * MOST_ASKED)
    for transport in transports[-MOST_ASKED:]:
        transport.protocol.dataReceived(request(helo_name="behind"))
    world.at_once = True
    world.waiting[0].callback("DUNNO")
    assert len(world.asked) == 2 * MOST_ASKED
    world.clock.advance(0)
    world.clock.advance(0)
    assert world.asked.count("behind") == MOST_ASKED
    assert transports[-1].value() == b"action=DUNNO\n\n" * 2
    assert world.clock.getDelayedCalls() == []


def test_a_fault_while_the_limits_are_asked_defers_and_the_connection_goes_on(world):
    def fail(_request: object) -> None:
        raise RuntimeError

    world.factory.decider.decide = fail
    world.receive(request() * 2)
    assert world.sent == f"action={LOCAL_TROUBLE}\n\n".encode() * 2
