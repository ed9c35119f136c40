"""A dead DNS zone under 200 connections a second, on a whole daemon: what the others notice of it."""

from __future__ import annotations

import smtplib
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import Any

import dns.message
import dns.rdatatype
import pytest

from tests.mailout.network import Host, Network
from tests.support.daemon import Daemon
from tests.support.nameservers import ScriptedNameserver, reply

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(300)]

A_SECOND = 200
SECONDS = 30
SERVER = "198.51.100.2"
CONTENT = b"Subject: hello\r\n\r\nhello\r\n"

MODULE = '''
from twisted.plugin import IPlugin
from zope.interface import implementer
from elemta.policy import CONTINUE, IConnectPolicy, IPolicyPlugin, NoOptions, NoSuchDomain, ResolverTrouble


@implementer(IConnectPolicy)
class Asking:
    """Asks for a text about each client: in a dead zone, or in a healthy one."""

    def __init__(self, services):
        self.services, self.number = services, 0

    async def connected(self, session):
        zone = "dead" if str(session.client_ip) == "198.51.100.8" else "healthy"
        self.number += 1
        try:
            await self.services.resolver.text(f"a{self.number}.{zone}.test")
        except (NoSuchDomain, ResolverTrouble):
            zone += ", no answer"
        self.services.log.info("asked", event="asking.answered", zone=zone)
        return CONTINUE


@implementer(IPlugin, IPolicyPlugin)
class AskingPlugin:
    name, options = "asking", NoOptions

    def build(self, options, services):
        return Asking(services)


asking = AskingPlugin()
'''


CONFIG = """
[server]
hostname = "mx.example.test"
[domains]
local = ["example.test"]
relay_from = ["198.51.100.7/32"]
[spool]
directory = "{spool}"
minimum_free = "1MiB"
[metrics]
endpoint = "tcp:0:interface=127.0.0.1"
[console]
endpoint = ""
[resources]
max_requests_per_window = 0
max_connections = 5000
max_connections_per_ip = 5000
[[listener]]
name = "mx"
endpoint = "tcp:2525:interface={server}"
[policies]
chain = ["asking", "limits", "relay"]
[[route]]
domains = ["*"]
to = "mx:"
"""


def half_dead(query: dns.message.Message, over: str) -> dns.message.Message | None:
    """Silence about the dead zone."""
    question = query.question[0]
    name = question.name.to_text(omit_final_dot=True)
    if name.endswith("dead.test"):
        return None
    kind = dns.rdatatype.to_text(question.rdtype)
    records = {"TXT": f"{name}. 60 IN TXT good", "MX": f"{name}. 60 IN MX 10 mx.healthy.test."}
    if name == "mx.healthy.test":
        records = {"A": "mx.healthy.test. 60 IN A 198.51.100.9"}
    return reply(query, *([records[kind]] if kind in records else []))


def attack(end: float) -> int:
    """Open so many connections a second, each for a second; returns how many there were."""
    sockets: list[tuple[float, socket.socket]] = []
    made, begun = 0, time.monotonic()
    while (now := time.monotonic()) < end:
        while made < (now - begun) * A_SECOND:
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex((SERVER, 2525))
            sockets.append((now + 1, sock))
            made += 1
        while sockets and sockets[0][0] < now:
            sockets.pop(0)[1].close()
        time.sleep(0.005)
    for _, sock in sockets:
        sock.close()
    return made


def memory(daemon: Daemon) -> int:
    """Resident octets of the daemon."""
    text = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[tuple[Daemon, Host, Host]]:
    plugins = tmp_path / "site" / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "asking_plugin.py").write_text(MODULE)
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        names, host = network.host("dns", 53), network.host("elemta", 2)
        honest, hostile = network.host("honest", 7), network.host("hostile", 8)
        network.host("sink", 9)  # where nothing listens
        stack.enter_context(names.call(lambda: ScriptedNameserver(half_dead, str(names.four), 53)))
        network.use_resolver(host, str(names.four))
        daemon = Daemon(tmp_path / "node", place=host, environ={"PYTHONPATH": str(tmp_path / "site")})
        daemon.config.write_text(CONFIG.format(server=SERVER, spool=daemon.spool))
        stack.callback(daemon.kill)
        yield daemon.start(), honest, hostile
        daemon.stop()


def greeted(number: int) -> float:
    """Seconds until an honest client has its greeting; every tenth sends a message, too."""
    begun = time.monotonic()
    with smtplib.SMTP(SERVER, 2525, local_hostname="client.test", timeout=30) as client:
        took = time.monotonic() - begun
        if not number % 10:
            client.sendmail("a@healthy.test", [f"b@d{number}.healthy.test"], CONTENT)
    return took


def seconds(record: dict[str, Any]) -> float:
    return datetime.fromisoformat(record["time"]).timestamp()


def test_a_dead_zone_takes_nothing_from_a_healthy_one_from_deliveries_or_from_memory(
    scene: tuple[Daemon, Host, Host],
) -> None:
    daemon, honest, hostile = scene
    end = time.monotonic() + SECONDS
    made: list[int] = []
    greetings: list[float] = []
    sizes: list[int] = []

    def visit() -> None:
        number = 0
        while time.monotonic() < end:
            greetings.append(greeted(number))
            number += 1
            sizes.append(memory(daemon))
            time.sleep(0.1)

    threads = [
        Thread(target=lambda: made.append(hostile.call(lambda: attack(end)))),
        Thread(target=lambda: honest.call(visit)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    zones = [record["zone"] for record in daemon.records("asking.answered")]
    accepted = {record["queue_id"]: seconds(record) for record in daemon.records("message.accepted")}
    delays = [
        seconds(record) - record["seconds"] - accepted[record["queue_id"]]
        for record in daemon.records("delivery.attempted")
        if record["queue_id"] in accepted
    ]
    half = len(sizes) // 3
    early, late = statistics.median(sizes[half : half + 10]), statistics.median(sizes[-10:])
    print(
        f"{made[0]} connections about the dead zone; {len(greetings)} greetings, median"
        f" {statistics.median(greetings):.3f} s, worst {max(greetings):.3f} s; {len(delays)} deliveries began"
        f" after {statistics.median(delays):.3f} s, worst {max(delays):.3f} s; memory grew by"
        f" {(late - early) / 2**20:.1f} MiB"
    )
    assert made[0] >= 0.9 * A_SECOND * SECONDS
    assert zones.count("healthy") == len(greetings)
    assert zones.count("healthy, no answer") == 0
    assert len(delays) >= len(accepted) > 5
    assert statistics.median(delays) < 0.1
    assert late - early < 16 * 2**20
