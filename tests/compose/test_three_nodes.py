"""docker-compose-multinode.yml as it is: three nodes, Valkey and HAProxy, through the published ports."""

from __future__ import annotations

import itertools
import smtplib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.compose.clients import (
    Refused,
    connect,
    greeting,
    metric,
    page,
    send,
    send_patiently,
    valkey,
    wait_for,
)
from tests.compose.engine import Engine, Stack

Show = Callable[[str, str], None]

BALANCED = 25
# Port for mail, port for monitoring, and the name that the node greets with.
NODES = {
    "node1": (2525, 8080, "mx1.example.com"),
    "node2": (2526, 8081, "mx2.example.com"),
    "node3": (2527, 8082, "mx3.example.com"),
}
PORTS = [port for port, _, _ in NODES.values()]
IP_KEYS = "elemta:ratelimit:ip:"


@pytest.fixture(scope="module")
def stack(engine: Engine) -> Iterator[Stack]:
    stack = Stack(engine, "docker-compose-multinode.yml", "elemta-three")
    stack.up()
    try:
        yield stack
    finally:
        stack.down("-v")
    assert engine.run("ps", "--all", "--quiet") == ""
    assert engine.run("volume", "ls", "--quiet") == ""


@pytest.fixture(autouse=True)
def _everything_runs(stack: Stack) -> None:
    """What an earlier test stopped, and did not start again as it failed, runs again."""
    stack.start("valkey", "haproxy", *NODES)
    for service in NODES:
        wait_for(f"{service} is ready", lambda: is_ready(service))  # noqa: B023 - called at once
        wait_for(f"{service} counts in Valkey", lambda: counts_in(service, "cluster"))  # noqa: B023
    wait_for("HAProxy has found the nodes", lambda: balanced_nodes() == set(NODES), pause=1.5)


def is_ready(service: str) -> bool:
    return page(NODES[service][1], "/readyz")[0] == 200


def counts_in(service: str, mode: str) -> bool:
    return metric(NODES[service][1], f'elemta_limiter_mode{{mode="{mode}"') == 1


def balanced_nodes() -> set[str]:
    """The nodes that HAProxy leads to just now; each look is a connection of each of some addresses."""
    # HAProxy closes without a word while it has no node to lead to.
    greeted = {greeting(BALANCED, f"198.51.100.{last}") for last in range(90, 99)}
    return {service for service, (_, _, host) in NODES.items() if f"220 {host} ESMTP Elemta" in greeted}


def key_of(source: str) -> str:
    return f"{IP_KEYS}{source}"


def counted_clients() -> set[str]:
    keys = valkey("KEYS", f"{IP_KEYS}*")
    assert isinstance(keys, list)
    return {str(key).removeprefix(IP_KEYS) for key in keys}


def maildir(stack: Stack, service: str) -> list[str]:
    text = stack.execute(
        service, "sh", "-c", "cat /var/spool/elemta/mail/example.com/box/new/* 2>/dev/null", check=False
    )
    return text.split("Return-Path: ")[1:]


def delivered(stack: Stack, service: str, subject: str) -> list[str]:
    return [message for message in maildir(stack, service) if f"Subject: {subject}\n" in message]


def thirty_mails_leave_thirty_members(source: str) -> None:
    """Connect to 2525, 2526, 2527, send 30 mails round robin, look at the key."""
    for port, number in zip(itertools.cycle(PORTS), range(30), strict=False):
        assert "queued as" in send(
            port, source, sender=f"robin-{source}@example.net", subject=f"robin {number}"
        )
    assert valkey("ZCARD", key_of(source)) == 30


def test_each_port_leads_to_its_node(stack: Stack, show: Show) -> None:
    for port, monitoring, host in NODES.values():
        assert greeting(port, "198.51.100.10") == f"220 {host} ESMTP Elemta"
        assert page(monitoring, "/healthz")[0] == 200
        assert page(monitoring, "/readyz")[0] == 200
    assert balanced_nodes() == set(NODES)
    show("each port leads to its node, 25 to all of them", "4 ports")


def test_thirty_mails_round_robin_are_thirty_members_of_one_key(stack: Stack, show: Show) -> None:
    thirty_mails_leave_thirty_members("198.51.100.11")
    for service in NODES:
        wait_for(
            "each node delivers what it took",
            lambda: len([m for m in maildir(stack, service) if "Subject: robin" in m]) == 10,  # noqa: B023
        )
    show("30 mails round robin: one key with 30 members, all delivered", "10 on each node")


def test_a_limit_on_connections_holds_over_the_three_nodes(stack: Stack, show: Show) -> None:
    """max_requests_per_window is 100 in a minute."""
    source = "198.51.100.12"

    def knock(port: int) -> int:
        try:
            connect(port, source).quit()
        except Refused as refused:
            return refused.code
        return 220

    begun = time.monotonic()
    with ThreadPoolExecutor(9) as threads:
        answers = Counter(threads.map(knock, itertools.islice(itertools.cycle(PORTS), 150)))
    assert time.monotonic() - begun < 60, "the machine is so slow that the first of them count no more"
    assert answers[220] == 100, answers
    assert set(answers) <= {220, 421}
    assert valkey("ZCARD", key_of(source)) == 100
    show(
        "150 connections of one client at three nodes, 100 allowed",
        f"{answers[220]} taken, {answers[421]} refused",
    )


def test_a_limit_on_senders_holds_behind_haproxy(stack: Stack, show: Show) -> None:
    """mail-per-sender is 60 in a minute, whichever client and node."""

    def submit(source: str) -> int:
        try:
            send(BALANCED, source, sender="busy@example.net")
        except Refused as refused:
            return refused.code
        return 250

    sources = [f"198.51.100.{last}" for last in (13, 14, 15, 16)]
    begun = time.monotonic()
    with ThreadPoolExecutor(6) as threads:
        answers = Counter(threads.map(submit, itertools.islice(itertools.cycle(sources), 100)))
    assert time.monotonic() - begun < 60, "the machine is so slow that the first of them count no more"
    assert answers == {250: 60, 450: 40}
    show(
        "100 messages of one sender by way of HAProxy, 60 allowed",
        f"{answers[250]} taken, {answers[450]} deferred",
    )


def test_haproxy_passes_the_address_of_the_client(stack: Stack, show: Show) -> None:
    source = "198.51.100.17"
    send(BALANCED, source, subject="whose")
    wait_for("it is delivered", lambda: any(delivered(stack, service, "whose") for service in NODES))
    (message,) = [message for service in NODES for message in delivered(stack, service, "whose")]
    assert f"Received: from client.example.net ([{source}])" in message
    assert valkey("ZCARD", key_of(source)) == 1
    show("HAProxy passes the client's address, to the trace and to the limits", source)


def test_health_checks_cost_no_limit_and_no_line_in_the_log(stack: Stack, show: Show) -> None:
    for service in NODES:
        for _ in range(5):
            assert stack.engine.status("healthcheck", "run", stack.container(service)) == 0
    checks = "elemta_health_checks_total"
    before = {service: metric(NODES[service][1], checks) for service in NODES}
    for service, (_, monitoring, _) in NODES.items():
        wait_for("HAProxy goes on asking", lambda: metric(monitoring, checks) >= before[service] + 2)  # noqa: B023
    # Every counted address is a client of these tests, not HAProxy, not a container.
    strangers = {client for client in counted_clients() if not client.startswith("198.51.100.")}
    assert strangers == set()
    for service in NODES:
        assert "haproxy.check" not in stack.log(service)
    asked = sum(metric(monitoring, checks) for _, monitoring, _ in NODES.values())
    show("health checks count in no limit and stand in no log", f"{asked:.0f} of HAProxy's")


def test_a_proxy_header_from_another_container_is_not_believed(stack: Stack, show: Show) -> None:
    """Port 10025 is not published, but another container of the same network reaches it."""
    heard = stack.execute(
        "node1",
        "bash",
        "-c",
        'exec 3<>/dev/tcp/node2/10025; printf "PROXY TCP4 192.0.2.1 192.0.2.2 1 25\\r\\nEHLO x\\r\\n" >&3; '
        "timeout 20 cat <&3",
        check=False,
    )
    assert "250" not in heard
    assert "192.0.2.1" not in counted_clients()
    show("a PROXY header is believed from HAProxy's address alone", "refused from another container")


def test_nothing_is_relayed(stack: Stack) -> None:
    with connect(BALANCED, "198.51.100.18") as session:
        session.ehlo()
        session.mail("someone@example.net")
        code, text = session.rcpt("else@example.org")
    assert (code, text) == (554, b"5.7.1 Relay access denied")


def test_every_node_sees_the_fleet(stack: Stack) -> None:
    for service in NODES:
        listing = stack.execute(service, "elemtactl", "nodes")
        assert all(name in listing for name in NODES), listing
        assert "reloaded" in stack.execute(service, "elemtactl", "reload")


def test_the_daemon_has_no_rights_and_nothing_to_write_to_but_its_spool(stack: Stack, show: Show) -> None:
    facts = dict(
        line.split(":\t", 1)
        for line in stack.execute("node1", "cat", "/proc/1/status").splitlines()
        if ":\t" in line
    )
    assert facts["Uid"].split() == ["10025"] * 4
    assert facts["Gid"].split() == ["10025"] * 4
    assert [int(facts[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
    assert facts["NoNewPrivs"] == "1"
    for place in ("/opt/venv/x", "/etc/x", "/usr/local/bin/x"):
        assert stack.engine.status("exec", stack.container("node1"), "touch", place) != 0
    mode = stack.execute("node1", "stat", "-c", "%a %U", "/var/spool/elemta").strip()
    assert mode == "700 elemta"
    show("an unprivileged user, no capabilities, a root file system that is read only", "uid 10025")


def test_orphans_are_buried(stack: Stack, show: Show) -> None:
    """A process whose parent has gone is PID 1's, which has to wait for it."""
    states = 'for p in /proc/[0-9]*; do read -r line <$p/stat && echo "$line"; done 2>/dev/null'
    stack.execute("node1", "bash", "-c", "for n in 1 2 3 4 5; do (exec -a orphan sleep 1 &) ; done")
    assert stack.execute("node1", "bash", "-c", states).count("(sleep)") == 5
    wait_for("they have ended", lambda: "(sleep)" not in stack.execute("node1", "bash", "-c", states))
    processes = stack.execute("node1", "bash", "-c", states).splitlines()
    assert [line for line in processes if line.split(") ")[1].startswith("Z")] == []
    assert any("(tini)" in line and line.startswith("1 ") for line in processes)
    show("no zombies: PID 1 buries orphans", "5 of 5")


@pytest.fixture
def two_clients() -> Iterator[tuple[smtplib.SMTP, smtplib.SMTP]]:
    """Of node1, greeted; closed at the end whatever became of the test."""
    with closing(connect(2525, "198.51.100.19")) as one, closing(connect(2525, "198.51.100.19")) as other:
        yield one, other


def test_a_stop_is_a_drain_and_exits_with_0(
    stack: Stack, two_clients: tuple[smtplib.SMTP, smtplib.SMTP], show: Show
) -> None:
    """A message under way gets its 250 and is there after the next start; an idle client hears 421."""
    service = "node1"
    busy, idle = two_clients
    for session in (busy, idle):
        session.ehlo()
    busy.mail("someone@example.net")
    busy.rcpt("box@example.com")
    busy.docmd("DATA")
    busy.send(b"Subject: stopped\r\n\r\nThe first half,\r\n")
    stopped: list[int] = []
    stop = threading.Thread(target=lambda: stopped.append(stack.stop(service)))
    stop.start()
    try:
        assert idle.getreply()[0] == 421
        # The other nodes take the mail of other clients, all at once: the stop waits only its grace.
        with ThreadPoolExecutor(12) as threads:
            list(threads.map(send_meanwhile, range(12)))
        busy.send(b"and the second.\r\n.\r\n")
        code, text = busy.getreply()
    finally:
        stop.join()
    assert (code, b"queued as" in text) == (250, True)
    assert stopped == [0]
    assert "daemon.stopped" in [record["event"] for record in stack.records(service)]
    stack.start(service)
    wait_for("it is back", lambda: is_ready(service))
    wait_for("it delivers what it had taken", lambda: len(delivered(stack, service, "stopped")) == 1)

    def arrived(number: int) -> bool:
        return any(delivered(stack, name, f"meanwhile {number}") for name in NODES)

    wait_for("the others deliver what they took", lambda: all(arrived(number) for number in range(12)))
    show(
        "docker stop: a message under way is finished, exit status 0", "12 of 12 clients served by the others"
    )


def send_meanwhile(number: int) -> None:
    send_patiently(BALANCED, f"198.51.100.{20 + number}", subject=f"meanwhile {number}")


def test_without_valkey_mail_goes_on_and_the_look_at_the_keys_fails(stack: Stack, show: Show) -> None:
    stack.stop("valkey")
    try:
        for service, (port, _, _) in NODES.items():
            assert "queued as" in send(port, "198.51.100.40", sender="alone@example.net", subject="alone")
            wait_for("it counts its share", lambda: counts_in(service, "local"))  # noqa: B023
            assert is_ready(service)
        with pytest.raises((OSError, AssertionError)):
            thirty_mails_leave_thirty_members("198.51.100.41")
    finally:
        stack.start("valkey")
    for service in NODES:
        wait_for("it counts with the others again", lambda: counts_in(service, "cluster"))  # noqa: B023
    thirty_mails_leave_thirty_members("198.51.100.42")
    show(
        "Valkey stopped: mail goes on, each node counts its share; they come back",
        "30 of 30 counted after that",
    )


def test_the_logs_have_no_fault(stack: Stack) -> None:
    for service in NODES:
        faults: Sequence[object] = [
            record for record in stack.records(service) if record["level"] in ("error", "critical")
        ]
        assert faults == []
        assert "Traceback" not in stack.log(service)
