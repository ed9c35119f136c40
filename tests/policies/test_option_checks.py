"""Options that name what could never be reached are faults at the start."""

from __future__ import annotations

import pytest

from elemta.policies.clamav import ClamAVPlugin
from elemta.policies.greylist import GreylistPlugin
from elemta.policies.milter import MilterPlugin
from elemta.policies.policy_client import PolicyClientPlugin
from elemta.policies.rspamd import RspamdPlugin
from elemta.policies.webhooks import WebhooksPlugin
from elemta.policy import CONTINUE, ConfigError, Defer
from elemta.policy.testing import PolicyTester, http_answer

ASK_AN_ENDPOINT = [ClamAVPlugin, MilterPlugin, PolicyClientPlugin]
ASK_A_URL = [RspamdPlugin, WebhooksPlugin]


@pytest.mark.parametrize("plugin", ASK_AN_ENDPOINT)
@pytest.mark.parametrize(
    "endpoint",
    [
        "bogus",
        "bogus:x",
        "localhost:10040",
        "/run/clamd.ctl",
        "tcp:localhost",
        "tcp:host=h:port=x",
        "tcp:",
        "tcp:host=h:port=0",
        "tcp:host=h:port=65536",
        "tcp:h:-1",
        "tcp:host=:port=10040",
        "tls:h.example:99999",
        "ssl:host=h:port=70000",
        "unix:",
        "unix:path=",
    ],
)
def test_what_is_no_client_endpoint_is_a_fault(plugin, endpoint):
    with pytest.raises(ConfigError, match="endpoint"):
        PolicyTester(plugin(), {"endpoint": endpoint})


@pytest.mark.parametrize("plugin", ASK_AN_ENDPOINT)
@pytest.mark.parametrize(
    "endpoint",
    [
        "unix:/run/x.sock",
        "unix:path=/run/x.sock:timeout=5",
        "tcp:127.0.0.1:10040",
        "tcp:host=\\:\\:1:port=10040",
        "tls:h.example:10040",
        "tcp:host=h:port=65535",
        "tcp:h:1",
    ],
)
def test_an_endpoint_is_taken_and_nothing_is_connected(plugin, endpoint):
    assert PolicyTester(plugin(), {"endpoint": endpoint}).connections.written == []


@pytest.mark.parametrize("plugin", ASK_A_URL)
@pytest.mark.parametrize(
    "url",
    [
        "localhost:11333",
        "ftp://x.example/",
        "http://",
        "http:///x",
        "http://[::1",
        "http://x:port/",
        "http://ü.example/",
        "http://x/a b",
    ],
)
def test_what_is_no_url_is_a_fault(plugin, url):
    with pytest.raises(ConfigError, match="url"):
        PolicyTester(plugin(), {"url": url})


@pytest.mark.parametrize("plugin", ASK_A_URL)
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:11333", "https://u:p@x.example/a?b=c", "http://[::1]:8000/"]
)
def test_a_url_is_taken(plugin, url):
    assert PolicyTester(plugin(), {"url": url}).http.requests == []


def test_a_fault_says_what_was_found_and_no_password():
    with pytest.raises(ConfigError) as raised:
        PolicyTester(RspamdPlugin(), {"url": "ftp://anna:secret@x.example/"})
    (fault,) = raised.value.faults
    assert 'found "ftp://...@x.example/"' in str(fault)
    assert "secret" not in str(fault)


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://x.example", "http://x.example/checkv2"),
        ("http://x.example:1/", "http://x.example:1/checkv2"),
        ("https://u:p@x.example/a/?b=c#d", "https://u:p@x.example/a/checkv2?b=c"),
    ],
)
def test_rspamd_is_asked_at_the_place_below_its_url(url, asked):
    tester = PolicyTester(
        RspamdPlugin(), {"url": url}, http={asked: http_answer(200, b'{"action": "no action"}')}
    )
    assert tester.message(b"Subject: s\r\n\r\n") == CONTINUE


@pytest.mark.parametrize("key", ["delay", "within", "remember"])
def test_greylist_takes_no_time_that_the_store_does_not_keep(key):
    others = {"within": "366d"} if key == "delay" else {}
    with pytest.raises(ConfigError, match=rf"policy\.greylist\.{key}: found .*366d"):
        PolicyTester(GreylistPlugin(), {**others, key: "367d"})
    tester = PolicyTester(
        GreylistPlugin(), {"pass_with": [], **others, key: "366d" if key != "delay" else "365d"}
    )
    assert isinstance(tester.rcpt("b@example.com"), Defer)
