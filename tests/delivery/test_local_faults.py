"""What may be wrong on this side: from the error of a socket or of DNS to what delivery learns."""

from __future__ import annotations

import errno
import os
import random
import socket
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.error import (
    ConnectBindError,
    ConnectingCancelledError,
    SSLError,
    TimeoutError,  # noqa: A004 - Twisted's name
    getConnectError,
)
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from elemta.address import Address
from elemta.delivery.connections import Connections
from elemta.delivery.happy_eyeballs import HappyEyeballs, NextHopUnreachableError, look_up
from elemta.delivery.local_faults import all_local, broke_off, fault_of, lacking
from elemta.delivery.mx import find_exchangers
from elemta.delivery.next_hop import Candidate, NextHop
from elemta.delivery.settings import DeliverySettings
from elemta.dns import MailExchanger
from elemta.dns.resolver import DnsResolver
from elemta.envelope import MailParameters, Recipient
from elemta.errors import NoSuchDomain, ResolverTrouble
from elemta.outcome import Attempt, LocalFault, Status
from elemta.runtime import Runtime
from elemta.smtp.client_commands import ClientTransaction
from tests.support.hops import open_content, reactor, read

NONE, SOCKETS, NETWORK, NAMES = LocalFault.NONE, LocalFault.SOCKETS, LocalFault.NETWORK, LocalFault.NAMES


def refused(code: int) -> Exception:
    """What Twisted makes of what connect(2) says."""
    error = getConnectError((code, os.strerror(code)))
    assert isinstance(error, Exception)
    return error


FAULTS: list[tuple[Exception, LocalFault]] = [
    (refused(errno.ENETUNREACH), NETWORK),
    (refused(errno.EHOSTUNREACH), NETWORK),
    (refused(errno.ENETDOWN), NETWORK),
    (refused(errno.ETIMEDOUT), NETWORK),
    (refused(errno.EPERM), NETWORK),
    (TimeoutError(), NETWORK),
    (refused(errno.EADDRNOTAVAIL), SOCKETS),
    (ConnectBindError(errno.EMFILE, "too many open files"), SOCKETS),
    (ConnectBindError(errno.ENFILE, "too many open files in the system"), SOCKETS),
    (OSError(errno.EMFILE, "too many open files"), SOCKETS),
    (refused(errno.ECONNREFUSED), NONE),
    (refused(errno.ECONNRESET), NONE),
    (ConnectingCancelledError(Any), NONE),
    (SSLError("handshake"), NONE),
    (ValueError("whatever"), NONE),
]


@pytest.mark.parametrize(("error", "fault"), FAULTS, ids=repr)
def test_what_may_be_wrong_here_is_told_from_what_the_other_side_says(
    error: Exception, fault: LocalFault
) -> None:
    assert fault_of(error) is fault


@ensureDeferred
async def test_a_process_without_descriptors_has_no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("twisted.internet.tcp.socket.socket", none_left)
    race = HappyEyeballs(reactor, [ip_address("192.0.2.1")], 25, Any, timeout=5.0, head_start=0.1)
    with pytest.raises(NextHopUnreachableError) as caught:
        await race.run()
    assert caught.value.local is SOCKETS


@pytest.mark.parametrize(
    ("codes", "fault"),
    [
        ([errno.ENETUNREACH, errno.ENETUNREACH], NETWORK),
        ([errno.ENETUNREACH, errno.EADDRNOTAVAIL], NETWORK | SOCKETS),
        # The host answers, so that the other address may not be ours to reach.
        ([errno.ENETUNREACH, errno.ECONNREFUSED], NONE),
        ([errno.ECONNREFUSED, errno.ENETUNREACH], NONE),
    ],
)
def test_a_host_is_down_for_a_fault_here_only_if_each_of_its_addresses_is(
    codes: list[int], fault: LocalFault
) -> None:
    memory: Any = MemoryReactorClock()
    lost: list[Any] = []
    addresses: list[Any] = [ip_address("2001:db8::1"), ip_address("192.0.2.1")]
    HappyEyeballs(memory, addresses, 25, Any, timeout=30.0, head_start=0.25).run().addErrback(lost.append)
    for number, code in enumerate(codes):
        memory.tcpClients[number][2].clientConnectionFailed(None, Failure(refused(code)))
    assert lost[0].value.local == fault


def test_a_host_that_does_not_answer_at_all_may_be_beyond_a_network_that_is_down_here() -> None:
    memory: Any = MemoryReactorClock()
    lost: list[Any] = []
    addresses: list[Any] = [ip_address("192.0.2.1")]
    HappyEyeballs(memory, addresses, 25, Any, timeout=30.0, head_start=0.25).run().addErrback(lost.append)
    memory.advance(61.0)
    assert lost[0].value.local is NETWORK


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (ResolverTrouble("no server answers", local=True), NAMES),
        (ResolverTrouble("a loop of aliases"), NONE),
        (NoSuchDomain("none"), NONE),
        ((), NONE),
    ],
)
@ensureDeferred
async def test_a_name_of_a_route_that_can_not_be_looked_up_may_be_a_fault_here(
    answer: Any, fault: LocalFault
) -> None:
    names: Any = Zone((), answer)
    with pytest.raises(NextHopUnreachableError) as caught:
        await look_up(reactor, names, "mx.example.net", 5.0)
    assert caught.value.local is fault


@pytest.mark.parametrize(
    ("faults", "fault"),
    [
        ([NETWORK, NETWORK], NETWORK),
        ([NETWORK, SOCKETS], NETWORK | SOCKETS),
        ([NETWORK, NONE], NONE),
        ([NONE], NONE),
    ],
)
@ensureDeferred
async def test_a_destination_is_down_for_a_fault_here_only_if_each_of_its_hosts_is(
    monkeypatch: pytest.MonkeyPatch, faults: list[LocalFault], fault: LocalFault
) -> None:
    connections = Connections(reactor, DeliverySettings("me.example"), read)
    left = list(faults)

    async def connect(*_: object) -> Any:
        raise NextHopUnreachableError("as the test says", local=left.pop(0))

    monkeypatch.setattr(connections.dialling, "connect", connect)
    hosts = [
        Candidate(f"mx{number}.example", 25, (IPv4Address("192.0.2.1"),)) for number in range(len(faults))
    ]
    bob = Recipient(Address("bob", "x.example"))
    transaction = ClientTransaction(Address("a", "example.org"), (bob,), MailParameters(), 10, False)
    sent = await connections.send(NextHop("x.example", tuple(hosts), route="mx:"), transaction, open_content)
    assert (sent[0].local, left) == (fault, [])
    await connections.stop()


class Zone:
    """DNS that says what a test wants."""

    def __init__(self, records: Any, *addresses: Any) -> None:
        self.records = records
        self.answers = list(addresses)

    async def mail_exchangers(self, domain: str) -> Any:
        return _say(self.records)

    async def addresses(self, host: str) -> Any:
        return _say(self.answers.pop(0))


def _say(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


OURS, THEIRS = ResolverTrouble("no answer", local=True), ResolverTrouble("a loop of aliases")
TWO = (MailExchanger(1, "a.example"), MailExchanger(2, "b.example"))


@pytest.mark.parametrize(
    ("zone", "fault"),
    [
        (Zone(OURS), NAMES),
        (Zone(THEIRS), NONE),
        (Zone(NoSuchDomain("none")), NONE),
        (Zone(TWO, OURS, OURS), NAMES),
        (Zone(TWO, OURS, THEIRS), NONE),
        (Zone(TWO, OURS, ()), NAMES),
    ],
)
@ensureDeferred
async def test_a_domain_without_exchangers_may_be_without_them_for_a_fault_here(
    zone: Zone, fault: LocalFault
) -> None:
    found = await find_exchangers(
        zone,
        "x.example",
        own_names=(),
        own_addresses=(),
        shuffle=random.shuffle,
        attempt=Attempt(),
        recipients=(Recipient(Address("bob", "x.example")),),
    )
    assert isinstance(found, tuple)
    assert lacking(found) is fault


@ensureDeferred
async def test_name_servers_that_do_not_answer_may_be_a_fault_here() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    resolver = DnsResolver(Runtime.of(reactor), nameservers=[("127.0.0.1", port)])
    with pytest.raises(ResolverTrouble) as caught:
        await resolver.mail_exchangers("x.example")
    assert caught.value.local  # it does not run
    resolver.start()
    with pytest.raises(ResolverTrouble) as caught:
        await resolver.mail_exchangers("x.example", timeout=2.0)
    assert caught.value.local
    await resolver.stop()


def test_of_nothing_that_failed_nothing_is_told() -> None:
    assert all_local([]) is NONE


D, F, OK = Status.DEFERRED, Status.FAILED, Status.DELIVERED


@pytest.mark.parametrize(
    ("outcomes", "counts"),
    [
        # A connection that was lost or stood still, and a server that goes away.
        ([(D, 0, "4.4.2")], True),
        ([(D, 421, "4.7.0")], True),
        ([(D, 0, "4.4.2"), (D, 421, "")], True),
        # Any reply about a message or a recipient, also one that makes no sense there.
        ([(D, 0, "4.5.0")], False),
        ([(D, 450, "4.2.1")], False),
        ([(D, 451, "")], False),
        ([(F, 571, "")], False),
        ([(F, 591, "5.7.1")], False),
        ([(D, 421, "4.7.0"), (F, 550, "5.1.1")], False),
        ([(D, 0, "4.4.2"), (OK, 250, "2.0.0")], False),
        # What went wrong here.
        ([(D, 0, "4.3.0")], False),
    ],
)
def test_only_what_says_nothing_of_the_message_counts_against_the_destination(
    outcomes: list[tuple[Status, int, str]], counts: bool
) -> None:
    attempt = Attempt("Q", "smtp://hop:25")
    made = [
        attempt.outcome(Address("bob", "x.example"), status, code, enhanced, "words")
        for status, code, enhanced in outcomes
    ]
    assert broke_off(made) is counts
