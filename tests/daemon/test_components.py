"""What a configuration comes to, before anything is opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock

from elemta.config import load
from elemta.daemon.components import (
    Components,
    SharedResources,
    build_components,
    needs_restart,
    with_faults_of_parts,
)
from elemta.daemon.daemon_mode import may_need_tls
from elemta.errors import ConfigError, PolicyUnavailable
from elemta.metric_registry import MetricRegistry
from elemta.runtime import Runtime
from tests.ctl.test_main import run

LIMIT = """
[server]
hostname = "mx.example.test"
[[limit]]
name = "slow"
per = ["ip"]
counts = "messages"
rates = ["1/1m"]
on_exceed = "ACTION"
"""


def assembled(tmp_path: Path, text: str) -> Components:
    path = tmp_path / "elemta.toml"
    path.write_text(text)
    config = load(str(path), {})
    return build_components(config, SharedResources.from_config(config, Runtime.of(MemoryReactorClock())))


@pytest.mark.parametrize("table", ['timeout = "4s"', 'max_delay = "5s"', 'timeout = "1s"'])
def test_a_limit_that_would_delay_beyond_its_policys_timeout_is_a_fault(tmp_path: Path, table: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.limits\.max_delay: is \d s: must be less than"):
        assembled(tmp_path, LIMIT.replace("ACTION", "delay") + f"[policy.limits]\n{table}\n")


def test_a_deadline_of_valkey_beyond_the_policys_timeout_is_a_fault(tmp_path: Path) -> None:
    resources = '[resources]\nvalkey_url = "valkey://127.0.0.1:1"\n'
    with pytest.raises(ConfigError, match=r"resources\.valkey_deadline: is 6 s: must be less than .* 5 s"):
        assembled(tmp_path, LIMIT.replace("ACTION", "defer") + f'{resources}valkey_deadline = "6s"\n')
    with pytest.raises(ConfigError, match=r"max_delay: is 4 s: must be less than .* by one valkey_deadline"):
        assembled(tmp_path, LIMIT.replace("ACTION", "delay") + f'{resources}valkey_deadline = "1s"\n')


def with_workers(text: str) -> str:
    return text.replace("[server]\n", "[server]\nworkers = 2\n")


@pytest.mark.parametrize(
    ("action", "table", "fault"),
    [
        (
            "defer",
            'timeout = "900ms"',
            r"limits\.timeout: is 0\.9 s: must be more than the 0\.9 s that a worker",
        ),
        ("delay", 'max_delay = "4100ms"', r"max_delay: is 4\.1 s: must be less than .* by the 0\.9 s"),
    ],
)
def test_what_a_worker_waits_for_its_supervisor_must_fit_into_the_policys_timeout(
    tmp_path: Path, action: str, table: str, fault: str
) -> None:
    text = LIMIT.replace("ACTION", action) + f"[policy.limits]\n{table}\n"
    with pytest.raises(ConfigError, match=fault):
        assembled(tmp_path, with_workers(text))
    # With a Valkey nothing waits so long.
    assembled(tmp_path, with_workers(text) + '[resources]\nvalkey_url = "valkey://127.0.0.1:1"\n')


@pytest.mark.parametrize("action", ["defer", "delay"])
def test_the_defaults_leave_a_worker_its_wait(tmp_path: Path, action: str) -> None:
    assembled(tmp_path, with_workers(LIMIT.replace("ACTION", action)))


@pytest.mark.parametrize(("action", "table"), [("defer", 'timeout = "1s"'), ("delay", 'timeout = "4100ms"')])
def test_a_policy_with_time_enough_for_its_limits_is_built(tmp_path: Path, action: str, table: str) -> None:
    text = LIMIT.replace("ACTION", action) + f"[policy.limits]\n{table}\n"
    assert [loaded.name for loaded in assembled(tmp_path, text).chain.policies] == ["limits", "relay"]


@pytest.mark.parametrize("url", ["valkey://127.0.0.1:1", "valkey+cluster://127.0.0.1:1", "unix:///nowhere"])
def test_a_node_with_a_valkey_is_built_without_connecting_anywhere(tmp_path: Path, url: str) -> None:
    path = tmp_path / "elemta.toml"
    path.write_text(f'[server]\nhostname = "mx.example.test"\n[resources]\nvalkey_url = "{url}"\n')
    config = load(str(path), {})
    reactor = MemoryReactorClock()
    shared = SharedResources.from_config(config, Runtime.of(reactor))
    build_components(config, shared)
    assert reactor.getDelayedCalls() == []
    assert (reactor.tcpClients, reactor.unixClients) == ([], [])
    assert shared.fleet.status().mode == "local"
    # It was never started, so there is nothing to leave.
    assert Deferred.fromCoroutine(shared.fleet.stop()).called


def test_what_a_restart_is_needed_for_is_named_by_its_keys(tmp_path: Path) -> None:
    before = assembled(tmp_path, '[server]\nhostname = "mx.example.test"\n')
    after = assembled(
        tmp_path,
        '[server]\nhostname = "mx.example.test"\n'
        '[resources]\nvalkey_url = "valkey://127.0.0.1:1"\nvalkey_key_prefix = "x:"\n',
    )
    assert needs_restart(before, after) == ("resources.valkey_url", "resources.valkey_key_prefix")
    assert needs_restart(after, after) == ()


def test_the_parts_that_outlive_a_reload_count_in_the_registry_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    begin = MetricRegistry.__init__

    def begin_noted(self: MetricRegistry, node_id: str = "") -> None:
        made.append(node_id)
        begin(self, node_id)

    monkeypatch.setattr(MetricRegistry, "__init__", begin_noted)
    valkey = 'node_id = "a"\n[resources]\nvalkey_url = "valkey://127.0.0.1:1"\n'
    assembled(tmp_path, LIMIT.replace("ACTION", "defer").replace("[[limit]]", f"{valkey}[[limit]]"))
    assert made == ["a"]


def test_faults_of_all_files_and_policies_are_told_together(tmp_path: Path) -> None:
    text = f'''
[server]
hostname = "mx.example.test"
[tls]
certificate = "{tmp_path}/mx.pem"
[domains]
recipients = "{tmp_path}/recipients"
aliases = "{tmp_path}/aliases"
[submission]
sender_map = "{tmp_path}/senders"
[auth]
checkers = ["bogus:x"]
[policies]
chain = ["limits", "unheard-of", "greylist", "relay"]
[policy.greylist]
delay = "long"
'''
    places = [
        "domains.recipients",
        "domains.aliases",
        "policies.chain[2]",
        "policy.greylist.delay",
        "auth.checkers[1]",
        "submission.sender_map",
        "tls.certificate",
    ]
    with pytest.raises(PolicyUnavailable) as caught:
        assembled(tmp_path, text)
    assert [fault.key for fault in caught.value.faults] == places
    for name in ("recipients", "aliases", "senders"):
        (tmp_path / name).write_text("")
    with pytest.raises(PolicyUnavailable) as missing:
        assembled(tmp_path, text)
    assert [fault.key for fault in missing.value.faults] == [*places[2:5], places[6]]


def test_faults_of_the_file_hide_none_of_its_parts(tmp_path: Path) -> None:
    text = f'''
[server]
hostname = "mx.example.test"
workers = "two"
[domains]
recipients = "{tmp_path}/recipients"
[[limit]]
name = "a"
per = ["ip"]
counts = "messages"
[[limit]]
name = "ip"
per = ["ip", "ip"]
counts = "messages"
rates = ["1/1m"]
[policy.limits]
max_delay = "long"
'''
    with pytest.raises(ConfigError) as caught:
        assembled(tmp_path, text)
    runtime = Runtime.of(MemoryReactorClock())
    error = with_faults_of_parts(caught.value, lambda config: SharedResources.from_config(config, runtime))
    assert [fault.key for fault in error.faults] == [
        "server.workers",
        "limit[1].rates",
        "limit[2].name",
        "limit[2].per[2]",
        "domains.recipients",
        "policy.limits.max_delay",
    ]


@pytest.mark.parametrize("use", ["3", '["limits"]'])
def test_a_plugin_that_has_no_name_is_a_fault_wherever_it_is_asked_for(tmp_path: Path, use: str) -> None:
    text = f'[policies]\nchain = ["x", "limits", "relay"]\n[policy.x]\nuse = {use}\n'
    path = tmp_path / "elemta.toml"
    path.write_text('[server]\nhostname = "mx.example.test"\n' + text)
    assert may_need_tls(load(str(path), {}))
    with pytest.raises(ConfigError, match=r"policy\.x\.use: must be the name of a plugin"):
        assembled(tmp_path, path.read_text())


def test_a_route_that_cannot_be_read_hides_no_file_of_others(tmp_path: Path) -> None:
    path = tmp_path / "elemta.toml"
    path.write_text(f'''
[server]
hostname = "mx.example.test"
[tls]
certificate = "{tmp_path}/mx.pem"
[[route]]
domains = ["a.example"]
[[route]]
domains = ["b.example"]
to = "smtp://b.example"
tls = "require"
credentials = "{tmp_path}/credentials"
ca = "{tmp_path}/ca.pem"
[[route]]
domains = ["c.example"]
to = "mx:"
tls = "require"
ca = "{tmp_path}/ca.pem"
''')
    keys = ["route[1].to", "tls.certificate", "route[2].credentials", "route[2].ca", "route[3].ca"]
    runtime = Runtime.of(MemoryReactorClock())
    with pytest.raises(ConfigError) as caught:
        load(str(path), {})
    error = with_faults_of_parts(caught.value, lambda config: SharedResources.from_config(config, runtime))
    assert [fault.key for fault in error.faults] == keys
    # elemtactl is below the daemon and builds the parts by itself.
    code, said, _ = run("--json", "config", "check", "--config", str(path))
    assert (code, [fault["key"] for fault in json.loads(said)["faults"]]) == (78, keys)
    path.write_text(
        path.read_text().replace('domains = ["a.example"]', 'domains = ["a.example"]\nto = "hold:"')
    )
    code, said, _ = run("--json", "config", "check", "--config", str(path))
    assert (code, [fault["key"] for fault in json.loads(said)["faults"]]) == (78, keys[1:])
