"""The primary dies under load, and the nodes follow the Sentinels to the new one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.checks import ends_of_leases, enter
from tests.cluster.crowd import Stream, burst, new_client, percentile
from tests.cluster.fleet import CLUSTER, PREFIX, Fleet, until
from tests.support.valkey_groups import Replicated, ask

LIMIT = 60
CONNECTIONS = 6
RESOURCES: dict[str, int | str] = {
    "max_connections": 5000,
    "max_connections_per_ip": CONNECTIONS,
    "max_requests_per_window": LIMIT,
    "rate_limit_window": 600,
}


@pytest.fixture
def group() -> Iterator[Replicated]:
    with Replicated() as group:
        yield group


class Election:
    """Notes when most Sentinels name another primary, by the system's clock."""

    def __init__(self, group: Replicated) -> None:
        self.over_at = 0.0
        self._group = group
        self._before = group.primary_by_sentinels()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Election:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._given_up.wait(0.01):
            if self._group.primary_by_sentinels() not in (0, self._before):
                self.over_at = time.time()
                return


@pytest.mark.parametrize(
    ("deadline", "per_second", "settled_within", "greeting"),
    [
        pytest.param("2s", 40, 60.0, 15.0, id="small"),
        pytest.param("50ms", 100, 1.0, 0.1, id="large", marks=pytest.mark.campaign),
    ],
)
def test_a_new_primary_is_used_as_soon_as_the_sentinels_have_it_and_nobody_waits(
    tmp_path: Path, group: Replicated, deadline: str, per_second: int, settled_within: float, greeting: float
) -> None:
    with Fleet(tmp_path, group.url, resources={**RESOURCES, "valkey_deadline": deadline}) as fleet:
        before, busy = new_client(), new_client()
        held = [enter(fleet.nodes[number % 3], busy) for number in range(CONNECTIONS)]
        assert [wire.reply()[:3] for wire in held] == ["220"] * CONNECTIONS
        passed = burst(fleet.ports(), [before] * (LIMIT // 2), within=0.5)
        assert all(visit.passed for visit in passed)
        until(lambda: ask(group.replica, "ZCARD", f"{PREFIX}ip:{before}") == LIMIT // 2, "replication")

        with Election(group) as election, Stream(fleet.ports(), per_second) as stream:
            time.sleep(1.0)
            began, begun = time.time(), time.monotonic()
            group.primary.kill()
            until(lambda: election.over_at > 0, "another primary")
            until(lambda: fleet.has_changed(CLUSTER, began), "the new primary in use")
            time.sleep(0.5)
        settled = fleet.last_to_change(CLUSTER, began) - election.over_at
        during = [visit for visit in stream.visits if visit.began >= begun]
        slowest = percentile([visit.seconds for visit in during[15:]], 0.99)
        print(
            f"\nSentinels took {election.over_at - began:.2f} s, the nodes {settled:.2f} s more; "
            f"{len(during)} clients meanwhile, p99 {1000 * slowest:.1f} ms"
        )
        assert [visit for visit in stream.visits if not visit.passed] == []
        assert slowest < greeting
        assert settled < settled_within

        # What was counted and what is open is so at the new primary, and the bound holds.
        assert ask(group.replica, "ROLE")[0] == b"master"
        (refused,) = burst(fleet.ports()[:1], [busy])
        assert refused.greeting.startswith("421 4.7.0")
        assert len(ends_of_leases(group.replica, busy)) == CONNECTIONS
        visits = burst(fleet.ports(), [before] * LIMIT, within=0.5)
        assert sum(visit.passed for visit in visits) == LIMIT // 2
        for wire in held:
            wire.sock.close()
        until(lambda: ends_of_leases(group.replica, busy) == [], "the open connections given back")
        assert fleet.faults() == []
