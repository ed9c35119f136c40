"""What an operator sees of mail that waits, and does about its destinations, on a real daemon."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from elemta.ctl.client import AdminClient
from tests.interop.sink import Sink
from tests.support.daemon import Daemon

pytestmark = pytest.mark.timeout(300)

CONTENT = "Subject: hello\r\n\r\nhello\r\n"


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port at which nothing answers, and that nothing else gets."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as sink:
        yield sink


def routes(dead_port: int, sink: Sink) -> str:
    return f"""
[[route]]
domains = ["down.test"]
to = "smtp://127.0.0.1:{dead_port}"
[[route]]
domains = ["far.test"]
to = "smtp://127.0.0.1:{sink.port}"
[[limit]]
name = "slowly"
per = ["destination"]
counts = "messages"
rates = ["1/1h"]
"""


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def send(node: Daemon, *recipients: str, sender: str = "a@client.test") -> str:
    with node.client() as client:
        client.sendmail(sender, recipients, CONTENT)
    return str(node.records("message.accepted")[-1]["queue_id"])


def asked(node: Daemon, *path: str, **query: str) -> dict[str, Any]:
    client = AdminClient(str(node.spool / "admin.sock"))
    try:
        return client.get(*path, **query)
    finally:
        client.close()


def listed(node: Daemon, **filters: str) -> dict[str, dict[str, Any]]:
    return {each["queue_id"]: each for each in asked(node, "queue", **filters)["messages"]}


def destination(node: Daemon, name: str) -> dict[str, Any]:
    found = asked(node, "destinations")["destinations"]
    return dict(next((each for each in found if each["name"] == name), {}))


def test_mail_for_what_is_down_paused_or_paced_waits_and_says_so(
    make_daemon: Callable[..., Daemon], dead_port: int, sink: Sink
) -> None:
    node = make_daemon(routes(dead_port, sink), domains='relay_from = ["127.0.0.0/8"]').start()
    down, far = f"smtp://127.0.0.1:{dead_port}", f"smtp://127.0.0.1:{sink.port}"

    # Down: the first is tried, the second never is.
    first = send(node, "one@down.test")
    node.wait_for("delivery.destination_blocked", destination=down)
    second = send(node, "two@down.test")
    waits = listed(node)
    assert {waits[each]["state"] for each in (first, second)} == {"deferred"}
    assert waits[second]["attempts"] == 0
    assert waits[second]["reason"].startswith("its destination is down: ")
    assert waits[second]["next_attempt_at"] > waits[second]["received_at"]
    assert (waits[second]["recipient"], waits[second]["destination"]) == ("two@down.test", down)
    assert list(listed(node, state="active")) == []
    assert list(listed(node, state="deferred", reason="DOWN: ")) == [second]
    assert set(listed(node, reason="refused", destination=str(dead_port))) == {first, second}
    blocked = destination(node, down)
    assert (blocked["state"], blocked["waiting"], blocked["route"]) == ("blocked", 2, down)
    assert blocked["last_error"]
    assert blocked["next_attempt_at"] > blocked["oldest_at"]
    stats = asked(node, "queue", "stats")
    assert (stats["states"]["active"]["messages"], stats["states"]["deferred"]["messages"]) == (0, 2)

    # A probe is one attempt, and leaves the back-off alone.
    node.ctl("destinations", "probe", down)
    until(lambda: len(node.records("delivery.destination_blocked")) == 2)
    assert destination(node, down)["next_attempt_at"] == pytest.approx(blocked["next_attempt_at"], abs=0.01)

    # Paced: one leaves, the others wait for the limit.
    send(node, "one@far.test")
    until(lambda: len(sink.taken) == 1)
    paced = send(node, "two@far.test")
    until(lambda: destination(node, far)["state"] == "waiting")
    entry = listed(node)[paced]
    assert (entry["state"], entry["reason"]) == ("deferred", "it waits for the limit slowly")
    assert entry["next_attempt_at"] > entry["received_at"] + 1000
    assert destination(node, far)["paced_by"] == "slowly"

    # Paused, also after a restart, until it is resumed. The name has slashes.
    client = AdminClient(str(node.spool / "admin.sock"))
    answer = client.post("destinations", down, "pause")
    assert (answer["state"], answer["next_attempt_at"]) == ("paused", None)
    client.close()
    node.stop()
    node.start()
    until(lambda: destination(node, down).get("state") == "paused")
    entry = listed(node)[second]
    assert (entry["state"], entry["next_attempt_at"], entry["reason"]) == (
        "deferred",
        None,
        "its destination is paused",
    )
    assert node.ctl("destinations", "probe", down, check=False).returncode == 1
    assert "2 messages wait" in node.ctl("destinations", "resume", down).stdout
    node.wait_for("delivery.destination_blocked", destination=down)
    for argv in (("resume", down), ("pause", "smtp://127.0.0.1:1"), ("probe", "no such")):
        assert node.ctl("destinations", *argv, check=False).returncode == 1
