"""Three Postfixes in namespaces, each with a daemon that is only a policy service, and one Valkey for all.

The daemons run the file that is shipped for that, etc/elemta-policyd.toml. Postfix asks at its restrictions
of clients, senders, recipients and the end of data.
"""

from __future__ import annotations

import os
import smtplib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.fleet import CLUSTER, LOCAL, PREFIX, Node, until
from tests.interop.postfix import Postfix
from tests.interop.sasl import SaslServer
from tests.mailout.network import Network
from tests.multinode.topology import address_of, guarded
from tests.support.limit_tables import limit_table
from tests.support.open_directory import open_directory
from tests.support.showing import Show
from tests.support.valkey import ValkeyServer

pytestmark = [pytest.mark.servers, pytest.mark.campaign, pytest.mark.timeout(300)]

SHIPPED = Path(__file__).parents[2] / "etc" / "elemta-policyd.toml"
HOSTS = {"p1": 11, "p2": 12, "p3": 13}
CLIENT, VALKEY, VALKEY_PORT = 150, 20, 6379
CALLER, VISITOR, FREE = 151, 161, 192
DELAYED = 26
"""The port where restrictions of clients and senders are evaluated at RCPT, as by Postfix's default."""
USER, PASSWORD = "anna", "correct horse"
VISITS, CALLS, RECIPIENTS, MESSAGES, ADDRESSED = 20, 5, 25, 15, 10

TABLES = (
    limit_table(
        "visits", "ip", "connections", f"{VISITS}/10m", on_exceed="disconnect", **{
            "except": ["198.51.100.144/28", "198.51.100.192/26"]
        },
    )
    + limit_table(
        "calls", "ip", "connections", f"{CALLS}/10m", **{
            "except": ["198.51.100.160/28", "198.51.100.192/26"]
        },
    )
    + limit_table("mails", "sender", "messages", f"{MESSAGES}/10m", on_exceed="reject")
    + limit_table("addressed", "sender_domain", "recipients", f"{ADDRESSED}/10m", **{"except": ["x.test"]})
    + limit_table("by-user", "user", "recipients", f"{RECIPIENTS}/10m")
)  # fmt: skip


class PolicyNode(Node):
    """A daemon with the shipped file, as far as the host does not make it another one."""

    def configure(self, tables: str = "", **_: str) -> None:
        text = SHIPPED.read_text("utf-8")
        for shipped, here in (
            ('# node_id = "mx1"', f'node_id = "{self.name}"'),
            (
                '# valkey_url = "valkey://10.0.0.5/0"',
                "".join(f'{key} = "{value}"\n' for key, value in self._resources.items()),
            ),
            ('"/var/spool/elemta"', f'"{self.spool}"'),
        ):
            assert text.count(shipped) == 1, shipped
            text = text.replace(shipped, here)
        self.config.write_text(text + tables)


class Fleet:
    """What a test asks: Postfixes by their numbers, from an address of the client's."""

    def __init__(self, directory: Path, stack: ExitStack, deadline: str) -> None:
        network = stack.enter_context(Network())
        valkey_host = network.host("vk", VALKEY, six=False)
        self._client = network.host("c", CLIENT, six=False)
        network.run(
            *(
                f"-n {self._client.namespace} address add {address_of(number)}/24 dev eth0"
                for number in (CALLER, VISITOR, FREE)
            )
        )
        self.valkey = stack.enter_context(
            ValkeyServer(place=valkey_host, port=VALKEY_PORT, bind=address_of(VALKEY), protected_mode="no")
        )
        hosts = {name: network.host(name, number, six=False) for name, number in HOSTS.items()}
        url = f"valkey://{address_of(VALKEY)}:{VALKEY_PORT}"
        resources = {"valkey_url": url, "valkey_deadline": deadline}
        self.nodes: dict[str, Node] = {}
        for name, host in hosts.items():
            node = PolicyNode(
                directory / f"elemta-{name}", url, name=name, resources=resources, tables=TABLES, place=host
            )
            stack.callback(node.kill)
            self.nodes[name] = node
        for node in self.nodes.values():
            node.launch(guarded())
        for node in self.nodes.values():
            node.wait_until_ready()
        self.wait_for(CLUSTER)
        for name, host in hosts.items():
            place = directory / name
            sasl = SaslServer(directory / f"{name}.sasl", USER, PASSWORD)
            stack.callback(sasl.close)
            server = Postfix.with_mailboxes(
                place,
                "example.com",
                ["one", "two", "three"],
                more=settings(directory / f"{name}.sasl", default="DUNNO" if name != "p3" else ""),
                place=host,
                address=(address_of(HOSTS[name]), 25),
            )
            with (place / "etc/master.cf").open("a") as master:
                master.write(f"{server.host}:{DELAYED} inet n - n - - smtpd\n  -o smtpd_delay_reject=yes\n")
            stack.callback(server.stop)
            server.start()

    def wait_for(self, mode: str) -> None:
        """Until all nodes count there, and know of each other."""
        for node in self.nodes.values():
            until(lambda node=node: node.mode == mode, f"{node.name} in mode {mode}", 90, node.troubles)
        if mode == CLUSTER:
            for node in self.nodes.values():
                until(
                    lambda node=node: node.metric("elemta_live_nodes{") == len(self.nodes),
                    f"all nodes known to {node.name}",
                    90,
                    node.troubles,
                )

    def send(
        self,
        server: str,
        sender: str,
        recipients: Sequence[str] = ("one@example.com",),
        *,
        source: int = FREE,
        port: int = 25,
        user: str = "",
    ) -> list[tuple[int, str]]:
        """The replies that decide: the greeting where it refuses, else to each recipient and the message."""
        try:
            client = self._client.call(
                lambda: smtplib.SMTP(
                    address_of(HOSTS[server]),
                    port,
                    local_hostname="client.test",
                    timeout=90,
                    source_address=(address_of(source), 0),
                )
            )
        except smtplib.SMTPConnectError as error:
            return [(error.smtp_code, _text(error.smtp_error))]
        with client:
            client.ehlo()
            if user:
                client.login(user, PASSWORD)
            code, text = client.mail(sender)
            if code != 250:
                return [(code, _text(text))]
            replies = [client.rcpt(recipient) for recipient in recipients]
            if any(code == 250 for code, _ in replies):
                replies.append(client.data(b"Subject: s\r\n\r\ntext\r\n"))
            return [(code, _text(text)) for code, text in replies]

    def at_once(
        self, times: int, ask: Callable[[str], list[tuple[int, str]]], servers: Sequence[str] = tuple(HOSTS)
    ) -> list[list[tuple[int, str]]]:
        """So many conversations with the servers in turn, several at a time."""
        with ThreadPoolExecutor(9) as pool:
            return list(pool.map(ask, [servers[number % len(servers)] for number in range(times)]))

    def counted(self, key: str) -> int:
        return int(self.valkey.command("ZCARD", PREFIX + key))


def settings(sasl: Path, default: str) -> str:
    """What main.cf has besides, as docs/postfix.md shows it, with all four restriction lists."""
    action = f", default_action={default}" if default else ""
    asked = f"check_policy_service {{ inet:127.0.0.1:10031, timeout=5s{action} }}"
    return (
        "smtpd_delay_reject = no\n"
        f"smtpd_client_restrictions = {asked}\n"
        f"smtpd_sender_restrictions = {asked}\n"
        f"smtpd_recipient_restrictions = {asked}, permit_mynetworks, permit_sasl_authenticated,"
        " reject_unauth_destination\n"
        f"smtpd_end_of_data_restrictions = {asked}\n"
        f"smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = {sasl}\n"
        "smtpd_client_connection_count_limit = 0\n"
    )


def _text(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else text


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    deadline = os.environ.get("ELEMTA_VALKEY_DEADLINE_IN_TESTS", "2s")
    with open_directory(f"multinode-{os.getpid()}-") as path, ExitStack() as stack:
        fleet = Fleet(path, stack, deadline)
        yield fleet
        for node in fleet.nodes.values():
            faults = [record for record in node.records() if record["level"] in ("error", "critical")]
            assert not faults


def codes(conversations: list[list[tuple[int, str]]], which: int = -1) -> Counter[int]:
    return Counter(replies[which][0] for replies in conversations)


def test_connections_are_bounded_at_the_restrictions_of_clients(fleet: Fleet, show: Show) -> None:
    found = fleet.at_once(VISITS + 10, lambda p: fleet.send(p, "v@x.test", source=VISITOR))
    refused = [replies for replies in found if len(replies) == 1]
    assert len(found) - len(refused) == VISITS == fleet.counted(f"visits:{address_of(VISITOR)}")
    assert all("4.7.0" in text and "Too many connections" in text for ((_, text),) in refused)
    assert codes(refused) == {421: 10}
    show("three Postfixes, connections", f"{VISITS} of {len(found)} pass, the others get 421")


def test_a_limit_of_connections_that_defers_is_a_450_to_the_recipient(fleet: Fleet) -> None:
    found = fleet.at_once(CALLS + 4, lambda p: fleet.send(p, "c@x.test", source=CALLER))
    assert codes(found, 0) == {250: CALLS, 450: 4}


def test_messages_are_bounded_at_the_end_of_data(fleet: Fleet, show: Show) -> None:
    found = fleet.at_once(MESSAGES + 6, lambda p: fleet.send(p, "many@x.test"))
    assert codes(found, 0) == {250: MESSAGES + 6}
    assert codes(found) == {250: MESSAGES, 554: 6}
    assert fleet.counted("mails:many@x.test") == MESSAGES
    show("three Postfixes, messages of a sender", f"{MESSAGES} of {len(found)} pass, the others get 554")


def test_recipients_of_a_user_are_bounded_and_charged_once_each(fleet: Fleet, show: Show) -> None:
    to = ("one@example.com", "two@example.com", "three@example.com")
    found = fleet.at_once(12, lambda p: fleet.send(p, f"{p}{os.urandom(4).hex()}@x.test", to, user=USER))
    replies = [code for conversation in found for code, _ in conversation[:3]]
    assert Counter(replies) == {250: RECIPIENTS, 450: 36 - RECIPIENTS}
    assert fleet.counted(f"by-user:{USER}") == RECIPIENTS
    show("three Postfixes, recipients of a SASL user", f"{RECIPIENTS} of 36 pass, the others get 450")


def test_a_recipient_is_charged_once_where_three_lists_ask_about_it(fleet: Fleet) -> None:
    found = fleet.at_once(
        ADDRESSED + 3, lambda p: fleet.send(p, "a@delayed.test", port=DELAYED, source=VISITOR)
    )
    assert codes(found, 0) == {250: ADDRESSED, 450: 3}
    # No connection was charged: at RCPT the state of the protocol is RCPT.
    assert fleet.counted(f"visits:{address_of(VISITOR)}") == VISITS


@pytest.mark.parametrize("away", ["paused", "killed"])
def test_without_valkey_each_host_has_its_share_and_then_the_fleet_has_one_limit_again(
    fleet: Fleet, away: str, show: Show
) -> None:
    fleet.wait_for(CLUSTER)
    if away == "paused":
        fleet.valkey.pause()
    else:
        fleet.valkey.kill()
    try:
        # The first conversations find out.
        fleet.at_once(9, lambda p: fleet.send(p, f"first-{p}@x.test"))
        fleet.wait_for(LOCAL)
        found = fleet.at_once(24, lambda p: fleet.send(p, f"{away}@x.test"))
    finally:
        if away == "paused":
            fleet.valkey.resume()
        else:
            fleet.valkey.start()
    assert codes(found) == {250: MESSAGES, 554: 24 - MESSAGES}
    assert codes(found[::3]) == {250: MESSAGES // 3, 554: 8 - MESSAGES // 3}
    fleet.wait_for(CLUSTER)
    found = fleet.at_once(MESSAGES + 6, lambda p: fleet.send(p, f"after-{away}@x.test"))
    assert codes(found) == {250: MESSAGES, 554: 6}
    show(
        f"three Postfixes, Valkey {away}", f"{MESSAGES} of 24 pass by shares, then {MESSAGES} of 21 together"
    )


def test_without_its_daemon_a_postfix_does_what_its_default_action_says(fleet: Fleet, show: Show) -> None:
    fleet.wait_for(CLUSTER)
    for name in ("p1", "p3"):
        fleet.nodes[name].kill()
    found = fleet.at_once(MESSAGES + 3, lambda p: fleet.send(p, "gone@x.test"), ["p1"])
    assert codes(found) == {250: MESSAGES + 3}, "DUNNO lets all pass"
    (reply,) = fleet.send("p3", "gone@x.test")
    assert (reply[0], reply[1][:5]) == (451, "4.3.5"), "Postfix's own default"
    found = fleet.at_once(MESSAGES + 3, lambda p: fleet.send(p, "gone@x.test"), ["p2"])
    assert codes(found) == {250: MESSAGES, 554: 3}, "the other host's limit goes on"
    for name in ("p1", "p3"):
        fleet.nodes[name].start()
    fleet.wait_for(CLUSTER)
    found = fleet.at_once(MESSAGES + 6, lambda p: fleet.send(p, "back@x.test"))
    assert codes(found) == {250: MESSAGES, 554: 6}
    show("three Postfixes, a daemon killed", "DUNNO passes, the default is 451 4.3.5, then one limit again")
