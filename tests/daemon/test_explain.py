"""What is explained and what then happens are the same, and explaining changes nothing."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from elemta.auth.users_editor import add_user
from elemta.config import load
from elemta.ctl.client import AdminClient
from elemta.daemon.admin_operations import admin_calls
from elemta.daemon.components import SharedResources, build_components
from elemta.daemon.daemon_service import DaemonState
from elemta.daemon.service import Elemta
from elemta.limits.memory import LocalStore
from elemta.limits.overrides import Override
from elemta.ops.admin_calls import CallTable
from tests.support.daemon import Daemon
from tests.support.metrics import samples
from tests.support.runtime import SimulatedReactor, simulated_runtime
from tests.support.supposed import LIMITS, Conversation, conversations, hold, same
from tests.support.valkey import ValkeyServer

USER = "u@example.test"

# What goes on by itself, whatever is asked.
_OF_TIME = ("elemta_process", "process_", "elemta_event_loop", "elemta_spool_free", "elemta_spool_oldest")


def _config(directory: Path) -> str:
    (directory / "recipients").write_text("anna@example.test\n")
    (directory / "aliases").write_text(
        "team@example.test  anna@example.test, bert@example.test\naway@example.test  z@far.example\n"
    )
    (directory / "users").touch(mode=0o600)
    return f"""
[server]
hostname = "mx.example.test"
max_recipients = 3
[spool]
directory = "{directory}/spool"
minimum_free = "0"
[domains]
local = ["example.test"]
recipients = "{directory}/recipients"
aliases = "{directory}/aliases"
relay_from = ["10.0.0.0/8"]
[auth]
checkers = ["elemta-users:{directory}/users"]
require_tls = false
[resources]
max_requests_per_window = 0
max_connections_per_ip = 2
[policies]
chain = ["limits", "greylist", "relay"]
[[listener]]
name = "mx"
endpoint = "tcp:2525:interface=127.0.0.1"
[[listener]]
name = "submission"
role = "submission"
endpoint = "tcp:2587:interface=127.0.0.1"
[[route]]
domains = ["held.example"]
to = "hold:"
[[route]]
domains = ["else.example", "far.example"]
to = "smtp://192.0.2.200:25"
{LIMITS}
"""


class World:
    """A whole daemon in one thread, with a clock that stands still unless a test lets it go on."""

    def __init__(self, directory: Path) -> None:
        path = directory / "elemta.toml"
        path.write_text(_config(directory))
        config = load(str(path), {})
        self.clock = SimulatedReactor()
        self.clock.advance(1_700_000_000.0)
        runtime = simulated_runtime(self.clock, seed=1)
        add_user(str(directory / "users"), USER, b"pass word", randomness=runtime.randomness)
        shared = SharedResources.from_config(config, runtime)
        self.calls: CallTable

        def note_calls(daemon: Elemta, adoptions: Any) -> CallTable:
            self.calls = admin_calls(daemon, adoptions)
            return self.calls

        self.daemon = Elemta(
            shared=shared,
            components=build_components(config, shared),
            admin_calls=note_calls,
            config_path=str(path),
            environ={},
        )

    def start(self) -> None:
        self.daemon.privilegedStartService()
        self.daemon.startService()
        self.run(1)
        assert self.daemon.state is DaemonState.SERVING

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)

    def settle(self, done: Callable[[], object]) -> None:
        """Let turns of the reactor pass, and time only where they are not enough."""
        for turn in range(500):
            if done():
                return
            self.clock.advance(0.0 if turn % 50 else 0.05)
        raise AssertionError("it does not end")

    def explain(self, conversation: Conversation) -> dict[str, Any]:
        asked = Deferred.fromCoroutine(
            self.calls.answer(
                "POST", "/v1/explain", json.dumps(conversation.wanted).encode(), "application/json"
            )
        )
        answers: list[Any] = []
        asked.addBoth(answers.append)
        self.settle(lambda: answers)
        assert not isinstance(answers[0], Failure), answers[0]
        found: dict[str, Any] = answers[0]
        return found

    def hold(self, conversation: Conversation) -> list[list[str]]:
        port = 2587 if conversation.listener == "submission" else 2525
        factory = next(factory for known, factory, *_ in self.clock.tcpServers if known == port)
        kind = IPv6Address if ":" in conversation.ip else IPv4Address
        protocol = factory.buildProtocol(kind("TCP", conversation.ip, 1025))
        transport = StringTransport()
        protocol.makeConnection(transport)

        def say(octets: str) -> list[str]:
            if octets:
                protocol.dataReceived(octets.encode())
            self.settle(lambda: transport.value().endswith(b"\r\n") or transport.disconnecting)
            lines = transport.value().decode().splitlines()
            transport.clear()
            return lines

        try:
            return hold(conversation, say)
        finally:
            protocol.connectionLost()
            self.run(0.1)

    @property
    def state(self) -> Any:
        """All counters, entries of policies, metrics, and messages."""
        shared = self.daemon.shared
        store = shared.fleet.store
        assert isinstance(store, LocalStore)
        now = self.clock.seconds()
        tables = {name: _table(table, int(now * 1_000_000)) for name, table in store._tables.items()}
        entries = {
            name: {key: entry for key, entry in backends.store._entries.items() if entry[1] > now}
            for name, backends in shared.policy_backends._by_name.items()
        }
        metrics = {
            sample: number
            for sample, number in samples(shared.metrics.registry).items()
            if not sample[0].startswith(_OF_TIME)
        }
        remembered = self.daemon.components.limiter.refused()
        return {key: value for key, value in tables.items() if value != _EMPTY}, entries, metrics, remembered


_EMPTY: tuple[Any, ...] = ({}, {}, {}, {})


def _table(table: Any, now: int) -> tuple[Any, ...]:
    counters = {identity: _series(counter, now) for identity, counter in table._counters.items()}
    shared = {number: _series(counter, now) for number, counter in table._shared.items()}
    return dict(table._packed.items()), counters, shared, dict(table.leases)


def _series(counter: Any, now: int) -> list[tuple[list[int], list[int]]]:
    """What counts now for each bound."""
    copied = counter.copy()
    copied.used(now)
    return [(list(series._times), list(series._amounts)) for series in copied._series]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "spool").mkdir()
    world = World(tmp_path)
    world.start()
    yield world
    stopped: list[Any] = []
    world.daemon.stopService().addBoth(stopped.append)
    world.run(60)
    assert stopped == [None]


def _replies(explanation: dict[str, Any]) -> list[list[str]]:
    return [stage["reply"] for stage in explanation["stages"]]


@pytest.mark.parametrize(
    ("seed", "count"),
    [(1, 70), *(pytest.param(seed, 500, marks=pytest.mark.campaign) for seed in (2, 3))],
)
def test_what_is_explained_is_what_happens_and_explaining_changes_nothing(
    world: World, seed: int, count: int
) -> None:
    deciders: dict[str, int] = {}
    for number, conversation in enumerate(conversations(seed, count, user=USER)):
        world.run(conversation.after)
        before = world.state
        explanation = world.explain(conversation)
        assert world.state == before, conversation
        held = world.hold(conversation)
        assert same(_replies(explanation), held, slack=1.0), (number, conversation, explanation, held)
        refused = any(not reply or reply[-1][0] in "45" for reply in held)
        assert explanation["accepted"] is not refused
        for stage in explanation["stages"]:
            deciders[stage["decided_by"]] = deciders.get(stage["decided_by"], 0) + 1
    assert {"", "limits", "greylist", "server", "relay"} <= set(deciders), deciders


def test_an_explanation_is_not_in_the_log_and_says_what_decided(world: World) -> None:
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    try:
        found = world.explain(
            Conversation("192.0.2.7", "h.example", "a@b.example", ("y@else.example",), None)
        )
    finally:
        globalLogPublisher.removeObserver(seen.append)
    assert found["accepted"] is False
    last = found["stages"][-1]
    assert (last["stage"], last["decided_by"]) == ("rcpt", "greylist")
    # The log drops the records of a session that is only explained.
    assert all(str(event["session_id"]).startswith("explain-") for event in seen if event.get("session_id"))


@pytest.mark.parametrize(
    ("ip", "sender", "recipient", "decided_by", "option"),
    [
        ("192.0.2.7", "a@b.example", "bad@@example.test", "server", ""),
        ("10.1.1.1", "a@b.example", "nobody@example.test", "relay", "domains.recipients"),
        ("10.1.1.1", "a@b.example", "anna@example.test", "", ""),
        ("10.1.1.1", "a@b.example", "x@held.example", "", ""),
    ],
)
def test_the_setting_that_decided_is_named(
    world: World, ip: str, sender: str, recipient: str, decided_by: str, option: str
) -> None:
    found = world.explain(Conversation(ip, "h.example", sender, (recipient,), None))
    stage = next(stage for stage in found["stages"] if stage["stage"] == "rcpt")
    assert (stage["decided_by"], stage["option"]) == (decided_by, option)
    assert found["accepted"] is not bool(decided_by)


def test_the_route_is_named_with_the_state_of_its_destination(world: World) -> None:
    (held,) = world.explain(Conversation("10.1.1.1", "h.example", "a@b.example", ("x@held.example",), None))[
        "routes"
    ]
    assert (held["route"], held["destination"], held["state"]) == ("hold:", "hold:", "")
    wanted = ("y@else.example", "team@example.test")
    found = world.explain(Conversation("10.1.1.1", "h.example", "a@b.example", wanted, None))
    assert [(route["recipient"], route["route"], route["state"]) for route in found["routes"]] == [
        ("y@else.example", "smtp://192.0.2.200:25", "open"),
        ("anna@example.test", found["routes"][1]["route"], ""),
        ("bert@example.test", found["routes"][1]["route"], ""),
    ]
    assert found["routes"][1]["route"].startswith("maildir:")


@pytest.mark.parametrize(
    ("rates", "words", "passes"),
    [((), "exempt by anna: a test", True), (("1",), "1 by anna: a test", True)],
    ids=["exempt", "other rates"],
)
def test_the_override_that_decided_is_named(
    world: World, rates: tuple[str, ...], words: str, passes: bool
) -> None:
    overrides = world.daemon.fleet.overrides.overrides
    end = overrides.seconds() + 3600
    overrides.replace([Override("connections-per-ip", "10.0.0.0/8", rates, end, "anna", "a test")])
    found = world.explain(Conversation("10.1.1.1", "h.example", "a@b.example", ("x@held.example",), None))
    (limit,) = (each for each in found["stages"][0]["limits"] if each["limit"] == "connections-per-ip")
    assert (limit["override"], limit["passes"]) == (words, passes)


def test_a_client_that_gets_no_session_is_told_so(world: World) -> None:
    world.daemon.drain()
    found = world.explain(Conversation("10.1.1.1", "h.example", "a@b.example", ("x@held.example",), None))
    assert found["accepted"] is False
    assert found["reply"].startswith("421 4.3.2 Service shutting down")
    assert [stage["stage"] for stage in found["stages"]] == ["connect"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"ip": "192.0.2"},
        {"ip": "192.0.2.7", "listener": "nowhere"},
        {"ip": "192.0.2.7", "from": "a@b.example>\r\nRSET"},
        {"ip": "192.0.2.7", "to": ["a@b.example\n"]},
        {"ip": "192.0.2.7", "helo": "h\x00"},
        {"ip": "192.0.2.7", "message_base64": "?"},
        {"ip": "192.0.2.7", "message_base64": "eA==", "message": "x"},
    ],
)
def test_what_can_be_no_command_is_refused(world: World, wrong: dict[str, Any]) -> None:
    answers: list[Any] = []
    call = world.calls.answer("POST", "/v1/explain", json.dumps(wrong).encode(), "application/json")
    Deferred.fromCoroutine(call).addBoth(answers.append)
    world.settle(lambda: answers)
    assert answers[0].value.status in (400, 404)


# With Valkey


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.campaign)])
def test_with_limits_in_valkey_explanation_and_reality_agree(
    valkey: ValkeyServer, tmp_path: Path, count: int
) -> None:
    valkey.command("FLUSHALL")
    (tmp_path / "recipients").write_text("anna@example.test\n")
    daemon = Daemon(
        tmp_path / "node",
        f'[policies]\nchain = ["limits", "greylist", "relay"]\n{LIMITS}'
        '[[route]]\ndomains = ["held.example"]\nto = "hold:"\n',
        domains=f'recipients = "{tmp_path}/recipients"\n',
        listener='proxy_protocol_from = ["127.0.0.1"]\n',
        environ={"VALKEY_URL": valkey.unix_url},
    ).start()
    client = AdminClient(str(daemon.spool / "admin.sock"))
    try:
        for number, conversation in enumerate(conversations(20, count)):
            before = _contents_at_rest(valkey, client)
            explanation = client.send("explain", body=conversation.wanted)
            # Meanwhile a key may end by itself.
            assert _contents(valkey).items() <= before.items(), conversation
            held = _hold_by_proxy(daemon, conversation)
            assert same(_replies(explanation), held, slack=3.0), (number, conversation, explanation, held)
        _explain_on_command_line(daemon, tmp_path)
    finally:
        client.close()
        daemon.kill()


def _explain_on_command_line(daemon: Daemon, directory: Path) -> None:
    message = directory / "message"
    message.write_bytes(b"Subject: caf\xe9\n\n.x\n")
    good = daemon.ctl(
        "explain", "--ip", "127.0.0.9", "--helo", "h.example", "--from", "<>", "--message", str(message),
        "--to", "new@example.test", "--to", "anna@example.test", check=False,
    )  # fmt: skip
    assert good.returncode == 1
    lines = good.stdout.splitlines()
    assert lines[-1] == "refused   451 4.7.1 Greylisted, try again in 40 seconds"
    assert "          limit per-ip 127.0.0.9: 0/5 in 2m, 0/300 in 1h, passes" in lines
    assert "          MAIL FROM:<> SIZE=21 BODY=8BITMIME → 250 2.1.0 Sender OK" in lines
    assert any(line.endswith("greylist: defer; decided by greylist (policy.greylist)") for line in lines)
    plain = daemon.ctl("explain", "--ip", "127.0.0.9")
    assert plain.stdout.endswith("so far    nothing is refused up to EHLO, where the explanation ends\n")
    plain = daemon.ctl(
        "explain", "--ip", "127.0.0.9", "--from", "<>", "--to", "anna@held.example", check=False
    )
    assert "so far " not in plain.stdout
    plain = daemon.ctl("explain", "--ip", "127.0.0.9")
    assert "no sender was given" in plain.stderr


def _contents_at_rest(valkey: ValkeyServer, client: AdminClient) -> dict[bytes, Any]:
    """The same once all sessions are over, and what they gave back is written."""
    before: dict[bytes, Any] | None = None
    while True:
        sessions = client.get("status")["sessions"]
        now = _contents(valkey)
        if not sessions and now == before:
            return now
        before = now


def _contents(valkey: ValkeyServer) -> dict[bytes, Any]:
    """Every key of limits and policies, with what it holds."""
    of_time = (b"node", b"resets", b"spool", b"_probe", b"connections-per-ip", b":~")
    keys = [key for key in valkey.command("KEYS", "*") if not any(each in key for each in of_time)]
    found = {key: valkey.command("DUMP", key) for key in keys}
    return {key: value for key, value in found.items() if value is not None}


def _hold_by_proxy(daemon: Daemon, conversation: Conversation) -> list[list[str]]:
    family = "TCP6" if ":" in conversation.ip else "TCP4"
    ours = "::1" if family == "TCP6" else "127.0.0.1"
    with daemon.socket() as sock, sock.makefile("rb") as lines:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(f"PROXY {family} {conversation.ip} {ours} 4000 25\r\n".encode())

        def say(octets: str) -> list[str]:
            if octets:
                sock.sendall(octets.encode())
            reply: list[str] = []
            while not reply or reply[-1][3:4] == "-":
                line = lines.readline()
                if not line:
                    break
                reply.append(line.decode().rstrip("\r\n"))
            return reply

        return hold(conversation, say)
