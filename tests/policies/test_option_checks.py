"""Options that name what could never be reached are faults at the start."""

from __future__ import annotations

import pytest

from elemta.policies.clamav import ClamAVPlugin
from elemta.policies.milter import MilterPlugin
from elemta.policies.policy_client import PolicyClientPlugin
from elemta.policies.rspamd import RspamdPlugin
from elemta.policies.webhooks import WebhooksPlugin
from elemta.policy import ConfigError
from elemta.policy.testing import PolicyTester

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
