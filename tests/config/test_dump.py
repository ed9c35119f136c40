"""The effective configuration as TOML."""

from __future__ import annotations

import datetime
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.config import Config, dump, load

Read = Callable[..., Config]


def _again(config: Config) -> Config:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "elemta.toml"
        path.write_text(dump(config), encoding="utf-8")
        return load(str(path), {})


def _optional(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


TEXT = st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), max_size=20)
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z0-9]", fullmatch=True)
NETWORKS = st.lists(st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str), max_size=3)
DURATIONS = st.floats(1, 86_000) | st.integers(1, 86_000) | st.sampled_from(["5m", "90s", "1h30m", "1500ms"])
SCALARS = (
    TEXT | st.integers(-(2**62), 2**62) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
)
RATES = st.builds("{}/{}s".format, st.integers(1, 10**9), st.integers(1, 10**6))
LIMITS = st.lists(
    st.fixed_dictionaries(
        {
            "name": NAMES.filter(lambda name: name not in ("ip", "node", "spool", "connections-per-ip")),
            "per": st.lists(st.sampled_from(["ip", "user", "sender", "listener"]), unique=True),
            "counts": st.sampled_from(["messages", "recipients", "bytes"]),
            "rates": st.lists(RATES, min_size=1, max_size=3),
        },
        optional={
            "scope": st.sampled_from(["cluster", "node"]),
            "on_exceed": st.sampled_from(["defer", "reject", "disconnect", "delay"]),
            "except": st.lists(TEXT.map("z{}".format), max_size=3),
        },
    ),
    max_size=3,
    unique_by=lambda limit: limit["name"],
)
ROUTES = st.lists(
    st.fixed_dictionaries(
        {
            "domains": st.lists(NAMES | st.just("*") | st.just("bücher.example"), min_size=1, max_size=3),
            "to": st.sampled_from(["hold:", "mx:", "smtp://[::1]:25", "maildir:/m/{domain}/{local}"]),
        },
        optional={"tls": st.sampled_from(["none", "may"]), "max_connections": st.integers(1, 100)},
    ),
    max_size=3,
)
POLICIES = st.dictionaries(
    NAMES,
    st.dictionaries(
        NAMES.filter(lambda name: name not in ("mode", "timeout", "listeners")).map(lambda name: f"x{name}"),
        SCALARS
        | st.lists(SCALARS, max_size=3)
        | st.dictionaries(TEXT, SCALARS | st.lists(SCALARS), max_size=2),
        max_size=3,
    ),
    max_size=2,
)
DOCUMENTS = _optional(
    server=_optional(
        hostname=NAMES,
        node_id=NAMES,
        workers=st.integers(0, 256),
        max_message_size=st.integers(1, 2**40),
        bare_newline=st.sampled_from(["reject", "normalize"]),
        command_timeout=DURATIONS,
    ),
    listener=st.lists(
        st.fixed_dictionaries(
            {"name": NAMES, "endpoint": st.just("tcp:0")}, optional={"proxy_protocol_from": NETWORKS}
        ),
        max_size=3,
        unique_by=lambda listener: listener["name"],
    ),
    domains=_optional(local=st.lists(NAMES, max_size=3), recipients=TEXT, relay_from=NETWORKS),
    auth=_optional(
        checkers=st.lists(TEXT.map("elemta-users:{}".format), max_size=2), require_tls=st.booleans()
    ),
    limit=LIMITS,
    policy=POLICIES,
    route=ROUTES,
    spool=_optional(
        directory=TEXT.filter(bool), retry=st.lists(DURATIONS, min_size=1, max_size=3), warn_after=DURATIONS
    ),
)


@given(DOCUMENTS)
def test_what_is_dumped_loads_as_the_same_configuration(document: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "elemta.toml"
        path.write_text(_toml(document), encoding="utf-8")
        assert tomllib.loads(path.read_text(encoding="utf-8")) == document
        config = load(str(path), {})
    assert _again(config) == config


def _toml(value: Any, *, top: bool = True) -> str:
    """TOML with everything on one line each: another way of writing than the dump's."""
    if isinstance(value, dict):
        pairs = [f"{_toml(name, top=False)} = {_toml(each, top=False)}" for name, each in value.items()]
        return "\n".join(pairs) if top else f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(each, top=False) for each in value)}]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(char):08x}" for char in value) + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)


def test_the_dump_of_the_defaults_says_every_key() -> None:
    document = tomllib.loads(dump(load(None, {"ELEMTA_SERVER_HOSTNAME": "mx1.example.org"})))
    assert document["server"] == {
        "hostname": "mx1.example.org",
        "node_id": "mx1.example.org",
        "workers": 1,
        "max_message_size": "50MiB",
        "max_recipients": 1000,
        "bare_newline": "reject",
        "command_timeout": "5m",
        "data_timeout": "10m",
        "shutdown_grace": "30s",
    }
    assert document["domains"] == {
        "local": ["mx1.example.org"],
        "recipients": "",
        "relay_from": [],
        "recipient_delimiter": "+",
        "aliases": "",
    }
    assert document["listener"][0]["endpoint"] == "tcp:2525:interface=127.0.0.1"
    assert document["spool"]["retry"] == ["1m", "5m", "15m", "1h", "3h", "6h"]
    assert document["resources"]["rate_limit_window"] == 60


def test_no_secret_is_dumped(read: Read) -> None:
    config = read(
        """
        [auth]
        checkers = ["memory:joe:hunter2", "elemta-users:/etc/elemta/users"]
        [resources]
        valkey_url = "valkeys://me:hunter2@db.example:6379/1"
        [policy.reputation]
        api_key = "hunter2"
        url = "https://me:hunter2@reputation.example/"
        tokens = ["hunter2"]
        [policy.reputation.login]
        password = "hunter2"
        user = "me"
        """
    )
    text = dump(config)
    assert "hunter2" not in text
    document = tomllib.loads(text)
    assert document["resources"]["valkey_url"] == "valkeys://me:***@db.example:6379/1"
    assert document["auth"]["checkers"] == ["memory:***", "elemta-users:/etc/elemta/users"]
    assert document["policy"]["reputation"]["login"] == {"password": "***", "user": "me"}
    assert config.resources.valkey_url == "valkeys://me:hunter2@db.example:6379/1"


@pytest.mark.parametrize(
    "table",
    [
        '"a b" = 1',
        "when = 2026-01-02T03:04:05Z\nday = 2026-01-02\nat = 03:04:05",
        "mixed = [1, {a = 2}, [3, {b = 4}]]",
        "[policy.odd.inner]\nx = 1\n[[policy.odd.tables]]\ny = 2",
        r'text = "\u007f\u0001\\x41 \"q\" \n"',
        "big = 1e300\nsmall = 1e-300",
    ],
)
def test_a_policy_table_of_any_shape_is_dumped_as_it_was(read: Read, table: str) -> None:
    config = read(f"[policy.odd]\n{table}")
    assert tomllib.loads(dump(config))["policy"] == config.policy


def test_a_time_in_a_policy_table_stays_a_time(read: Read) -> None:
    config = read("[policy.odd]\nday = 2026-01-02")
    assert tomllib.loads(dump(config))["policy"]["odd"]["day"] == datetime.date(2026, 1, 2)
