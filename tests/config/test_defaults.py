"""What holds without a file, and what a file may leave out."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest

from elemta.config import (
    BareNewline,
    Config,
    Counts,
    Identity,
    ListenerConfig,
    ListenerTLS,
    LogFormat,
    Mode,
    OnExceed,
    Rate,
    Role,
    RouteTLS,
    Scope,
    WhenValkeyIsDown,
    load,
)

Read = Callable[..., Config]


@pytest.fixture(autouse=True)
def _a_host_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "mx7.example.net")


def test_without_a_file_every_setting_has_the_default_that_is_promised() -> None:
    config = load(None, {})
    assert config.source == "defaults"
    server = config.server
    assert (server.hostname, server.node_id, server.workers) == ("mx7.example.net", "mx7.example.net", 1)
    assert (server.max_message_size, server.max_recipients) == (50 * 1024**2, 1000)
    assert server.bare_newline is BareNewline.REJECT
    assert (server.command_timeout, server.data_timeout, server.shutdown_grace) == (300.0, 600.0, 30.0)
    assert config.listeners == (
        ListenerConfig("mx", "tcp:2525:interface=127.0.0.1", Role.MX, ListenerTLS.STARTTLS, ()),
    )
    assert (config.tls.certificate, config.tls.private_key, config.tls.minimum) == ("", "", "TLSv1.2")
    assert config.domains.local == ("mx7.example.net",)
    assert (config.domains.recipients, config.domains.relay_from) == ("", ())
    assert (config.auth.checkers, config.auth.require_tls) == ((), True)
    resources = config.resources
    assert (resources.max_connections, resources.max_connections_per_ip) == (1000, 50)
    assert (resources.valkey_url, resources.valkey_key_prefix) == ("", "elemta:ratelimit:")
    assert (resources.rate_limit_window, resources.max_requests_per_window) == (60, 100)
    assert resources.valkey_deadline == 0.05
    assert (config.limits, config.routes, config.policy) == ((), (), {})
    assert config.policies.chain == ("limits", "relay")
    assert config.spool.directory == "/var/spool/elemta"
    assert config.spool.retry == (60.0, 300.0, 900.0, 3600.0, 10800.0, 21600.0)
    assert (config.spool.expire, config.spool.warn_after) == (432_000.0, 14_400.0)
    assert config.spool.minimum_free == 256 * 1024**2
    assert config.metrics.endpoint == "tcp:8080:interface=127.0.0.1"
    assert config.console.endpoint == "tcp:8025:interface=127.0.0.1"
    assert config.console.users == "/etc/elemta/console-users"
    assert (config.logging.format, config.logging.level) == (LogFormat.JSON, "info")


def test_an_empty_file_is_all_defaults(read: Read) -> None:
    assert read("") == load(None, {})


def test_node_id_and_local_domains_follow_the_hostname(read: Read) -> None:
    config = read('[server]\nhostname = "mx1.example.org"')
    assert config.server.node_id == "mx1.example.org"
    assert config.domains.local == ("mx1.example.org",)


def test_no_local_domain_at_all_can_be_said(read: Read) -> None:
    assert read("[domains]\nlocal = []").domains.local == ()


def test_a_host_whose_name_is_none_is_called_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "my_host!")
    assert load(None, {}).server.hostname == "localhost"


def test_the_name_of_the_host_is_not_asked_for_when_the_file_says_it(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: pytest.fail("a needless lookup"))
    assert read('[server]\nhostname = "mx1.example.org"').server.hostname == "mx1.example.org"


def test_every_kind_of_value_is_read_from_a_file(read: Read) -> None:
    config = read(
        """
        [server]
        max_message_size = "1MiB"
        command_timeout = 30
        [[listener]]
        name = "in"
        endpoint = "tcp:25"
        proxy_protocol_from = ["192.0.2.0/24", "2001:db8::1"]
        [[limit]]
        name = "users"
        per = ["user", "listener"]
        counts = "recipients"
        rates = ["10/1m"]
        mode = "observe"
        except = ["boss@example.com", "192.0.2.0/24"]
        [[limit]]
        name = "all"
        per = []
        counts = "open_connections"
        rates = ["500"]
        scope = "node"
        on_exceed = "disconnect"
        when_valkey_is_down = "allow"
        [policy.greylist]
        delay = "5m"
        [[route]]
        domains = ["example.com", "*"]
        to = "maildir:/var/mail/{domain}/{local}"
        max_connections = 5
        tls = "none"
        """
    )
    assert config.server.max_message_size == 1024**2
    assert config.server.command_timeout == 30.0
    assert config.listeners[0].proxy_protocol_from == (ip_network("192.0.2.0/24"), ip_network("2001:db8::1"))
    users, everything = config.limits
    assert (users.name, users.per, users.counts) == (
        "users",
        (Identity.USER, Identity.LISTENER),
        Counts.RECIPIENTS,
    )
    assert (users.rates, users.mode) == ((Rate(10, 60.0),), Mode.OBSERVE)
    assert users.except_ == ("boss@example.com", "192.0.2.0/24")
    assert (users.scope, users.on_exceed) == (Scope.CLUSTER, OnExceed.DEFER)
    assert users.when_valkey_is_down is WhenValkeyIsDown.LOCAL
    assert (everything.per, everything.rates, everything.scope) == ((), (Rate(500),), Scope.NODE)
    assert everything.on_exceed is OnExceed.DISCONNECT
    assert everything.when_valkey_is_down is WhenValkeyIsDown.ALLOW
    assert config.policy == {"greylist": {"delay": "5m"}}
    assert (config.routes[0].domains, config.routes[0].max_connections) == (("example.com", "*"), 5)
    assert config.routes[0].tls is RouteTLS.NONE


def test_a_configuration_knows_which_keys_were_given(read: Read) -> None:
    config = read('[server]\nworkers = 1\n[[listener]]\nname = "a"\nendpoint = "tcp:25"', {"NODE_ID": "n1"})
    assert config.explicit == {"server.workers", "server.node_id", "listener[1].name", "listener[1].endpoint"}


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "elemta.toml"
    path.write_bytes(b"\xef\xbb\xbf[server]\nworkers = 2\n")
    assert load(str(path), {}).server.workers == 2
