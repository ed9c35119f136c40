"""Rates that change under load, on nodes and a Valkey that fail: no window is over them, seen from outside.

The observer has its own clock and its own log of what was admitted: for each request when it was sent and
when its answer was there. The charge lies between. A window is over a rate for sure where more requests than
that began and ended in it. The rates in force are those of commands that had begun, and were not replaced for
longer than every node needs to know.

Where a replica is promoted, it lacks at most what its primary admitted between the last write that it had
confirmed and the primary's death. By these and no others a window with that death in it may be fuller.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import random
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.valkey import ValkeyServer, eventually
from tests.support.valkey_groups import Replicated, ask

WINDOW = 4.0
RATES = (5, 12, 25, 60, 150)  # up to 128 in an exact log, above in sub-buckets
USERS = ("anna", "bert", "carl")
NODES = 3
KNOWN = 2.0
"""Seconds in which every node knows a change, while Valkey answers."""
SLACK = 2.0
"""Seconds by which a machine that is busy may be later."""


def table(rate: int, window: float) -> str:
    return (
        '[[limit]]\nname = "changing"\nper = ["user"]\ncounts = "recipients"\n'
        f'rates = ["{rate}/{window:g}s"]\nwhen_valkey_is_down = "defer"\n'
    )


@dataclass
class InForce:
    """A rate that may hold: from when its command began until all know its successor, or it has ended."""

    rate: int
    begins: float
    replaced: float = math.inf


@dataclass(frozen=True)
class Promotion:
    """A primary that died at ``died``. What it admitted after ``copied`` its successor may lack."""

    copied: float
    died: float


@dataclass
class Journal:
    """What the operator did, and when Valkey was away. ``window`` is that of all rates, in seconds."""

    window: float = WINDOW
    base: list[InForce] = field(default_factory=lambda: [InForce(RATES[0], -math.inf)])
    overrides: dict[str, list[InForce]] = field(default_factory=lambda: {user: [] for user in USERS})
    away: list[tuple[float, float]] = field(default_factory=list)
    promotions: list[Promotion] = field(default_factory=list)

    def ends(self, replaced: float) -> float:
        """When the last node knows of a change that was made at ``replaced``."""
        end = replaced + KNOWN + SLACK
        for begin, back in self.away:
            if begin < end and back > replaced:
                end += back - max(begin, replaced)
        return end

    def largest(self, user: str, begin: float, end: float) -> int:
        """The largest rate that may have been in force between the two."""
        known = (*self.base, *self.overrides.get(user, ()))
        return max(one.rate for one in known if one.begins < end and self.ends(one.replaced) > begin)


@dataclass(frozen=True)
class Admitted:
    sent: float
    answered: float

    def may_lack(self, promotion: Promotion) -> bool:
        """Whether the server that was promoted may not know of it."""
        return self.answered > promotion.copied and self.sent < promotion.died


class Client(threading.Thread):
    """Asks one node for recipients of all users, and goes on when it is back.

    ``users`` gives their names now.
    """

    def __init__(
        self, node: Daemon, seed: int, over: threading.Event, users: Callable[[], Sequence[str]]
    ) -> None:
        super().__init__(daemon=True)
        self._node = node
        self._dice = random.Random(seed)
        self._over = over
        self._users = users
        self.admitted: dict[str, list[Admitted]] = defaultdict(list)
        self.asked = 0

    def run(self) -> None:
        while not self._over.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._node.port_of("postfix")), 20) as connection:
                    self._ask(connection)
            except (OSError, AssertionError, IndexError):
                # The operator has killed the node: it has no process, no port in its log, or no connection.
                self._over.wait(0.1)

    def _ask(self, connection: socket.socket) -> None:
        answers = connection.makefile("rb")
        while not self._over.wait(self._dice.expovariate(150.0)):
            user = self._dice.choice(self._users())
            sent = time.monotonic()
            connection.sendall(
                f"request=smtpd_access_policy\nprotocol_state=RCPT\nsasl_username={user}\n\n".encode()
            )
            line, _ = answers.readline(), answers.readline()
            if not line:
                raise ConnectionResetError
            self.asked += 1
            if line == b"action=DUNNO\n":
                self.admitted[user].append(Admitted(sent, time.monotonic()))


def call(node: Daemon, method: str, path: str, **body: Any) -> Any:
    """An admin call; None where it failed, which may have changed something or not."""
    with contextlib.closing(http.client.HTTPConnection("localhost")) as connection:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        try:
            connection.sock.connect(str(node.spool / "admin.sock"))
            text = json.dumps(body) if method == "POST" else None
            connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
            answer = connection.getresponse()
            found = json.load(answer)
        except (OSError, http.client.HTTPException):
            return None
        return found if answer.status == 200 else None


class Operator:
    """Changes rates through any node, and breaks nodes and Valkey, as a seed says."""

    rates = RATES
    weights = (5, 3, 6, 2, 1, 1)  # how often each act is chosen

    def __init__(self, nodes: Sequence[Daemon], valkey: ValkeyServer, seed: int) -> None:
        self.users: tuple[str, ...] = USERS
        self._nodes = nodes
        self._valkey = valkey
        self._dice = random.Random(seed)
        self.journal = Journal()
        self.pushed: dict[int, int] = {0: RATES[0]}
        self.done: list[str] = []

    def act(self) -> None:
        acts = (
            self._push,
            self._roll_back,
            self._override,
            self._remove,
            self._kill_node,
            self._break_valkey,
        )
        (act,) = self._dice.choices(acts, self.weights)
        self.done.append(act(self._dice.choice(self._nodes)))

    def _push(self, node: Daemon) -> str:
        rate, began = self._dice.choice(self.rates), time.monotonic()
        answer = call(node, "POST", "/v1/limits/push", toml=table(rate, self.journal.window))
        return f"push {rate}: {self._base_changed(rate, began, answer)}"

    def _roll_back(self, node: Daemon) -> str:
        version, began = self._dice.choice(sorted(self.pushed)), time.monotonic()
        answer = call(node, "POST", "/v1/limits/rollback", version=version)
        return f"rollback to {version}: {self._base_changed(self.pushed[version], began, answer)}"

    def _base_changed(self, rate: int, began: float, answer: Any) -> str:
        base, now = self.journal.base, time.monotonic()
        if answer is not None:
            self.pushed[answer["version"]] = rate
            for one in base:
                one.replaced = min(one.replaced, now)
        base.append(InForce(rate, began))
        return "done" if answer is not None else "failed"

    def _override(self, node: Daemon) -> str:
        user, rate, began = self._dice.choice(USERS), self._dice.choice(self.rates), time.monotonic()
        seconds = self._dice.uniform(1.0, 6.0)
        about = {
            "limit": "changing",
            "identity": user,
            "for": seconds,
            "rates": [f"{rate}/{self.journal.window:g}s"],
        }
        answer = call(node, "POST", "/v1/limits/overrides", **about, note="campaign")
        now, known = time.monotonic(), self.journal.overrides[user]
        if answer is not None:
            for one in known:
                one.replaced = min(one.replaced, now)
        # It ends by itself: no node has to learn of that.
        known.append(InForce(rate, began, now + seconds))
        return f"override {user} {rate} for {seconds:.1f}: {'done' if answer is not None else 'failed'}"

    def _remove(self, node: Daemon) -> str:
        user = self._dice.choice(USERS)
        answer = call(node, "DELETE", f"/v1/limits/overrides?limit=changing&identity={user}")
        if answer is not None:
            for one in self.journal.overrides[user]:
                one.replaced = min(one.replaced, time.monotonic())
        return f"remove {user}: {'done' if answer is not None else 'failed'}"

    def _kill_node(self, node: Daemon) -> str:
        node.kill()
        node.start()
        return f"kill node {self._nodes.index(node)}"

    def _break_valkey(self, _node: Daemon) -> str:
        began = time.monotonic()
        if self._dice.random() < 0.5:
            self._valkey.kill()
            self._valkey.start()
            how = "kill"
        else:
            self._valkey.pause()
            threading.Event().wait(self._dice.uniform(0.1, 2.0))
            self._valkey.resume()
            how = "pause"
        self._wait_until_back(began)
        return f"{how} Valkey"

    def _wait_until_back(self, began: float) -> None:
        eventually(self.counts_again, "all nodes count in Valkey again")
        self.journal.away.append((began, time.monotonic()))

    def counts_again(self) -> bool:
        """Whether all nodes count in Valkey now."""
        return all(node.metric(r'elemta_limiter_mode\{mode="cluster"') == 1 for node in self._nodes)


class PromotingOperator(Operator):
    """Takes away the primary, at times when its replica is behind, and waits until another one is in use."""

    # Few rates, not far apart, that stay for a while: what a promotion has cost shows only at a full limit.
    rates = RATES[:3]
    weights = (2, 1, 3, 1, 1, 4)

    def __init__(self, nodes: Sequence[Daemon], group: Replicated, seed: int, window: float) -> None:
        super().__init__(nodes, group.primary, seed)
        self.journal.window = window
        self._group = group

    def _break_valkey(self, _node: Daemon) -> str:
        group, primary, replica = self._group, self._group.primary, self._group.replica
        assert group.primary_by_sentinels() == primary.port, "the Sentinels changed it by themselves"
        copied = self._copied()
        how = self._dice.choice(("kill", "pause", "kill behind"))
        if how == "kill behind":
            # What it has received it reads before it is promoted: it gets no more from here on.
            replica.pause()
            ask(primary, "CLIENT", "KILL", "TYPE", "replica")
            # Nothing has been counted for it: all that passes now is lost.
            self.users = (*USERS, f"late{len(self.journal.promotions)}")
            threading.Event().wait(self._dice.uniform(0.05, 1.0))
        if how == "pause":
            primary.pause()
        else:
            primary.kill()
        died = time.monotonic()
        if replica.paused:
            replica.resume()
        self.journal.promotions.append(Promotion(copied, died))
        eventually(lambda: group.primary_by_sentinels() == replica.port, "another primary")
        eventually(lambda: all(self._follows(node, replica) for node in self._nodes), "it is in use")
        self._wait_until_back(copied)
        if primary.paused:
            primary.resume()  # it answers what nodes asked it before
        group.change_places()
        return f"{how} the primary, {died - copied:.2f} s after the last confirmed copy"

    def _copied(self) -> float:
        """A time before which all that was admitted is confirmed by the replica."""
        now = time.monotonic()
        talk = self._group.primary.talk()
        try:
            talk("SET", "campaign", "1", "PX", "1")  # WAIT is about what the same connection wrote
            assert talk("WAIT", "1", "60000") == 1
        finally:
            talk.close()
        return now

    def _follows(self, node: Daemon, server: ValkeyServer) -> bool:
        named = node.records("valkey.primary_changed")
        return bool(named) and named[-1]["address"].endswith(f":{server.port}")


def overfull(admitted: Sequence[Admitted], user: str, journal: Journal) -> Iterator[str]:
    """The windows that admitted more than any rate in force in them, and what promotions in them cost."""
    log = sorted(admitted, key=lambda one: one.sent)
    for first, one in enumerate(log):
        end = one.sent + journal.window
        inside = 0
        lost = [each for each in journal.promotions if one.sent < each.died < end]
        for other in log[first:]:
            if other.sent >= end:
                break
            inside += other.answered < end and not any(other.may_lack(each) for each in lost)
        most = journal.largest(user, one.sent, end)
        if inside > most:
            yield f"{user}: {inside} of {most} from {one.sent:.3f} to {end:.3f}"


def nodes_of(place: Path, valkey_url: str, window: float = WINDOW) -> list[Daemon]:
    nodes = []
    for number in range(NODES):
        node = Daemon(place / f"node{number}", "", server=f'node_id = "n{number}"')
        head, _, rest = node.config.read_text().partition("[resources]")
        _, _, tail = rest.partition("[[listener]]")
        node.config.write_text(
            f"listener = []\n{head}[resources]\nmax_requests_per_window = 0\n"
            f'valkey_url = "{valkey_url}"\nvalkey_deadline = "500ms"\n{table(RATES[0], window)}'
            '[[policy_service]]\nname = "postfix"\nendpoint = "tcp:0:interface=127.0.0.1"\n'
            + tail.partition("[[route]]")[1]
            + tail.partition("[[route]]")[2]
        )
        nodes.append(node)
    return nodes


def observe(place: Path, seed: int, acts: int, between: float) -> None:
    """One run with a single Valkey; a failure has the seed and what was done."""
    with ValkeyServer(appendonly="yes", appendfsync="always") as valkey:
        nodes = nodes_of(place, valkey.url)
        run(nodes, Operator(nodes, valkey, seed), seed, acts, between)


def run(nodes: Sequence[Daemon], operator: Operator, seed: int, acts: int, between: float) -> None:
    over = threading.Event()
    clients = [
        Client(node, seed * NODES + number, over, lambda: operator.users) for number, node in enumerate(nodes)
    ]
    try:
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait_until_ready()
        eventually(operator.counts_again, "all nodes count in Valkey")
        for client in clients:
            client.start()
        dice = random.Random(seed)
        for _ in range(acts):
            over.wait(dice.expovariate(1 / between))
            operator.act()
        over.wait(operator.journal.window)
    finally:
        over.set()
        for client in clients:
            if client.is_alive():
                client.join(60)
        for node in nodes:
            node.kill()
    judge(operator, clients, seed)


def judge(operator: Operator, clients: Sequence[Client], seed: int) -> None:
    """No window is over the rates in force, and something passed."""
    journal = operator.journal
    unforgiving = replace(journal, promotions=[])
    found, forgiven = [], []
    total, lacking = 0, 0
    for user in sorted({user for client in clients for user in client.admitted}):
        admitted = [one for client in clients for one in client.admitted.get(user, ())]
        total += len(admitted)
        lacking += sum(any(one.may_lack(each) for each in journal.promotions) for one in admitted)
        found += list(overfull(admitted, user, journal))
        if journal.promotions:
            forgiven += list(overfull(admitted, user, unforgiving))
    if journal.promotions:
        print(
            f"\nseed {seed}: {len(journal.promotions)} promotions, {total} admitted, {lacking} may be lost; "
            f"{len(forgiven)} windows are fuller for that"
        )
    assert not found, f"seed {seed}: {found[:5]}\n" + "\n".join(operator.done)
    assert total > RATES[0] * len(USERS), f"seed {seed}: {total} of {sum(c.asked for c in clients)} passed"


def test_the_observer_finds_a_window_that_is_too_full() -> None:
    journal = Journal()
    admitted = [Admitted(second / 2, second / 2 + 0.1) for second in range(6)]
    assert list(overfull(admitted, "anna", journal)) == ["anna: 6 of 5 from 0.000 to 4.000"]
    # A rate that had been replaced for less than all nodes need to know still counts.
    journal.base = [InForce(6, -math.inf, -KNOWN), InForce(5, -KNOWN)]
    assert not list(overfull(admitted, "anna", journal))
    journal.base = [InForce(6, -math.inf, -KNOWN - SLACK), InForce(5, -KNOWN - SLACK)]
    assert list(overfull(admitted, "anna", journal))
    # While Valkey was away no node could know, and an override is a rate as well.
    journal.away = [(-3.0, -2.0)]
    assert not list(overfull(admitted, "anna", journal))
    journal.away = []
    journal.overrides["anna"] = [InForce(6, 3.0, 3.5)]
    assert not list(overfull(admitted, "anna", journal))


def test_the_observer_forgives_what_a_promotion_may_have_lost_and_no_more() -> None:
    # Five. The last two were not copied when their primary died. Then come more at the next one.
    log = [Admitted(at / 10, at / 10 + 0.05) for at in range(5)]
    journal = Journal(promotions=[Promotion(0.3, 0.5)])
    two_more = [*log, Admitted(1.0, 1.1), Admitted(1.2, 1.3)]
    assert not list(overfull(two_more, "anna", journal))
    assert list(overfull([*two_more, Admitted(1.4, 1.5)], "anna", journal)) == [
        "anna: 6 of 5 from 0.000 to 4.000"
    ]
    # Before its death the primary lacked nothing, and nothing after it is lost.
    before = [Admitted(at / 100, at / 100) for at in range(6)]
    journal.promotions = [Promotion(0.0, 5.0)]
    assert list(overfull(before, "anna", journal))
    journal.promotions = [Promotion(-3.0, -1.0)]
    assert list(overfull(before, "anna", journal))


@pytest.mark.parametrize("seed", [1507])
def test_no_window_is_over_the_rates_in_force(tmp_path: Path, seed: int) -> None:
    observe(tmp_path, seed, acts=10, between=0.5)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(int(os.environ.get("ELEMTA_TEST_CAMPAIGN_RUNS", "8"))))
def test_no_window_is_over_the_rates_in_force_for_long(tmp_path: Path, seed: int) -> None:
    observe(tmp_path, seed, acts=60, between=1.5)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(int(os.environ.get("ELEMTA_TEST_CAMPAIGN_RUNS", "3"))))
def test_a_promotion_lets_pass_no_more_than_the_old_primary_had_not_copied(tmp_path: Path, seed: int) -> None:
    # A window that is longer than a promotion takes: after a shorter one nothing would count any more.
    window = 15.0
    with Replicated(down_after=3000) as group:
        nodes = nodes_of(tmp_path, group.url, window)
        operator = PromotingOperator(nodes, group, seed, window)
        run(nodes, operator, seed, acts=24, between=1.5)
