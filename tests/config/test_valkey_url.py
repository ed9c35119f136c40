"""``valkey_url``: every form is taken apart, and what can't work is refused before anything connects."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.config.redaction import redacted_url, shown
from elemta.config.valkey_url import ValkeyKind, ValkeyURL, parse_valkey_url
from elemta.config.values import Unacceptable

SINGLE = ValkeyURL(ValkeyKind.SINGLE, (("db.example", 6379),))
SENTINEL = ValkeyURL(ValkeyKind.SENTINEL, (("s1.example", 26379),), service="mymaster")
CLUSTER = ValkeyURL(ValkeyKind.CLUSTER, (("n1.example", 6379),))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("valkey://db.example", SINGLE),
        ("redis://db.example/", SINGLE),
        ("valkey://db.example:6380/3", replace(SINGLE, hosts=(("db.example", 6380),), database=3)),
        ("rediss://[2001:db8::1]", replace(SINGLE, hosts=(("2001:db8::1", 6379),), tls=True)),
        ("valkey://:p%40ss%2F@db.example", replace(SINGLE, password="p@ss/")),
        ("valkey://me:p@db.example", replace(SINGLE, username="me", password="p")),
        (
            "valkeys://db.example?ca=/etc/ssl/valkey.pem&tls_server_name=valkey.internal",
            replace(SINGLE, tls=True, ca="/etc/ssl/valkey.pem", tls_server_name="valkey.internal"),
        ),
        (
            "valkeys://db.example/0?certificate=/c.pem&private_key=/k.pem",
            replace(SINGLE, tls=True, certificate="/c.pem", private_key="/k.pem"),
        ),
        ("unix:///run/v.sock", ValkeyURL(ValkeyKind.SINGLE, path="/run/v.sock")),
        (
            "unix://me:p@/run/v.sock?db=2",
            ValkeyURL(ValkeyKind.SINGLE, path="/run/v.sock", username="me", password="p", database=2),
        ),
        ("valkey+sentinel://s1.example", SENTINEL),
        (
            "valkey+sentinel://s1.example,[::1]:26380/limits/1",
            replace(SENTINEL, hosts=(("s1.example", 26379), ("::1", 26380)), service="limits", database=1),
        ),
        (
            "rediss+sentinel://me:p@s1.example/mymaster?sentinel_password=q&sentinel_username=w",
            replace(
                SENTINEL,
                tls=True,
                username="me",
                password="p",
                sentinel_username="w",
                sentinel_password="q",
            ),
        ),
        ("valkey+cluster://n1.example", CLUSTER),
        (
            "valkeys+cluster://:p@n1.example:7000/0",
            replace(CLUSTER, hosts=(("n1.example", 7000),), password="p", tls=True),
        ),
    ],
)
def test_a_url_is_taken_apart(text: str, url: ValkeyURL) -> None:
    assert parse_valkey_url(text) == url


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        (
            "valkey://me@db.example",
            "must have a password behind the user",
            "as in user:password@, or :password@",
        ),
        ("valkey://:a/b@db.example", 'must have "/", "?" and "#" in a password as %2F, %3F and %23', ""),
        ("valkey://:a#b@db.example", 'must have "/", "?" and "#" in a password as %2F, %3F and %23', ""),
        (
            "valkeys://db.example?cq=/etc/ca.pem",
            'has an unknown parameter "cq"',
            'did you mean "ca"?',
        ),
        (
            "valkey://db.example?ca=/etc/ca.pem",
            'has an unknown parameter "ca"',
            "that one is for TLS: valkeys://",
        ),
        ("valkeys://db.example?ca=ca.pem", "must have an absolute path as ca", ""),
        ("valkeys://db.example?ca=", "must have a value for ca", ""),
        ("valkeys://db.example?ca=/a&ca=/b", "must have each parameter once", ""),
        ("valkeys://db.example?ca", "must have its parameters as ?name=value&name=value", ""),
        (
            "valkeys://db.example?certificate=/c.pem",
            "must have certificate and private_key together",
            "",
        ),
        (
            "valkeys://db.example?tls_server_name=a%20b",
            "must have a host name as tls_server_name",
            "",
        ),
        (
            "valkey+sentinel://s1.example/0",
            "must name the primary as the Sentinels do, as in /mymaster or /mymaster/0",
            "",
        ),
        (
            "valkey+sentinel://s1.example/mymaster?sentinel_username=w",
            "must have sentinel_password with sentinel_username",
            "",
        ),
        ("unix:///run/v.sock?db=x", "must have the number of a database as db", ""),
        ("valkey://db.example/0#x", 'must have "#" as %23', ""),
    ],
)
def test_a_url_that_can_not_work_is_refused(text: str, problem: str, hint: str) -> None:
    with pytest.raises(Unacceptable) as caught:
        parse_valkey_url(text)
    assert (caught.value.problem, caught.value.hint) == (problem, hint)


@given(password=st.text(min_size=1, max_size=20))
def test_any_password_survives_its_percent_encoding(password: str) -> None:
    from urllib.parse import quote

    try:
        encoded = quote(password, safe="")
    except UnicodeEncodeError:  # a lone surrogate is in no password
        return
    assert parse_valkey_url(f"valkey://:{encoded}@db.example").password == password


def test_no_password_of_a_url_is_shown() -> None:
    text = "valkey+sentinel://me:hunter2@s1.example/mymaster?sentinel_password=hunter3"
    assert "hunter" not in redacted_url(text)
    assert "hunter" not in shown("resources.valkey_url", text)
    assert "hunter" not in shown("resources.valkey_url", text.replace("me:hunter2@", ""))
    assert "hunter" not in repr(parse_valkey_url(text))
