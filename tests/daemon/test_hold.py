"""Routes that say ``hold:``, on a real daemon."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.daemon import Daemon

ROUTE = '[[route]]\ndomains = ["kept.test"]\nto = "hold:"\n'
DOMAINS = 'relay_from = ["127.0.0.0/8"]\n'


@pytest.fixture
def node(make_daemon: Callable[..., Daemon]) -> Daemon:
    return make_daemon(ROUTE, domains=DOMAINS).start()


def send(node: Daemon, *recipients: str) -> dict[str, Any]:
    with node.client() as client:
        client.sendmail("a@client.test", recipients, "Subject: x\r\n\r\nx\r\n")
    return node.wait_for("message.accepted")


def shown(node: Daemon, queue_id: str) -> dict[str, Any]:
    return dict(json.loads(node.ctl("--json", "queue", "show", queue_id).stdout)["messages"][0])


def test_a_message_that_all_routes_hold_is_on_hold_when_it_is_accepted_without_an_attempt(
    node: Daemon,
) -> None:
    record = send(node, "one@kept.test", "two@kept.test")
    assert record["held"] == "the route says hold:"
    message = shown(node, record["queue_id"])
    assert (message["state"], message["attempts"]) == ("hold", 0)
    assert message["hold_reason"] == "the route says hold:"
    assert node.records("delivery.held") == []


def test_a_message_that_one_route_delivers_is_not_held_before_that(node: Daemon) -> None:
    record = send(node, "kept@kept.test", "delivered@example.test")
    assert record["held"] is None
    node.wait_for_mail("delivered")
    assert node.wait_for("delivery.held")["queue_id"] == record["queue_id"]
    assert [line["address"] for line in shown(node, record["queue_id"])["recipients"] if line["pending"]] == [
        "kept@kept.test"
    ]


def test_a_released_message_is_held_again_and_that_is_no_warning(node: Daemon) -> None:
    record = send(node, "kept@kept.test")
    node.ctl("queue", "release", record["queue_id"])
    held = node.wait_for("delivery.held")
    assert (held["level"], held["reason"]) == ("info", "the route says hold:")
    assert shown(node, record["queue_id"])["state"] == "hold"
