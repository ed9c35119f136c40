"""The faults that a configuration which can't be used is reported with."""

# ruff: noqa: E501 - the faults stand here as they are read

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from elemta.config import load, load_limits
from elemta.config.faults import Faults
from elemta.errors import ConfigError

Complaints = Callable[..., list[str]]

ROUTE = '[[route]]\ndomains = ["*"]\nto = "smtp://relay.example:25"\n'
LISTENER = '[[listener]]\nname = "mx"\nendpoint = "tcp:25"\n'
LIMIT = '[[limit]]\nname = "a"\nper = ["ip"]\ncounts = "messages"\n'

SERVER_KEYS = (
    "hostname, node_id, workers, max_message_size, max_recipients, bare_newline, command_timeout, data_timeout, "
    "shutdown_grace"
)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param(
            "[server]\nmax_recipient = 5",
            f'server.max_recipient: unknown key (did you mean "max_recipients"? known here: {SERVER_KEYS})',
            id="unknown key with a near one",
        ),
        pytest.param(
            "[server]\nfrobnicate = 5",
            f"server.frobnicate: unknown key (known here: {SERVER_KEYS})",
            id="unknown key with none near",
        ),
        pytest.param(
            "[server]\nmax_connections_per_ip = 5",
            f"server.max_connections_per_ip: unknown key (it belongs in [resources]; known here: {SERVER_KEYS})",
            id="key of another table",
        ),
        pytest.param(
            'hostname = "a.example"',
            "hostname: unknown key outside of every table (it belongs in [server])",
            id="key outside of every table",
        ),
        pytest.param(
            "frob = 1", "frob: unknown key outside of every table", id="unknown key outside of tables"
        ),
        pytest.param(
            'local = ["a.example"]',
            "local: unknown key outside of every table (it belongs in [domains])",
            id="list outside of every table",
        ),
        pytest.param(
            "[resource]\nx = 1",
            "resource: unknown table (did you mean [resources]? known are [server], [[listener]], [tls], "
            "[[certificate]], [domains], [submission], [auth], [resources], [[limit]], [limits], [policies], [[route]], "
            "[spool], [metrics], [console], [[policy_service]], [logging], [policy.NAME])",
            id="unknown table",
        ),
        pytest.param(
            '[listener]\nname = "mx"',
            "listener: found a table: must be tables [[listener]] (write [[listener]])",
            id="single brackets",
        ),
        pytest.param(
            "[[server]]\nworkers = 1",
            "server: found a list: must be a table [server] (write [server], once)",
            id="double brackets",
        ),
        pytest.param("spool = 5", "spool: found 5: must be a table [spool]", id="a number for a table"),
        pytest.param(
            "listener = [5]",
            "listener[1]: found 5: must be a table [[listener]]",
            id="a number in a list of tables",
        ),
        pytest.param(
            "policy = 1", "policy: found 1: must be tables [policy.NAME]", id="a number for policies"
        ),
        pytest.param(
            "[policy]\nrelay = true",
            "policy.relay: found true: must be a table [policy.NAME]",
            id="no policy table",
        ),
        pytest.param(
            '[server]\nworkers = "two"',
            'server.workers: found "two": must be a whole number from 0 to 256',
            id="text for a number",
        ),
        pytest.param(
            "[server]\nworkers = 2.0",
            "server.workers: found 2.0: must be a whole number from 0 to 256",
            id="fraction for a whole number",
        ),
        pytest.param(
            "[server]\nworkers = true",
            "server.workers: found true: must be a whole number from 0 to 256",
            id="boolean for a number",
        ),
        pytest.param(
            "[server]\nworkers = 257",
            "server.workers: found 257: must be a whole number from 0 to 256",
            id="number past the bound",
        ),
        pytest.param(
            "[server]\nhostname = 5", "server.hostname: found 5: must be a string", id="number for a string"
        ),
        pytest.param(
            '[spool]\ndirectory = "a\\u0000b"',
            'spool.directory: found "a\\u0000b": must be a string without control characters',
            id="control character",
        ),
        pytest.param(
            '[spool]\ndirectory = ""', 'spool.directory: found "": must not be empty', id="empty directory"
        ),
        pytest.param(
            "[spool]\nretry = []", "spool.retry: found an empty list: must not be empty", id="empty schedule"
        ),
        pytest.param(
            '[spool]\nretry = ["1m", "soon"]',
            'spool.retry[2]: found "soon": must be a duration such as "5m" or a number of seconds from 100ms to 31d',
            id="element of a list",
        ),
        pytest.param(
            '[spool]\nretry = "5m"',
            'spool.retry: found "5m": must be a list, each a duration such as "5m" or a number of seconds '
            'from 100ms to 31d (did you mean ["5m"]?)',
            id="scalar for a list",
        ),
        pytest.param(
            '[spool]\nexpire = "5 days"',
            'spool.expire: found "5 days": must be a duration such as "5m" or a number of seconds from 1s to 366d '
            '(did you mean "5d"?)',
            id="duration in another spelling",
        ),
        pytest.param(
            '[server]\nmax_message_size = "50M"',
            'server.max_message_size: found "50M": must be a size such as "50MiB" or a number of bytes from 1B to 1TiB '
            '(did you mean "50MiB"?)',
            id="size in another spelling",
        ),
        pytest.param(
            '[auth]\nrequire_tls = "yes"',
            'auth.require_tls: found "yes": must be true or false',
            id="no boolean",
        ),
        pytest.param(
            '[server]\nbare_newline = "normalise"',
            'server.bare_newline: found "normalise": must be "reject" or "normalize" (did you mean "normalize"?)',
            id="near to a choice",
        ),
        pytest.param(
            '[tls]\nminimum = "TLSv1"',
            'tls.minimum: found "TLSv1": must be "TLSv1.2" or "TLSv1.3" (did you mean "TLSv1.3"?)',
            id="an old TLS",
        ),
        pytest.param(
            '[logging]\nlevel = "warning"',
            'logging.level: found "warning": must be "debug", "info", "warn", "error" or "critical" '
            '(did you mean "warn"?)',
            id="log level",
        ),
        pytest.param(
            '[domains]\nrelay_from = ["10.1.2.3/8"]',
            'domains.relay_from[1]: found "10.1.2.3/8": must be a network such as "192.0.2.0/24" or an address '
            '(did you mean "10.0.0.0/8"?)',
            id="host bits in a network",
        ),
        pytest.param(
            '[domains]\nlocal = ["*.example.com"]',
            'domains.local[1]: found "*.example.com": must be a domain such as "example.com"; '
            "there are no wildcards within a name",
            id="wildcard",
        ),
        pytest.param(
            '[domains]\nlocal = ["postmaster@example.com"]',
            'domains.local[1]: found "postmaster@example.com": must be a domain, not an address '
            '(did you mean "example.com"?)',
            id="address for a domain",
        ),
        pytest.param(
            '[server]\nhostname = "mx_1.example.org"',
            'server.hostname: found "mx_1.example.org": must be a host name such as "mx1.example.org" '
            "(letters, digits, hyphens and dots)",
            id="underscore in a host name",
        ),
        pytest.param(
            '[server]\nhostname = "bücher.example"',
            'server.hostname: found "bücher.example": must be a host name such as "mx1.example.org" '
            '(letters, digits, hyphens and dots) (did you mean "xn--bcher-kva.example"?)',
            id="host name in Unicode",
        ),
        pytest.param(
            '[server]\nnode_id = "node one"',
            'server.node_id: found "node one": must be a short name such as "mx1" (letters, digits and "_.:-")',
            id="space in a node id",
        ),
        pytest.param(
            '[resources]\nvalkey_key_prefix = "a{b}"',
            'resources.valkey_key_prefix: found "a{b}": must be up to 128 printable ASCII characters without spaces '
            'and braces, such as "elemta:"',
            id="braces in the prefix",
        ),
        pytest.param(
            '[[listener]]\nendpoint = "tcp:25"', "listener[1].name: is needed: a string", id="needed string"
        ),
        pytest.param(
            '[[limit]]\nname = "a"\ncounts = "messages"\nrates = ["1/1m"]',
            'limit[1].per: is needed: a list, each "ip", "network", "user", "helo", "sender", "sender_domain", '
            '"recipient", "recipient_domain", "listener" or "destination"',
            id="needed list",
        ),
        pytest.param(
            '[policy.relay]\ntimeout = "never"',
            'policy.relay.timeout: found "never": must be a duration such as "5m" or a number of seconds '
            "from 1ms to 1h",
            id="one of the four keys of every policy",
        ),
        pytest.param(
            '[policies]\nchain = ["limits", "re lay"]',
            'policies.chain[2]: found "re lay": must be a name of 1 to 64 letters, digits and "_.-", '
            'such as "mail-per-sender"',
            id="name of a policy",
        ),
    ],
)
def test_a_fault_names_the_file_the_key_what_was_found_and_what_is_allowed(
    complaints: Complaints, text: str, complaint: str
) -> None:
    assert complaints(text) == [f"elemta.toml: {complaint}"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param(
            f'{LISTENER}[[listener]]\nname = "mx"\nendpoint = "tcp:26"',
            'listener[2].name: found "mx": listener[1] has it already',
            id="listener twice",
        ),
        pytest.param(
            f'{LISTENER}[[listener]]\nname = "b"\nendpoint = "tcp:25"',
            'listener[2].endpoint: found "tcp:25": listener[1] has it already',
            id="endpoint twice",
        ),
        pytest.param(
            '[metrics]\nendpoint = "tcp:8025:interface=127.0.0.1"',
            'console.endpoint: found "tcp:8025:interface=127.0.0.1": metrics.endpoint has it already',
            id="endpoint of two services",
        ),
        pytest.param(
            f'{LISTENER}[metrics]\nendpoint = "tcp:25"',
            'metrics.endpoint: found "tcp:25": listener[1].endpoint has it already',
            id="endpoint of a listener and the metrics",
        ),
        pytest.param(
            f'[[limit]]\nname = "a"\nper = ["ip"]\ncounts = "messages"\nrates = {["1/1m"] * 17}',
            "limit[1].rates: found 17 rates: must be at most 16",
            id="more rates than anybody needs",
        ),
        pytest.param(
            '[[limit]]\nname = "a"\nper = ["destination"]\ncounts = "recipients"\nrates = ["1/1m"]',
            'limit[1].counts: found "recipients": per destination only messages and open_connections are counted',
            id="what can't be counted on the way out",
        ),
        pytest.param(
            '[[limit]]\nname = "a"\nper = ["destination", "helo"]\ncounts = "messages"\nrates = ["1/1m"]',
            'limit[1].per[2]: found "helo": is unknown for outbound mail, which "destination" limits '
            "(with destination: sender, sender_domain, user, recipient_domain)",
            id="an identity that is not known on the way out",
        ),
        pytest.param(
            '[[limit]]\nname = "a"\nper = ["sender", "destination"]\ncounts = "open_connections"\nrates = ["5"]',
            'limit[1].per[1]: found "sender": a connection to a destination carries mail of many senders '
            '(use per = ["destination"] alone)',
            id="a connection to a destination per sender",
        ),
        pytest.param(
            f'{LISTENER}tls = "implicit"',
            'listener[1].tls: found "implicit": needs a certificate (set tls.certificate)',
            id="implicit TLS without a certificate",
        ),
        pytest.param(
            '[tls]\nprivate_key = "/k.pem"',
            "tls.certificate: is needed: tls.private_key is set (set both, or neither)",
            id="private key without a certificate",
        ),
        pytest.param(
            f'{LISTENER}role = "submission"',
            'listener[1].role: found "submission": requires AUTH, and no user could log in '
            '(set auth.checkers, such as ["elemta-users:/etc/elemta/users"])',
            id="submission without checkers",
        ),
        pytest.param(
            f'{LIMIT}rates = ["1/1m"]\n{LIMIT}rates = ["1/1m"]',
            'limit[2].name: found "a": limit[1] has it already',
            id="limit twice",
        ),
        pytest.param(
            '[[limit]]\nname = "ip"\nper = ["ip"]\ncounts = "messages"\nrates = ["1/1m"]',
            'limit[1].name: found "ip": the connection rate of [resources] has this name',
            id="reserved name",
        ),
        pytest.param(
            '[[listener]]\nname = "bounce"\nendpoint = "tcp:25"',
            'listener[1].name: found "bounce": our own notices have this name',
            id="reserved name of a listener",
        ),
        pytest.param(
            f'{LIMIT}rates = ["1/1m", "20"]',
            'limit[1].rates[2]: found "20": must have a window for messages (did you mean "20/1m"?)',
            id="rate without a window",
        ),
        pytest.param(
            '[[limit]]\nname = "a"\nper = ["ip"]\ncounts = "open_connections"\nrates = ["20/1m"]',
            'limit[1].rates[1]: found "20/1m": must be a plain number for open_connections (did you mean "20"?)',
            id="open connections with a window",
        ),
        pytest.param(
            f'{LIMIT}rates = ["1MiB/1m"]',
            'limit[1].rates[1]: found a size: must be a number, for messages (sizes are for counts = "bytes")',
            id="size of messages",
        ),
        pytest.param(
            '[[limit]]\nname = "a"\nper = ["sender"]\ncounts = "connections"\nrates = ["1/1m"]',
            'limit[1].per[1]: found "sender": connections are counted before there is a message',
            id="identity that is not known yet",
        ),
        pytest.param(
            '[[limit]]\nname = "a"\nper = ["recipient_domain"]\ncounts = "refusals"\nrates = ["1/1m"]',
            'limit[1].per[1]: found "recipient_domain": refusals are counted per client or sender',
            id="refusals per recipient",
        ),
        pytest.param(
            '[auth]\nguesses_per_user = "10"',
            'auth.guesses_per_user: found "10": must be a rate with a window, such as "10/15m" (did you mean "10/15m"?)',
            id="guesses without a window",
        ),
        pytest.param(
            '[[limit]]\nname = "a"\nper = ["ip", "ip"]\ncounts = "messages"\nrates = ["1/1m"]',
            'limit[1].per[2]: found "ip": is in the list twice',
            id="identity twice",
        ),
        *(
            pytest.param(
                f'{LIMIT}rates = ["1/1m"]\nexcept = ["::1", "{entry}"]', fault, id=f"exception {entry}"
            )
            for entry, fault in (
                ("10.0.0.0/40", 'limit[1].except[2]: found "10.0.0.0/40": is no network and no address'),
                ("300.0.0.1", 'limit[1].except[2]: found "300.0.0.1": is no network and no address'),
                ("fd00::/129", 'limit[1].except[2]: found "fd00::/129": is no network and no address'),
                (" ", 'limit[1].except[2]: found " ": must not be empty'),
                (
                    "@example.org",
                    'limit[1].except[2]: found "@example.org": must be a whole address, or a domain (domains are exempt from limits per sender_domain or recipient_domain)',
                ),
            )
        ),
        pytest.param(
            '[policies]\nchain = ["relay", "limits", "relay"]',
            'policies.chain[3]: found "relay": is in the list twice',
            id="policy twice",
        ),
        pytest.param(
            f'{LISTENER}[policy.relay]\nlisteners = ["mx", "mq"]',
            'policy.relay.listeners[2]: found "mq": there is no such listener; there are "mx" (did you mean "mx"?)',
            id="unknown listener",
        ),
        pytest.param(
            '[[route]]\ndomains = ["*"]\nto = "smtp://relay.example:25"\ntls = "none"\ncredentials = "/c"',
            'route[1].credentials: found "/c": tls = "none" would send the password in the clear '
            '(set tls = "require")',
            id="a password in the clear",
        ),
        pytest.param(
            '[[route]]\ndomains = ["*"]\nto = "mx:"\ncredentials = "/c"',
            'route[1].credentials: found "/c": mx: has no login '
            "(credentials are for smtp:// and lmtp:// next hops)",
            id="credentials for nobody",
        ),
        pytest.param(
            f'{ROUTE}source = ["192.0.2.7", "2001:db8::7", "192.0.2.8"]',
            'route[1].source[3]: found "192.0.2.8": 192.0.2.7 is of IPv4 already (one address of each family)',
            id="two sources of one family",
        ),
        pytest.param(
            f'{ROUTE}source = ["2001:db8::7", "::1", "2001:db8::7"]',
            'route[1].source[2]: found "::1": 2001:db8::7 is of IPv6 already (one address of each family)\n'
            'route[1].source[3]: found "2001:db8::7": 2001:db8::7 is of IPv6 already (one address of each family)',
            id="three sources of one family",
        ),
        pytest.param(
            f'{ROUTE}ignore_offers = ["size", "starttls"]\ntls = "require"',
            'route[1].ignore_offers: found "starttls": tls = "require" needs it',
            id="TLS that is not believed",
        ),
        pytest.param(
            f'{ROUTE}ignore_offers = ["AUTH"]\ntls = "require"\ncredentials = "/c"',
            'route[1].ignore_offers: found "AUTH": credentials need it',
            id="a login that is not believed",
        ),
        pytest.param(
            '[[route]]\ndomains = ["*"]\nto = "mx:"\ntls = "implicit"',
            'route[1].tls: found "implicit": mail exchangers begin in the clear (RFC 5321 §4.5.4.2) '
            '(did you mean "require"?)',
            id="implicit TLS with exchangers",
        ),
        pytest.param(
            '[[listener]]\nname = "a"\nendpoint = "tcp:25:interface=127.0.0.1"\n'
            '[console]\nendpoint = "tcp:port=25"\n[metrics]\nendpoint = "tcp:25:interface=127.0.0.2"',
            'console.endpoint: found "tcp:port=25": listener[1].endpoint is at this port, and one of both at all '
            "addresses",
            id="an address and all addresses",
        ),
        pytest.param(
            '[[listener]]\nname = "a"\nendpoint = "tcp:25"\n[[listener]]\nname = "b"\nendpoint = "tcp:port=25"',
            'listener[2].endpoint: found "tcp:port=25": listener[1].endpoint has it already',
            id="one endpoint in two spellings",
        ),
        pytest.param(
            '[[route]]\ndomains = ["*"]\nto = "smtp://[2001:db8::1]:25"\naddress_family = "ipv4"',
            'route[1].address_family: found "ipv4": 2001:db8::1 is not of this family',
            id="an address of another family",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_a_fault(
    complaints: Complaints, text: str, complaint: str
) -> None:
    assert complaints(text) == [f"elemta.toml: {line}" for line in complaint.splitlines()]


def test_all_faults_come_at_once_and_none_is_the_echo_of_another(complaints: Complaints) -> None:
    text = """
    nonsense = true
    [server]
    workers = -1
    [[listener]]
    name = "mx"
    endpoint = "tcp:99999"
    tls = "implicit"
    [tls]
    certificate = 5
    private_key = "/k.pem"
    [[limit]]
    name = "a"
    rates = ["x"]
    [policies]
    chain = ["a", "a"]
    """
    found = complaints(text, {"ELEMTA_SPOOL_EXPIRE": "soon", "ELEMTA_SPOOL_EXPIRES": "5d"})
    assert [complaint.partition(": ")[2].partition(": ")[0] for complaint in found] == [
        '[spool] has no key expires (did you mean "ELEMTA_SPOOL_EXPIRE"?)',
        "nonsense",
        "server.workers",
        "listener[1].endpoint",
        "tls.certificate",
        "limit[1].per",
        "limit[1].counts",
        "limit[1].rates[1]",
        "spool.expire",
    ]


def test_faults_between_settings_are_told_beside_those_of_other_tables(complaints: Complaints) -> None:
    found = complaints('[server]\nworkers = -1\n[policies]\nchain = ["a", "a"]')
    assert [complaint.split(": ")[1] for complaint in found] == ["server.workers", "policies.chain[2]"]


def test_one_port_at_addresses_of_both_families_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "elemta.toml"
    path.write_text(
        '[[listener]]\nname = "a"\nendpoint = "tcp:25"\n[[listener]]\nname = "b"\nendpoint = "tcp6:25"\n'
        '[[listener]]\nname = "c"\nendpoint = "tcp:25:interface=\\\\:\\\\:1"\n'
    )
    assert len(load(str(path), {}).listeners) == 3


def test_two_listeners_at_any_free_port_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "elemta.toml"
    path.write_text(
        '[[listener]]\nname = "a"\nendpoint = "tcp:0"\n[[listener]]\nname = "b"\nendpoint = "tcp:0"\n'
        '[metrics]\nendpoint = "tcp:0"\n[console]\nendpoint = "tcp:0"\n'
    )
    assert len(load(str(path), {}).listeners) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[server]\nworkers = = 2", "elemta.toml: is not TOML, line 2, column 11: Invalid value"),
        ('[server]\nhostname = "a', "elemta.toml: is not TOML, end of document: Unterminated string"),
        (
            "[server]\nworkers = 1\n[spool]\nhistory = 1\n  history = 2 # again",
            "elemta.toml: is not TOML, line 5: history is there already (a key may be in its table once)",
        ),
        (
            "[server]\nworkers = 1\nworkers = [\n 1]\nhostname = 'a'",
            "elemta.toml: is not TOML, line 4: a key is there already (a key may be in its table once)",
        ),
        (
            "a=1 b=2",
            "elemta.toml: is not TOML, line 1, column 5: Expected newline or end of document after a statement",
        ),
    ],
)
def test_a_fault_of_syntax_names_line_and_column(complaints: Complaints, text: str, complaint: str) -> None:
    assert complaints(text) == [complaint]


def _complaints_about(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(str(path), {})
    return [str(fault) for fault in caught.value.faults]


def test_a_file_that_is_not_there_is_told_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert _complaints_about(path) == [f"{path}: can't be read: No such file or directory"]


def test_a_directory_is_told_without_a_traceback(tmp_path: Path) -> None:
    assert _complaints_about(tmp_path) == [f"{tmp_path}: can't be read: Is a directory"]


def test_a_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "elemta.toml"
    path.write_bytes(b"[server]\n# caf\xe9\n")
    assert _complaints_about(path) == [f"{path}: is not UTF-8: byte 0xe9 in line 2"]


def test_a_file_nested_without_end_is_told_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "elemta.toml"
    path.write_text("a = " + "[" * 100_000)
    (complaint,) = _complaints_about(path)
    assert complaint.startswith(f"{path}: is not TOML")


def test_a_path_that_none_can_have_is_told_without_a_traceback() -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        load("a\0b", {})


def test_a_long_value_is_told_in_short(complaints: Complaints) -> None:
    (complaint,) = complaints(f'[logging]\nlevel = "{"x" * 10_000}"')
    assert len(complaint) < 250


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ('[resources]\nvalkey_url = "valky://me:hunter2@db.example"', "hunter2"),
        ('[resources]\nvalkey_url = "valkey://:hun/ter2@db.example"', "ter2"),
        ('[resources]\nvalkey_url = "me:hunter2@db.example"', "hunter2"),
        ('[auth]\ncheckers = "memory:joe:hunter2"', "hunter2"),
        ('[[route]]\ndomains = ["*"]\nto = "smtp://me:hunter2@relay.example:25"', "hunter2"),
    ],
)
def test_no_password_is_told(complaints: Complaints, text: str, secret: str) -> None:
    (complaint,) = complaints(text)
    assert "found" in complaint
    assert secret not in complaint


def test_what_was_read_is_returned_unless_there_is_a_fault() -> None:
    """Also with ``python -O``, which leaves assertions out."""
    faults = Faults("elemta.toml")
    assert faults.unless_any("read") == "read"
    with pytest.raises(RuntimeError, match=r"elemta\.toml"):
        faults.unless_any(None)
    faults.add("server.workers", "must be a number")
    for read in (None, "read"):
        with pytest.raises(ConfigError):
            faults.unless_any(read)


def test_a_fault_in_a_setting_of_a_pushed_set_hides_none_in_another() -> None:
    tables = (
        LIMIT,
        LIMIT.replace('"a"', '"b"') + 'rates = ["1/1m"]\n',
        LIMIT.replace('"a"', '"b"') + 'rates = ["1/1m"]\nexcept = ["@x.example"]\n',
        LIMIT.replace('"ip"', '"ip", "ip"') + 'rates = ["1/1m"]\nscope = "world"\n',
        LIMIT.replace('"messages"', '"message"') + 'rates = ["1"]\nexcept = ["10.0.0.0/40"]\n',
        LIMIT.replace('"ip"', '"sender", "bogus"') + 'rates = ["1", "0/1m"]\nexcept = [" "]\n',
    )
    with pytest.raises(ConfigError) as refused:
        load_limits("".join(tables), "a set", load(None, {}))
    assert [fault.key for fault in refused.value.faults] == [
        "limit[1].rates",
        "limit[4].scope",
        "limit[5].counts",
        "limit[6].per[2]",
        "limit[6].rates[2]",
        "limit[3].name",
        "limit[4].name",
        "limit[5].name",
        "limit[6].name",
        "limit[3].except[1]",
        "limit[4].per[2]",
        "limit[5].except[1]",
        "limit[6].except[1]",
    ]
