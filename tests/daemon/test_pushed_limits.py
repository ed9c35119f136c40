"""Limits that are pushed to a fleet of real daemons: taken, refused, kept without Valkey, and taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.fleet import PREFIX, Fleet, Node, until
from tests.support.valkey import ValkeyServer, valkey_server

RESOURCES = {"max_requests_per_window": 0, "valkey_deadline": "4s"}
TWO = """
[[limit]]
name = "per-address"
per = ["ip"]
counts = "connections"
rates = ["2/1h"]
"""
FIVE = TWO.replace("2/1h", "5/1h")


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with valkey_server() as server:
        yield server


def names(node: Node) -> list[str]:
    return [limit["name"] for limit in node.ask("limits", "list")["limits"]]


def write(place: Path, text: str) -> str:
    place.write_text(text)
    return str(place)


def test_a_set_of_limits_holds_on_every_node_and_after_a_start_without_valkey(
    tmp_path: Path, valkey: ValkeyServer
) -> None:
    with Fleet(tmp_path, valkey.url, resources=RESOURCES, size=2) as fleet:
        first, second = fleet.nodes
        # Nearly as large as a set may be, which in JSON with escapes would be too much.
        two = write(tmp_path / "two.toml", f"{TWO}# {'ы' * 130_000}\n")
        five = write(tmp_path / "five.toml", FIVE)
        dry = first.ctl("limits", "push", two, "--dry-run")
        assert "added: per-address" in dry.stdout
        assert first.ctl("limits", "push", two, "--yes", "--note", "a test").returncode == 0
        assert "per-address" in names(first)
        assert second.wait_for("limits.push_taken")["version"] == 1
        assert [first.greeting(), second.greeting(), first.greeting()] == ["220", "220", "421"]
        until(
            lambda: [node["limits_version"] for node in first.ask("nodes")["nodes"]] == [1, 1],
            "each node says which version it runs",
        )

        # Looser: the same count, and nothing that passes now would be refused. Tighter again: one would be.
        pushed = first.ask("limits", "push", five, "--yes")
        assert (pushed["version"], pushed["changed"], pushed["refused_then"]) == (2, ["per-address"], [])
        second.wait_for("limits.push_taken", version=2)
        assert second.greeting() == "220"
        (refused,) = first.ask("limits", "push", two, "--dry-run")["refused_then"]
        assert (refused["identity"], refused["used"], refused["rates"]) == ("127.0.0.1", [3], ["2/1h"])
        history = second.ask("limits", "history")
        assert [(each["version"], each["note"]) for each in history["versions"]] == [(2, ""), (1, "a test")]

        assert first.ctl("limits", "rollback", "1", "--yes").returncode == 0
        second.wait_for("limits.push_taken", version=3)
        assert second.greeting() == "421"

        # Valkey loses all: the nodes give it back.
        valkey.restart_empty()
        until(lambda: valkey.command("GET", f"{PREFIX}pushed:version") == b"3", "it was written again")

        second.stop()
        valkey.kill()
        second.launch()
        second.wait_until_ready()
        assert "per-address" in names(second)
        valkey.start()
        until(lambda: first.metric("valkey_up{") == 1, "the first node is connected again")
        assert first.ctl("limits", "rollback", "0", "--yes").returncode == 0
        second.wait_for("limits.push_taken", version=4)
        assert "per-address" not in names(second)
        assert fleet.faults() == []


def test_what_a_node_cannot_take_it_names_and_keeps_its_own(tmp_path: Path, valkey: ValkeyServer) -> None:
    with Fleet(tmp_path, valkey.url, resources=RESOURCES, size=1) as fleet:
        (node,) = fleet.nodes
        bad = write(
            tmp_path / "bad.toml",
            TWO.replace("connections", "conections").replace("2/1h", "2") + "[server]\nworkers = 1\n",
        )
        refused = node.ctl("limits", "push", bad, "--yes", check=False)
        assert refused.returncode == 78
        assert "limit[1].counts" in refused.stderr
        assert "server: must not be here" in refused.stderr
        # This node waits for Valkey for so long that a client could not be delayed as well.
        delays = write(tmp_path / "delays.toml", TWO + 'on_exceed = "delay"\n')
        refused = node.ctl("limits", "push", delays, "--yes", check=False)
        assert refused.returncode == 78
        assert "limit: one delays, and here policy.limits.max_delay is 4 s: must be less" in refused.stderr
        assert node.ctl("limits", "push", write(tmp_path / "two.toml", TWO), "--yes").returncode == 0

        # A newer Elemta pushes a key that this one does not know.
        newer = json.dumps({"toml": TWO + 'weighs = "feathers"\n', "author": "new", "note": "", "made_at": 1})
        valkey.command("HSET", f"{PREFIX}pushed", "2", newer)
        valkey.command("SET", f"{PREFIX}pushed:version", "2")
        record = node.wait_for("limits.push_refused")
        assert (record["version"], record["kept"]) == (2, 1)
        assert any("weighs" in fault for fault in record["faults"])
        history = node.ask("limits", "history")
        assert (history["version"], history["running"]) == (2, 1)
        assert [version["limits"] for version in history["versions"]] == 2 * [["per-address"]]
        assert [fault["event"] for fault in fleet.faults()] == ["limits.push_refused"]


def test_without_a_valkey_there_is_no_fleet_to_push_to(tmp_path: Path) -> None:
    with Fleet(tmp_path, "", resources=RESOURCES, size=1, waits=False) as fleet:
        (node,) = fleet.nodes
        refused = node.ctl("limits", "push", write(tmp_path / "two.toml", TWO), "--yes", check=False)
        assert refused.returncode == 1
        assert "no valkey_url is configured" in refused.stderr


def test_a_node_that_shares_no_limits_keeps_those_of_its_file(tmp_path: Path, valkey: ValkeyServer) -> None:
    with Fleet(
        tmp_path, valkey.url, resources=RESOURCES, size=1, tables="[limits]\nshared = false\n"
    ) as fleet:
        (node,) = fleet.nodes
        assert node.ctl("limits", "push", write(tmp_path / "two.toml", TWO), "--yes").returncode == 0
        assert "per-address" not in names(node)
        (this,) = node.ask("nodes")["nodes"]
        assert this["limits_version"] == 0
        history = node.ask("limits", "history")
        assert (history["version"], history["running"]) == (1, 0)
        assert [version["in_force"] for version in history["versions"]] == [False]
        assert "this node runs the limits of its own file" in node.ctl("limits", "history").stderr
        assert node.records("limits.push_taken") == []
        node.configure("")
        assert node.ctl("reload").returncode == 0
        assert "per-address" in names(node)
        assert node.ask("limits", "history")["running"] == 1
