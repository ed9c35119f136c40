"""Three nodes behind a load balancer, with nothing wrong: what is counted, and for which client."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster.fleet import PREFIX, until
from tests.multinode.letters import Crowd, Letter, greet, judge, new_letter, send_one
from tests.multinode.topology import (
    BALANCER,
    FIRST_CLIENT,
    MAILS,
    NGINX,
    NODES,
    VISITS,
    Entry,
    Topology,
    address_of,
)
from tests.support.showing import Show
from tests.support.valkey import ValkeyServer

pytestmark = [pytest.mark.servers, pytest.mark.timeout(180)]

SIGNS = ("message.", "connection.", "proxy.", "session.", "command.")


def clients_seen(topology: Topology) -> set[str]:
    return {record["client_ip"] for name in NODES for record in topology.accepted(name)}


def count(valkey: ValkeyServer, key: str) -> int:
    return int(valkey.command("ZCARD", f"{PREFIX}{key}"))


def at_once(entries: Sequence[Entry], letters: Sequence[Letter], hands: int = 12) -> None:
    """Send all of them, each over a connection of its own, several at a time, through the nodes in turn."""
    with ThreadPoolExecutor(hands) as pool:
        list(
            pool.map(
                lambda each: send_one(entries[each[0] % len(entries)], each[1]),
                enumerate(letters),
            )
        )


def check_thirty_mails(topology: Topology, client: str) -> str:
    """Connect to 2525, 2526 and 2527, send 30 mails round robin, look at the keys. What was counted."""
    sender = f"thirty-{client}@client.test"
    letters = [new_letter(client, sender) for _ in range(30)]
    at_once(topology.listeners(), letters, hands=1)
    assert [letter.refusals for letter in letters if letter.refusals] == []
    by_node = Counter(
        name for name in NODES for record in topology.accepted(name) if record["sender"] == sender
    )
    assert by_node == dict.fromkeys(NODES, 10)
    assert count(topology.valkey, f"visits:{client}") == 30, "connections are counted for the fleet"
    assert count(topology.valkey, f"mails:{sender}") == 30, "messages are counted for the fleet"
    assert {node.mode for node in topology.nodes.values()} == {"cluster"}
    return "10 mails each, ZCARD says 30 connections and 30 messages"


def test_thirty_mails_round_robin_over_three_ports_are_thirty_in_valkey(
    topology: Topology, show: Show
) -> None:
    show("30 mails round robin over 2525, 2526, 2527", check_thirty_mails(topology, address_of(150)))


def test_mail_through_haproxy_reaches_every_node_and_each_knows_the_client(
    topology: Topology, show: Show
) -> None:
    sources = [address_of(number) for number in range(192, 204)]
    before = {name: len(topology.accepted(name)) for name in NODES}
    with Crowd([topology.through_haproxy(1)], sources) as crowd:
        crowd.wait_for(200)
    topology.wait_until_delivered()
    shares = {name: len(topology.accepted(name)) - before[name] for name in NODES}
    assert sum(shares.values()) == len(crowd.accepted())
    assert min(shares.values()) > 0
    assert judge(crowd.letters, topology.sink).clean
    assert (crowd.broken_sessions, [letter for letter in crowd.letters if letter.refusals]) == (0, [])
    assert {ip for ip in clients_seen(topology) if int(ip.rpartition(".")[2]) >= 192} == set(sources)

    # What the next hop and any reader of the message see.
    by_recipient = topology.sink.by_recipient()
    for letter in crowd.accepted():
        (taken,) = by_recipient[letter.recipient]
        assert f"[{letter.source}]".encode() in taken.content, taken.content
    show(
        "mail through HAProxy reaches every node",
        f"{len(crowd.accepted())} messages: {', '.join(f'{name} {share}' for name, share in shares.items())}",
    )
    show("each node knows the client, not HAProxy", f"{len(sources)} addresses in logs and Received fields")


def test_a_client_that_closes_its_half_behind_its_dot_is_answered_through_haproxy(topology: Topology) -> None:
    check_half_close(topology.through_haproxy())


def check_half_close(entry: Entry) -> None:
    letter = new_letter(address_of(157))
    with greet(entry, letter.source) as wire:
        for line in (f"MAIL FROM:<{letter.sender}>", f"RCPT TO:<{letter.recipient}>", "DATA"):
            assert wire.command(line)[:1] in "23"
        wire.send(b"Subject: x\r\n\r\nx\r\n.\r\nQUIT\r\n")
        wire.sock.shutdown(socket.SHUT_WR)
        assert "queued as" in wire.reply()
        assert wire.reply().startswith("221")


def test_a_limit_per_sender_holds_over_the_nodes_to_the_message(topology: Topology, show: Show) -> None:
    sender = "many@client.test"
    letters = [new_letter(address_of(204 + number % 12), sender) for number in range(3 * MAILS)]
    at_once([topology.through_haproxy(1)], letters)
    taken = [letter for letter in letters if letter.accepted_at]
    refusals = {reply[:9] for letter in letters for reply in letter.refusals}
    assert len(taken) == MAILS
    assert refusals == {"450 4.7.1"}
    assert count(topology.valkey, f"mails:{sender}") == MAILS
    by_node = Counter(
        name for name in NODES for record in topology.accepted(name) if record["sender"] == sender
    )
    assert len(by_node) == len(NODES)
    show(
        f"{MAILS} messages a sender in the fleet, to the message",
        f"{len(taken)} of {len(letters)} taken: {', '.join(f'{name} {by_node[name]}' for name in NODES)}",
    )


def test_a_limit_per_address_counts_the_client_behind_haproxy(topology: Topology, show: Show) -> None:
    client, neighbour = address_of(151), address_of(152)
    letters = [new_letter(client) for _ in range(2 * VISITS)]
    at_once([topology.through_haproxy()], letters)
    assert sum(bool(letter.accepted_at) for letter in letters) == VISITS
    assert {reply[:9] for letter in letters for reply in letter.refusals} == {"421 4.7.0"}
    assert count(topology.valkey, f"visits:{client}") == VISITS

    other = new_letter(neighbour)
    send_one(topology.through_haproxy(), other)
    assert other.accepted_at, other.refusals
    keys = {key.decode().removeprefix(PREFIX) for key in topology.valkey.command("KEYS", f"{PREFIX}*")}
    servers = {address_of(number) for number in range(1, FIRST_CLIENT)}
    assert {key for key in keys if key.rpartition(":")[2] in servers} == set()
    show(
        f"{VISITS} connections an address, HAProxy's is no client's",
        f"{VISITS} of {len(letters)} greeted, the next address is; no key of {address_of(BALANCER)}",
    )


def test_health_checks_cost_no_limit_and_leave_no_line_in_the_log(topology: Topology, show: Show) -> None:
    def checks() -> list[float]:
        return [node.metric("elemta_health_checks_total{") for node in topology.nodes.values()]

    def costs() -> dict[str, float]:
        return {
            family: sum(node.metric(family) for node in topology.nodes.values())
            for family in (
                "elemta_limit_checks_total",
                "elemta_connections_opened_total",
                "elemta_connections_refused_total",
                "elemta_commands_total",
            )
        }

    send_one(topology.listeners()[0], new_letter(address_of(156)))
    topology.wait_until_delivered()
    before = checks()
    costs_before = costs()
    assert costs_before["elemta_limit_checks_total"] > 0
    assert costs_before["elemta_connections_opened_total"] > 0
    assert costs_before["elemta_commands_total"] > 0
    lines = {
        name: len([r for r in node.records() if r["event"].startswith(SIGNS)])
        for name, node in topology.nodes.items()
    }
    until(
        lambda: all(now >= then + 2 for now, then in zip(checks(), before, strict=True)),
        "two checks of every node",
    )
    assert costs() == costs_before
    for name, node in topology.nodes.items():
        records = [record for record in node.records() if record["event"].startswith(SIGNS)]
        assert records[lines[name] :] == []
        assert address_of(BALANCER) not in node.output()
    assert set(topology.haproxy.states().values()) == {"UP"}
    made = sum(checks()) - sum(before)
    show("health checks cost no limit and no line of log", f"{made:.0f} of them counted, nothing else")


def test_a_node_that_drains_is_passed_by_and_one_that_is_back_is_used_again(
    topology: Topology, show: Show
) -> None:
    node = topology.nodes["n2"]
    held = topology.listeners()[1].enter(address_of(153))
    assert held.reply().startswith("220")
    node.ctl("drain")
    assert held.reply().startswith("421 4.3.2")
    held.sock.close()
    took = topology.haproxy.wait_for("DOWN", "n2")
    logged = len(node.records())
    checked = node.metric("elemta_health_checks_total{")
    letters = [new_letter(address_of(220)) for _ in range(12)]
    at_once([topology.through_haproxy(1)], letters, hands=4)
    assert [letter.refusals for letter in letters if letter.refusals] == []
    until(lambda: node.metric("elemta_health_checks_total{") >= checked + 2, "checks of a drained node")
    # The balancer goes on asking, and the node has nothing to say about it.
    assert [r for r in node.records()[logged:] if r["event"].startswith(SIGNS)] == []
    node.stop()
    topology.start("n2")
    back = topology.haproxy.wait_for("UP", "n2")
    topology.introduce()
    show(
        "a drain: 421 to checks takes the node out",
        f"out after {took:.1f} s, 12 of 12 mails by the others, back {back:.1f} s after its start",
    )


@pytest.mark.campaign
def test_mail_through_nginx_reaches_every_node_and_each_knows_the_client(
    topology: Topology, show: Show, nginx: None
) -> None:
    sources = [address_of(number) for number in range(192, 204)]
    before = {name: len(topology.accepted(name)) for name in NODES}
    with Crowd([topology.through_nginx(1)], sources) as crowd:
        crowd.wait_for(200)
        topology.nodes["n3"].kill()
        crowd.wait_for(100)
        topology.start("n3")
        crowd.wait_for(100)
        # A node that could not be reached is left alone for five seconds.
        until(lambda: topology.accepted("n3"), "mail for the third node again")
    check_half_close(topology.through_nginx())
    topology.wait_until_delivered()
    assert judge(crowd.letters, topology.sink, also_excused=[m.recipient for m in crowd.letters]).clean
    assert [letter for letter in crowd.letters if letter.refusals] == []
    assert crowd.broken_sessions <= len(sources)
    shares = {name: len(topology.accepted(name)) - before[name] for name in ("n1", "n2")}
    assert min(shares.values()) > 0
    assert address_of(NGINX) not in clients_seen(topology)
    show(
        "the same through nginx, a node killed meanwhile",
        f"{len(crowd.accepted())} messages, {crowd.broken_sessions} sessions broken, none lost",
    )


def test_the_thirty_mails_prove_something_because_without_valkey_they_fail(
    topology: Topology, show: Show
) -> None:
    """The last one here: counts are local for a while afterwards."""
    with topology.valkey_cut_off():
        topology.wait_for_mode("local")
        with pytest.raises(AssertionError, match="counted for the fleet"):
            check_thirty_mails(topology, address_of(154))
    back = topology.wait_for_mode("cluster")
    topology.introduce()
    check_thirty_mails(topology, address_of(155))
    show("the 30 mails fail without Valkey", f"they do, and pass {back:.1f} s after its return")
