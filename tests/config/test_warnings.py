"""The warnings at the start about settings that are allowed."""

# ruff: noqa: E501 - the notes stand here as they are read

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from elemta.config import Config, file_access, load

Read = Callable[..., Config]

LIMIT = '[[limit]]\nname = "a"\nper = ["sender"]\ncounts = "messages"\nrates = ["1/1m"]\n'
VALKEY = '[resources]\nvalkey_url = "valkey://db.example"\n'
BY_MX = '[[route]]\ndomains = ["*"]\nto = "mx:"\n'
EARLY = """
[tls]
certificate = "/dev/null"
[[listener]]
name = "a"
endpoint = "tcp:0"
tls = "implicit"
early_talkers = "reject"
"""
HOLD = '[[route]]\ndomains = ["*"]\nto = "hold:"\n'
LISTENER = '[[listener]]\nname = "in"\nendpoint = "tcp:587"\n'


@pytest.fixture(autouse=True)
def _a_host_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a name, and without the files that a host of a service has at the default places."""
    monkeypatch.setattr(socket, "getfqdn", lambda: "mx7.example.net")
    monkeypatch.setattr(file_access, "_other_reader", lambda _path, _groups: "")


def test_the_defaults_say_nothing() -> None:
    config = load(None, {})
    assert config.without_effect() == ()
    assert config.cautions() == ()


@pytest.mark.parametrize(
    ("per", "entry"),
    [
        ("sender", "anna@example.com"),
        ("sender", "<>"),
        ("sender_domain", "example.com"),
        ("sender_domain", "<>@example.com"),
        ("user", "anna"),
        ("user", "anna@example.com"),
        ("ip", "192.0.2.0/24"),
        ("user", "2001:db8::1"),
        ("helo", "mail.example.com"),
    ],
)
def test_an_exception_of_something_that_is_counted_has_an_effect(per: str, entry: str) -> None:
    text = LIMIT.replace('"sender"', f'"{per}"') + f"except = [{entry!r}]"
    assert load("/etc/elemta.toml", {}, text).without_effect() == ()


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (
            '[resources]\nvalkey_key_prefix = "x:"',
            "resources.valkey_key_prefix: has no effect: without valkey_url each node counts for itself",
        ),
        (
            '[resources]\nvalkey_deadline = "10ms"',
            "resources.valkey_deadline: has no effect: without valkey_url each node counts for itself",
        ),
        (
            f'{LIMIT}scope = "cluster"',
            "limit[1].scope: has no effect: without valkey_url each node counts for itself",
        ),
        (
            f'{LIMIT}when_valkey_is_down = "allow"',
            "limit[1].when_valkey_is_down: has no effect: without valkey_url each node counts for itself",
        ),
        (
            f'{VALKEY}{LIMIT}scope = "node"\nwhen_valkey_is_down = "allow"',
            "limit[1].when_valkey_is_down: has no effect: each node counts this limit for itself anyway",
        ),
        (
            '[submission]\nsenders = "any"\nsender_map = "/s"',
            'submission.sender_map: has no effect: with senders = "any" users may name any sender',
        ),
        (
            LIMIT.replace('"sender"', '"destination"') + 'on_exceed = "reject"',
            "limit[1].on_exceed: has no effect: outbound mail waits",
        ),
        *(
            (
                LIMIT.replace('["sender"]', per) + f"except = [{entry!r}]",
                f'limit[1].except[1]: has no effect: "{entry}" is no identity of a limit per {words}',
            )
            for per, entry, words in (
                ('["sender"]', "example.com", "sender"),
                ('["recipient_domain"]', "anna@example.com", "recipient_domain"),
                ('["ip", "recipient"]', "<>", "ip, recipient"),
                ("[]", "anna", "nothing"),
            )
        ),
        (
            "[policy.rely]\ntimeout = 1",
            'policy.rely: has no effect: [policies] chain does not name this policy (did you mean "relay"?)',
        ),
        (
            '[policies]\nmay_relay = ["relay", "rely"]',
            'policies.may_relay[2]: has no effect: [policies] chain does not name "rely" (did you mean "relay"?)',
        ),
        (
            f'{HOLD}tls = "may"',
            "route[1].tls: has no effect: there is no TLS on the way to hold:",
        ),
        (f"{HOLD}create_mailboxes = true", "route[1].create_mailboxes: has no effect: it is for maildir:"),
        (
            f'{HOLD}address_family = "ipv4"',
            "route[1].address_family: has no effect: hold: is no address",
        ),
        (f'{HOLD}source = ["192.0.2.7"]', "route[1].source: has no effect: hold: is no address"),
        (f'{HOLD}ca = "/ca.pem"', "route[1].ca: has no effect: hold: is no address"),
        (f'{HOLD}ignore_offers = ["SIZE"]', "route[1].ignore_offers: has no effect: hold: is no server"),
        (
            f'{BY_MX}ca = "/ca.pem"',
            'route[1].ca: has no effect: tls = "may" verifies no certificate',
        ),
        (
            f'{BY_MX}ignore_offers = ["chunkin", "size"]',
            'route[1].ignore_offers[1]: has no effect: Elemta does not use "chunkin" (did you mean "CHUNKING"?)',
        ),
        (
            '[spool]\nexpire = "1m"\nwarn_after = "1m"',
            "spool.warn_after: has no effect: mail is given up after 60 s, before its delay is reported",
        ),
        (f"{HOLD}refuse_networks = []", "route[1].refuse_networks: has no effect: it is for mx:"),
        (
            EARLY,
            "listener[1].early_talkers: has no effect: the TLS handshake comes before the greeting",
        ),
        (
            '[tls]\nminimum = "TLSv1.3"\nciphers = "HIGH"',
            "tls.ciphers: has no effect: these are ciphers of TLS 1.2, which is off",
        ),
        (
            f'{HOLD}[[route]]\ndomains = ["a.example"]\nto = "hold:"',
            'route[2].domains: has no effect for "a.example": route[1] before it matches',
        ),
        (
            '[[route]]\ndomains = ["a.example", "A.example"]\nto = "hold:"',
            'route[1].domains: has no effect for "A.example": route[1] before it matches',
        ),
    ],
)
def test_a_setting_without_effect_is_told_with_the_reason(read: Read, text: str, note: str) -> None:
    config = read(text)
    assert [str(fault).removeprefix(f"{config.source}: ") for fault in config.without_effect()] == [note]


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nworkers = 1",
        "[server]\nworkers = 4",
        '[resources]\nvalkey_url = ""',
        f'{VALKEY}valkey_key_prefix = "x:"\nvalkey_deadline = "10ms"',
        f'{VALKEY}{LIMIT}scope = "cluster"\nwhen_valkey_is_down = "allow"',
        f'{LIMIT}scope = "node"',
        "[policy.relay]\ntimeout = 1",
        '[policies]\nmay_relay = ["srs", "relay"]',
        '[policies]\nchain = ["limits"]\nmay_relay = ["limits"]',
        f'{HOLD}tls = "none"',
        f'[domains]\nrelay_from = ["192.0.2.0/24"]\n{HOLD}',
        '[console]\nendpoint = ""',
        '[console]\nendpoint = "tcp:1"\nusers = "/etc/users"',
        '[[route]]\ndomains = ["a.example"]\nto = "mx:"',
        '[domains]\nrelay_from = ["192.0.2.0/24"]',
        '[spool]\nwarn_after = "1h"',
        LIMIT.replace('"sender"', '"destination"'),
    ],
)
def test_a_setting_that_has_its_effect_is_not_told(read: Read, text: str) -> None:
    assert read(text).without_effect() == ()


def test_a_setting_of_the_environment_is_told_with_its_variable() -> None:
    config = load(None, {"VALKEY_KEY_PREFIX": "x:"})
    (note,) = config.without_effect()
    assert str(note).startswith(
        "VALKEY_KEY_PREFIX: resources.valkey_key_prefix: has no effect: without valkey_url"
    )


@pytest.mark.parametrize(
    ("text", "caution"),
    [
        (
            f'[domains]\nrelay_from = ["0.0.0.0/0"]\n{HOLD}',
            "domains.relay_from[1]: 0.0.0.0/0 is every client: this is an open relay (name your own networks)",
        ),
        (
            f'{LISTENER}proxy_protocol_from = ["::/0"]',
            "listener[1].proxy_protocol_from: every client may claim any address (name the load balancers)",
        ),
        (
            '[policies]\nchain = ["limits"]\n[domains]\nrecipients = "/etc/elemta/recipients"',
            'policies.chain: does not name "relay": unless another policy refuses mailboxes that do not exist, mail for them is accepted',
        ),
        (
            '[policies]\nchain = ["relay"]',
            'policies.chain: does not name "limits": the limits of [resources] per client and those of failed logins have no effect, and of [[limit]] only those that count refusals have one',
        ),
        (
            f'[auth]\ncheckers = ["elemta-users:/u"]\n{LISTENER}role = "submission"',
            "listener[1].tls: no user can log in here: AUTH needs TLS, and there is none (give it TLS and [tls] a certificate, or set auth.require_tls = false)",
        ),
        (
            '[[route]]\ndomains = ["*"]\nto = "smtp://relay.example:587"\ncredentials = "/c"',
            'route[1].credentials: with tls = "may" any server that answers in the place of the host gets the password (set tls = "require")',
        ),
        (
            '[[route]]\ndomains = ["*"]\nto = "smtp://relay.example:465"\ntls = "require"',
            'route[1].to: servers expect TLS from the first byte on port 465, and tls is "require" (set tls = "implicit")',
        ),
        (
            '[[route]]\ndomains = ["*"]\nto = "smtp://relay.example:465"',
            'route[1].to: servers expect TLS from the first byte on port 465, and tls is "may" (set tls = "implicit")',
        ),
        (
            '[[route]]\ndomains = ["*"]\nto = "smtp://relay.example:587"\ntls = "implicit"',
            'route[1].tls: servers begin in the clear on port 587 (did you mean "require", or port 465?)',
        ),
        (
            '[resources]\nvalkey_url = "valkeys://cache.example?ca=/nowhere/ca.pem"',
            "resources.valkey_url: ca: /nowhere/ca.pem can't be read, and without it there is no connection to Valkey",
        ),
    ],
)
def test_a_dangerous_setting_is_told_with_the_danger(read: Read, text: str, caution: str) -> None:
    config = read(text)
    assert [str(fault).removeprefix(f"{config.source}: ") for fault in config.cautions()] == [caution]


def test_a_host_that_only_calls_itself_localhost_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "localhost.localdomain")
    (caution,) = load(None, {}).cautions()
    assert str(caution) == (
        'defaults: server.hostname: this host is named "localhost.localdomain", a name that no other host can use '
        "(set hostname)"
    )
