"""Settings from environment variables."""

# ruff: noqa: E501 - the faults stand here as they are read

from __future__ import annotations

from collections.abc import Callable

import pytest

from elemta.config import Config, load

Read = Callable[..., Config]
Complaints = Callable[..., list[str]]


def test_a_variable_overrides_the_file(read: Read) -> None:
    config = read("[server]\nworkers = 2\nmax_recipients = 7", {"ELEMTA_SERVER_WORKERS": "4"})
    assert (config.server.workers, config.server.max_recipients) == (4, 7)


def test_a_variable_serves_where_the_file_has_no_such_table() -> None:
    assert load(None, {"ELEMTA_SPOOL_DIRECTORY": "/tmp/spool"}).spool.directory == "/tmp/spool"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("ELEMTA_SPOOL_EXPIRE", "3d", 259_200.0),
        ("ELEMTA_SPOOL_EXPIRE", "90", 90.0),
        ("ELEMTA_SERVER_MAX_MESSAGE_SIZE", "1MiB", 1024**2),
        ("ELEMTA_SERVER_MAX_MESSAGE_SIZE", "1000", 1000),
        ("ELEMTA_AUTH_REQUIRE_TLS", "false", False),
        ("ELEMTA_AUTH_REQUIRE_TLS", "ON", True),
        ("ELEMTA_AUTH_REQUIRE_TLS", "0", False),
        ("ELEMTA_LOGGING_FORMAT", "text", "text"),
        ("ELEMTA_CONSOLE_ENDPOINT", "", ""),
        ("ELEMTA_RESOURCES_RATE_LIMIT_WINDOW", "30", 30),
        ("ELEMTA_RESOURCES_VALKEY_DEADLINE", "20ms", 0.02),
    ],
)
def test_a_variable_is_read_as_its_key_is(name: str, text: str, value: object) -> None:
    config = load(None, {name: text})
    table, _, key = name.removeprefix("ELEMTA_").lower().partition("_")
    assert getattr(getattr(config, table), key) == value


@pytest.mark.parametrize(
    ("name", "table", "key", "value"),
    [
        ("VALKEY_URL", "resources", "valkey_url", "valkey://db.example:6379/0"),
        ("VALKEY_KEY_PREFIX", "resources", "valkey_key_prefix", "fleet:"),
        ("NODE_ID", "server", "node_id", "node-7"),
    ],
)
def test_a_name_of_old_overrides_the_file_and_yields_to_the_long_name(
    read: Read, name: str, table: str, key: str, value: str
) -> None:
    text = f'[{table}]\n{key} = "{value}x"'
    assert getattr(getattr(read(text, {name: value}), table), key) == value
    long_name = f"ELEMTA_{table}_{key}".upper()
    both = read(text, {name: f"{value}y", long_name: value})
    assert getattr(getattr(both, table), key) == value


def test_an_empty_name_of_old_counts_as_not_set(read: Read) -> None:
    config = read('[resources]\nvalkey_url = "valkey://db.example"', {"VALKEY_URL": "", "NODE_ID": ""})
    assert config.resources.valkey_url == "valkey://db.example"
    assert config.server.node_id == config.server.hostname


def test_a_fault_in_a_variable_names_the_variable_and_the_key(complaints: Complaints) -> None:
    environ = {"ELEMTA_SERVER_WORKERS": "two", "NODE_ID": "a b", "ELEMTA_AUTH_REQUIRE_TLS": "perhaps"}
    assert complaints("", environ) == [
        'NODE_ID: server.node_id: found "a b": must be a short name such as "mx1" (letters, digits and "_.:-")',
        'ELEMTA_SERVER_WORKERS: server.workers: found "two": must be a whole number from 0 to 256',
        'ELEMTA_AUTH_REQUIRE_TLS: auth.require_tls: found "perhaps": must be true or false',
    ]


def test_a_fault_between_settings_names_the_variable(complaints: Complaints) -> None:
    text = '[[listener]]\nname = "mx"\nendpoint = "tcp:25"'
    assert complaints(text, {"ELEMTA_METRICS_ENDPOINT": "tcp:25"}) == [
        'ELEMTA_METRICS_ENDPOINT: metrics.endpoint: found "tcp:25": listener[1].endpoint has it already'
    ]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (
            "ELEMTA_SERVER_HOST_NAME",
            '[server] has no key host_name (did you mean "ELEMTA_SERVER_HOSTNAME"?)',
        ),
        (
            "ELEMTA_LOGGING_X",
            "[logging] has no key x (known are ELEMTA_LOGGING_FORMAT, ELEMTA_LOGGING_LEVEL)",
        ),
        (
            "ELEMTA_DOMAINS_LOCAL",
            "domains.local is a list, which can't be set from the environment (set it in the file)",
        ),
        (
            "ELEMTA_POLICIES_CHAIN",
            "policies.chain is a list, which can't be set from the environment (set it in the file)",
        ),
        ("ELEMTA_LISTENER_TLS", "keys of [[listener]] can't be set from the environment"),
        ("ELEMTA_POLICY_RELAY_MODE", "keys of [policy.NAME] can't be set from the environment"),
        ("ELEMTA_SEVER_HOSTNAME", 'is no setting (did you mean "ELEMTA_SERVER_HOSTNAME"?)'),
    ],
)
def test_a_variable_that_looks_like_a_setting_and_is_none_is_a_fault(
    complaints: Complaints, name: str, complaint: str
) -> None:
    assert complaints("", {name: "1"}) == [f"{name}: {complaint}"]


@pytest.mark.parametrize(
    "name",
    [
        "ELEMTA_VERSION",
        "ELEMTA_CONFIG",
        "ELEMTA_",
        "ELEMTA",
        "ELEMTA_SERVICE_HOST",
        "ELEMTA_SERVICE_PORT",
        "ELEMTA_SERVICE_PORT_SMTP",
        "ELEMTA_PORT",
        "ELEMTA_PORT_25_TCP",
        "ELEMTA_PORT_25_TCP_ADDR",
        "ELEMTA_METRICS_SERVICE_HOST",
        "ELEMTA_METRICS_PORT",
        "ELEMTA_METRICS_PORT_8080_TCP_PROTO",
        "SERVER_HOSTNAME",
        "elemta_server_hostname",
    ],
)
def test_a_variable_of_others_is_left_alone(name: str) -> None:
    assert load(None, {name: "tcp://10.0.0.1:25"}) == load(None, {})
