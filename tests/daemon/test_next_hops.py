"""What next hops refuse, and what comes of it for other mail, on a real daemon."""

from __future__ import annotations

import smtplib
from collections.abc import Callable

import pytest

from tests.interop.programs import wait_until
from tests.interop.sink import Sink
from tests.support.daemon import Daemon

pytestmark = pytest.mark.timeout(300)

MakeDaemon = Callable[..., Daemon]
CONTENT = b"Subject: hello\r\n\r\nhello\r\n"


def node_with(make_daemon: MakeDaemon, port: int, route: str = "") -> Daemon:
    return make_daemon(
        f'[[route]]\ndomains = ["far.test"]\nto = "smtp://127.0.0.1:{port}"\n{route}',
        domains='relay_from = ["127.0.0.0/8"]',
    ).start()


def send(daemon: Daemon, *recipients: str) -> None:
    with daemon.client() as client:
        client.sendmail("a@example.test", list(recipients), CONTENT)


@pytest.mark.parametrize("reply", ["571 5.7.1 no", "591", "550-no\r\n554 5.7.1 no", "550\tno"])
def test_refusals_of_single_messages_shut_no_smarthost(make_daemon: MakeDaemon, reply: str) -> None:
    with Sink(refusals={"RCPT TO:<bad": reply}) as hop:
        node = node_with(make_daemon, hop.port)
        for number in range(4):
            send(node, f"bad{number}@far.test")
        wait_until("they are refused", lambda: _failed(node) == 4)
        for number in range(10):
            send(node, f"good{number}@far.test")
        wait_until("the others are delivered", lambda: len(hop.taken) >= 10)
        assert not node.records("delivery.destination_blocked")


def _failed(node: Daemon) -> int:
    return sum(record["status"] == "failed" for record in _attempts(node))


def _attempts(node: Daemon) -> list[dict[str, object]]:
    """Without those of notices to the sender."""
    return [each for each in node.records("delivery.attempted") if each["recipient"].endswith("@far.test")]


def test_one_recipient_that_is_refused_costs_the_others_nothing(make_daemon: MakeDaemon) -> None:
    with Sink("PIPELINING", refusals={"RCPT TO:<bad": "571 5.7.1 no"}) as hop:
        node = node_with(make_daemon, hop.port)
        send(node, "ann@far.test", "bad@far.test", "cat@far.test")
        wait_until("it is delivered", lambda: hop.taken)
        assert hop.taken[0].recipients == ("ann@far.test", "cat@far.test")
        wait_until("it is attempted", lambda: len(_attempts(node)) == 3)
        assert _failed(node) == 1


def _rcpt(node: Daemon, recipient: str, sender: str = "a@client.test") -> tuple[int, bytes]:
    with node.client() as client:
        client.ehlo()
        client.command_encoding = "utf-8"
        assert client.mail(sender, ["SMTPUTF8"])[0] == 250
        return client.rcpt(recipient)


def test_what_a_next_hop_is_known_not_to_take_is_refused_at_rcpt(make_daemon: MakeDaemon) -> None:
    with Sink("8BITMIME") as hop:
        node = node_with(make_daemon, hop.port)
        # Nothing is known of it yet.
        assert _rcpt(node, "jösé@far.test")[0] == 250
        send(node, "ann@far.test")
        wait_until("it is delivered", lambda: hop.taken)
        wait_until("it is known", lambda: _rcpt(node, "jösé@far.test")[0] == 553)
        refusal = (553, b"5.6.7 The next hop takes no internationalized addresses")
        assert _rcpt(node, "jösé@far.test") == refusal
        assert _rcpt(node, "ann@far.test", "jösé@client.test") == refusal
        assert _rcpt(node, "ann@far.test")[0] == 250
        # Local mailboxes are not concerned.
        assert _rcpt(node, "jösé@example.test")[0] == 250


def test_an_offer_that_a_route_ignores_is_known_from_the_start(make_daemon: MakeDaemon) -> None:
    with Sink("SMTPUTF8") as hop:
        node = node_with(make_daemon, hop.port, 'ignore_offers = ["SMTPUTF8"]\n')
        assert _rcpt(node, "jösé@far.test")[0] == 553
        with node.client() as client, pytest.raises(smtplib.SMTPRecipientsRefused):
            client.sendmail("a@client.test", ["jösé@far.test"], CONTENT, ["SMTPUTF8"])
