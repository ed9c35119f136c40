"""A fault in a fleet: what it costs, and that it is over when the cause is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.cluster.fleet import PREFIX, until
from tests.multinode.letters import Crowd, Letter, judge, new_letter, send_one
from tests.multinode.topology import NODES, VISITS, Topology, address_of
from tests.support.showing import Show

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

SHARE = VISITS // len(NODES)


@dataclass(frozen=True)
class Scale:
    """How many clients there are at once, and for how many letters each state lasts."""

    clients: int
    letters: int


SMALL = Scale(clients=6, letters=60)
LARGE = Scale(clients=24, letters=1500)
SMALL_AND_LARGE = [
    pytest.param(SMALL, id="small"),
    pytest.param(LARGE, id="large", marks=pytest.mark.campaign),
]
LARGE_ONLY = [pytest.param(LARGE, id="large", marks=pytest.mark.campaign)]


def crowd_of(topology: Topology, scale: Scale) -> Crowd:
    return Crowd([topology.through_haproxy(1)], [address_of(192 + number) for number in range(scale.clients)])


def on_the_way_out(topology: Topology, name: str, letters: Sequence[Letter]) -> list[str]:
    """What this node had given to the next hop when it was killed, and may not have recorded."""
    recorded = {
        record["recipient"]
        for record in topology.nodes[name].records("delivery.attempted")
        if record["status"] == "delivered"
    }
    at_hop = topology.sink.by_recipient()
    return [each.recipient for each in letters if each.recipient in at_hop and each.recipient not in recorded]


@pytest.mark.parametrize("scale", SMALL_AND_LARGE)
def test_a_killed_node_costs_its_open_sessions_and_its_queue_is_delivered_when_it_returns(
    topology: Topology, show: Show, scale: Scale
) -> None:
    node = topology.nodes["n2"]
    # So that the queues fill: what is accepted from now on is still there when the node dies.
    topology.hop_host.link("down")
    with crowd_of(topology, scale) as crowd:
        try:
            crowd.wait_for(scale.letters)
            broken_before = crowd.broken_sessions
            node.kill()
            killed = time.monotonic()
            queued = {record["queue_id"] for record in topology.accepted("n2")}
            crowd.wait_for(scale.letters)
            topology.haproxy.wait_for("DOWN", "n2")
            went_on = time.monotonic()
        finally:
            topology.hop_host.link("up")
        broken = crowd.broken_sessions - broken_before
        silence = crowd.longest_silence(killed, went_on)
        known_to_client = [letter for letter in crowd.accepted() if letter.queue_id in queued]
        missing = [
            letter.recipient
            for letter in known_to_client
            if letter.recipient not in topology.sink.by_recipient()
        ]
        excused = on_the_way_out(topology, "n2", crowd.letters)
        topology.start("n2")
        topology.haproxy.wait_for("UP", "n2")
        until(lambda: topology.accepted("n2"), "mail for the node that is back")
    topology.wait_until_delivered()
    topology.introduce()

    verdict = judge(crowd.letters, topology.sink, excused)
    assert verdict.clean, verdict
    assert [letter.recipient for letter in crowd.letters if not letter.accepted_at] == []
    assert [letter for letter in crowd.letters if letter.refusals] == []
    # Each client has one session. One at most was on that node, or on its way to it.
    assert broken <= 2 * scale.clients
    assert missing, "the node had nothing queued: this showed nothing"
    show(
        f"a node killed under load ({scale.clients} clients)",
        f"{broken} sessions broken, longest silence {silence:.2f} s, "
        f"out of rotation within {went_on - killed:.1f} s",
    )
    show(
        "  its queue is delivered when it returns",
        f"{len(missing)} waited there; of {verdict.accepted} taken 0 lost, {verdict.excused} twice (unsure)",
    )


@pytest.mark.parametrize("scale", SMALL_AND_LARGE)
def test_with_every_packet_to_valkey_dropped_each_node_takes_its_share_and_nobody_waits(
    topology: Topology, show: Show, scale: Scale
) -> None:
    newcomer, after = (
        (address_of(160), address_of(161)) if scale is SMALL else (address_of(162), address_of(163))
    )
    topology.introduce()
    with crowd_of(topology, scale) as crowd:
        crowd.wait_for(scale.letters)
        began = time.monotonic()
        with topology.valkey_cut_off():
            local = topology.wait_for_mode("local")
            taken = send_through_listeners(topology, newcomer, VISITS * 3 // 2)
            crowd.wait_for(scale.letters)
            ended = time.monotonic()
        back = topology.wait_for_mode("cluster")
        crowd.wait_for(scale.letters // 3)
    topology.introduce()
    silence = crowd.longest_silence(began, ended)
    # Each node takes its share of the limit, which is of the whole fleet again afterwards.
    assert taken == dict.fromkeys(NODES, SHARE)
    again = send_through_listeners(topology, after, VISITS * 3 // 2)
    assert sum(again.values()) == VISITS
    assert int(topology.valkey.command("ZCARD", f"{PREFIX}visits:{after}")) == VISITS
    topology.wait_until_delivered()
    assert judge(crowd.letters, topology.sink).clean
    assert [letter for letter in crowd.letters if letter.refusals or not letter.accepted_at] == []
    assert crowd.broken_sessions == 0
    show(
        f"every packet to Valkey dropped ({scale.clients} clients)",
        f"local after {local:.2f} s, nobody refused, longest silence {silence:.2f} s, "
        f"back {back:.2f} s after",
    )
    show(
        "  each node takes its share meanwhile",
        f"3 times {SHARE} for an address, and {VISITS} in all afterwards",
    )


def send_through_listeners(topology: Topology, client: str, count: int) -> dict[str, int]:
    """Connections of this client to each node in turn; how many each has taken a message from."""
    for number in range(count):
        send_one(topology.listeners()[number % len(NODES)], new_letter(client))
    return dict(
        Counter(name for name in NODES for record in topology.accepted(name) if record["client_ip"] == client)
    )


@pytest.mark.parametrize("scale", LARGE_ONLY)
def test_a_node_whose_cable_is_pulled_is_passed_by_and_loses_no_message(
    topology: Topology, show: Show, scale: Scale
) -> None:
    with crowd_of(topology, scale) as crowd:
        crowd.wait_for(scale.letters // 3)
        broken_before = crowd.broken_sessions
        began = time.monotonic()
        topology.hosts["n3"].link("down")
        try:
            down = topology.haproxy.wait_for("DOWN", "n3")
            crowd.wait_for(scale.letters // 3)
            ended = time.monotonic()
        finally:
            topology.hosts["n3"].link("up")
        silence = crowd.longest_silence(began, ended)
        up = topology.haproxy.wait_for("UP", "n3")
        crowd.wait_for(scale.letters // 3)
    topology.wait_for_mode("cluster")
    topology.introduce()
    topology.wait_until_delivered()
    verdict = judge(crowd.letters, topology.sink)
    assert verdict.clean, verdict
    assert [letter for letter in crowd.letters if letter.refusals or not letter.accepted_at] == []
    show(
        "a node's cable pulled",
        f"out after {down:.1f} s, {crowd.broken_sessions - broken_before} sessions broken, longest silence "
        f"{silence:.2f} s, back {up:.1f} s after, 0 of {verdict.accepted} lost",
    )


@pytest.mark.parametrize("scale", SMALL_AND_LARGE)
def test_a_rolling_restart_of_all_nodes_under_load_loses_no_message_and_refuses_no_client_that_retries(
    topology: Topology, show: Show, scale: Scale
) -> None:
    names = list(NODES)
    began = time.monotonic()
    with crowd_of(topology, scale) as crowd:
        for name in names:
            crowd.wait_for(scale.letters // 3)
            topology.nodes[name].stop()
            topology.start(name)
            topology.haproxy.wait_for("UP", name)
        crowd.wait_for(scale.letters // 3)
        ended = time.monotonic()
    topology.introduce()
    topology.wait_until_delivered()
    verdict = judge(crowd.letters, topology.sink)
    assert verdict.clean, verdict
    assert [letter.recipient for letter in crowd.letters if not letter.accepted_at] == []
    # A drain ends no session between a dot and its reply.
    assert [letter.recipient for letter in crowd.letters if letter.unsure] == []
    refusals = Counter(reply[:9] for letter in crowd.letters for reply in letter.refusals)
    assert set(refusals) <= {"421 4.3.2"}
    slowest = max(letter.accepted_at - letter.began for letter in crowd.letters)
    show(
        f"a rolling restart of all three ({scale.clients} clients)",
        f"{ended - began:.1f} s, {verdict.accepted} messages, 0 lost, 0 twice; "
        f"{sum(refusals.values())} times 421, slowest letter {slowest:.2f} s with its retries",
    )
