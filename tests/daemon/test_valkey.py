"""A daemon whose limits are counted in Valkey, as its operator meets it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.fleet import CLUSTER, LOCAL, PREFIX, Fleet, until
from tests.support.valkey import ValkeyServer, valkey_server
from tests.support.valkey_groups import kind_of_valkey

# With time enough, so that a slow machine is not taken for a Valkey that is away.
PATIENT = {"valkey_deadline": "4s"}
RESOURCES = {"max_requests_per_window": 4, "rate_limit_window": 3600, **PATIENT}
KEY = f"{PREFIX}ip:127.0.0.1"


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with valkey_server() as server:
        yield server


def test_one_limit_holds_on_two_nodes_and_any_of_them_shows_and_resets_it(
    tmp_path: Path, valkey: ValkeyServer
) -> None:
    with Fleet(tmp_path, valkey.url, resources=RESOURCES, size=2) as fleet:
        first, second = fleet.nodes
        assert [first.greeting() for _ in range(3)] == ["220"] * 3
        assert valkey.command("ZCARD", KEY) == 3
        assert [second.greeting() for _ in range(3)] == ["220", "421", "421"]

        (fill,) = first.ask("limits", "show", "ip:127.0.0.1")["limits"]
        assert fill["bounds"] == [{"used": 4, "limit": 4, "window": 3600.0, "share": None}]
        assert 3000 < fill["retry_after"] <= 3600
        assert first.ask("limits", "top", "ip")["limits"][0]["identity"] == "127.0.0.1"
        until(lambda: len(first.ask("nodes")["nodes"]) == 2, "the nodes know each other")
        assert [node["this"] for node in second.ask("nodes")["nodes"]] == [False, True]
        # The one that refuses without asking is named to a caller that asks another one.
        until(
            lambda: first.ask("limits", "show", "ip:127.0.0.1")["limits"][0]["refused_by"] == ["n1"],
            "the other node's refusal is seen",
        )

        assert first.ctl("limits", "reset", "ip:127.0.0.1").stdout == "ip: 127.0.0.1 reset\n"
        until(lambda: second.greeting() == "220", "the other node has forgotten its refusal")
        until(lambda: first.metric("elemta_live_nodes{") == 2, "the first node has heard of the second")
        assert "counted in Valkey, by 2 nodes" in first.ctl("status").stdout

        assert first.metric("valkey_up{") == 1
        assert first.metric('elemta_limiter_breaker_state{.*state="closed"') == 1
        until(lambda: first.metric("valkey_used_memory_bytes") > 0, "INFO was asked")
        assert second.metric('smtp_rate_limit_rejections_total{node_id="n1"') >= 2

        # A node that stops leaves at once, and takes its leases with it.
        second.stop()
        assert second.records("daemon.stopped")
        assert fleet.faults() == []
        assert [node["node_id"] for node in first.ask("nodes")["nodes"]] == ["n0"]


def test_mail_goes_on_while_valkey_is_away_and_the_cluster_counts_when_it_is_back(
    tmp_path: Path, valkey: ValkeyServer
) -> None:
    with Fleet(tmp_path, valkey.url, resources={"max_requests_per_window": 0, **PATIENT}, size=1) as fleet:
        (node,) = fleet.nodes
        valkey.kill()
        fleet.wait_for_mode(LOCAL)
        with node.client() as client:
            client.sendmail("a@client.test", ["u@example.test"], "Subject: x\r\n\r\nx\r\n")
        node.wait_for_mail("u")
        assert json.loads(node.get("/readyz")) == {"ready": True, "reasons": []}
        until(lambda: node.metric("valkey_up{") == 0, "valkey_up tells it")
        assert "Valkey is away" in node.ctl("status").stdout
        assert node.ask("status")["valkey"]["up"] is False
        assert [each["node_id"] for each in node.ask("nodes")["nodes"]] == ["n0"]
        valkey.start()
        fleet.wait_for_mode(CLUSTER)
        assert node.greeting() == "220"
        node.stop()
        assert node.records("daemon.stopped")
        assert fleet.faults() == []


def test_a_node_that_starts_without_valkey_serves_at_once_and_joins_later(
    tmp_path: Path, valkey: ValkeyServer
) -> None:
    valkey.kill()
    with Fleet(tmp_path, valkey.url, resources=RESOURCES, size=1, waits=False) as fleet:
        (node,) = fleet.nodes
        assert node.mode == LOCAL
        assert "\nvalkey_up{" in node.get("/metrics")
        assert node.metric("valkey_up{") == 0
        assert node.greeting() == "220"
        assert node.wait_for("limits.mode_changed")["mode"] == LOCAL
        valkey.start()
        fleet.wait_for_mode(CLUSTER)
        assert node.greeting() == "220"
        assert valkey.command("ZCARD", KEY) >= 1


@pytest.mark.parametrize("kind", ["single", "sentinel", "cluster"])
def test_after_one_decision_without_an_answer_valkey_is_not_up_and_with_the_first_answer_it_is(
    tmp_path: Path, kind: str
) -> None:
    resources = {"max_requests_per_window": 100, "rate_limit_window": 3600, "valkey_deadline": "300ms"}
    with kind_of_valkey(kind) as (url, servers), Fleet(tmp_path, url, resources=resources, size=1) as fleet:
        (node,) = fleet.nodes
        until(lambda: node.metric("valkey_up{") == 1, "it is up")
        until(lambda: node.ask("status")["valkey"]["up"], "the status says so")
        for server in servers:
            server.pause()
        assert node.greeting() == "220"
        # Three decisions open the breaker; this was one.
        assert node.metric("valkey_up{") == 0
        status = node.ask("status")
        assert status["valkey"]["up"] is False
        assert status["valkey"]["trouble"]
        assert status["limiter"] == LOCAL
        words = node.ctl("status").stdout
        assert "Valkey is away" in words
        assert "DOES NOT ANSWER" in words
        for server in servers:
            server.resume()
        until(lambda: node.metric("valkey_up{") == 1, "the first answer is seen")
        until(lambda: node.ask("status")["limiter"] == CLUSTER, "limits are counted in Valkey")


def test_where_valkey_is_may_only_change_with_a_restart(tmp_path: Path, valkey: ValkeyServer) -> None:
    with Fleet(tmp_path, valkey.url, resources=RESOURCES, size=1) as fleet:
        (node,) = fleet.nodes
        node.config.write_text(
            node.config.read_text().replace('valkey_deadline = "4s"', 'valkey_deadline = "3s"')
        )
        assert (
            "resources.valkey_deadline changed and takes effect after a restart" in node.ctl("reload").stdout
        )
