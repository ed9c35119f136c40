"""webhooks with a real receiver: every event at least once, over kill -9 and dead receivers."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import smtplib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.hooks import HookReceiver

BODY = "Subject: an event\r\n\r\ntext\r\n"


@pytest.fixture
def receiver() -> Iterator[HookReceiver]:
    made = HookReceiver(b"s3cret")
    yield made
    made.close()


def configured(tmp_path: Path, url: str, more: str = "") -> Daemon:
    (tmp_path / "secret").write_text("s3cret\n")
    return Daemon(
        tmp_path / "node",
        f"""
[policies]
chain = ["limits", "relay", "webhooks"]
[policy.webhooks]
url = "{url}"
secret_file = "{tmp_path}/secret"
timeout = "2s"
[[route]]
domains = ["down.test"]
to = "smtp://127.0.0.1:1"
{more}
""",
        domains='relay_from = ["127.0.0.0/8"]\nrecipients = "recipients"',
    )


@pytest.fixture
def daemon(tmp_path: Path, receiver: HookReceiver) -> Iterator[Daemon]:
    made = configured(tmp_path, receiver.url)
    (made.directory / "recipients").write_text("anna@example.test\nbert@example.test\n")
    yield made
    made.kill()


def send(client: smtplib.SMTP, *recipients: str) -> str:
    """Send a message; returns its queue id."""
    client.ehlo_or_helo_if_needed()
    client.mail("sender@example.org")
    for recipient in recipients:
        client.rcpt(recipient)
    code, text = client.data(BODY)
    assert code == 250, text
    return text.decode().rpartition(" ")[2]


def test_every_type_of_event_arrives_once_and_signed(daemon: Daemon, receiver: HookReceiver):
    daemon.start()
    with daemon.client() as client:
        queue_id = send(client, "anna@example.test", "bert@example.test")
        client.mail("sender@example.org")
        assert client.rcpt("nosuch@example.test")[0] == 550
        client.rset()
        late = send(client, "x@down.test")
    receiver.wait_for(lambda: len(receiver.of_type("delivered")) == 2 and receiver.of_type("deferred"))
    daemon.ctl("queue", "bounce", late, "--yes")
    (bounced,) = receiver.wait_for(lambda: receiver.of_type("bounced"))
    assert (bounced["queue_id"], bounced["recipient"]) == (late, "x@down.test")
    accepted = receiver.of_type("accepted")
    assert [(event["queue_id"], event["recipient"]) for event in accepted] == [
        (queue_id, "anna@example.test"),
        (queue_id, "bert@example.test"),
        (late, "x@down.test"),
    ]
    delivered = receiver.of_type("delivered")[0]
    assert delivered["sender"] == "sender@example.org"
    assert delivered["client_ip"] == "127.0.0.1"
    (refused,) = receiver.of_type("refused")
    assert (refused["code"], refused["status"], refused["recipient"]) == (550, "5.1.1", "nosuch@example.test")
    assert refused["sender"] == "sender@example.org"
    # The notice to sender@example.org has no event.
    assert {event["queue_id"] for event in receiver.events} <= {queue_id, late, ""}
    assert receiver.forged == 0
    assert len({event["id"] for event in receiver.events}) == len(receiver.events)
    daemon.stop()
    assert daemon.records("daemon.stopped")


def test_no_event_is_lost_by_kill_9(daemon: Daemon, receiver: HookReceiver):
    # Some rounds die before the disk has the events of their last acceptances, some while they post.
    accepted: list[str] = []
    for number in range(3):
        receiver.status = [lambda: 200, lambda: 503, lambda: 200][number]
        daemon.start()
        stopped = threading.Event()

        def flood(stopped: threading.Event = stopped) -> None:
            try:
                with daemon.client() as client:
                    while not stopped.is_set():
                        accepted.append(send(client, "anna@example.test"))
            except (smtplib.SMTPException, OSError):
                return

        before = len(accepted)
        threads = [threading.Thread(target=flood) for _ in range(3)]
        for thread in threads:
            thread.start()
        receiver.wait_for(lambda before=before: len(accepted) > before + 30)
        daemon.kill()
        stopped.set()
        for thread in threads:
            thread.join()
    receiver.status = lambda: 200
    daemon.start()
    # What the last run may not have written is made anew from the queue.
    daemon.wait_for("webhook.events_derived")

    def missing(kind: str) -> set[str]:
        return set(accepted) - {event["queue_id"] for event in receiver.of_type(kind)}

    receiver.wait_for(lambda: not missing("accepted") and not missing("delivered"))
    # What came twice has the same id.
    ends = {(event["queue_id"], event["id"]) for event in receiver.of_type("delivered")}
    assert len({queue_id for queue_id, _ in ends}) == len(ends)
    daemon.stop()
    assert daemon.records("daemon.stopped")


def test_a_receiver_that_never_answers_holds_up_nothing(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as dead:
        dead.listen(5)
        daemon = configured(tmp_path, f"http://127.0.0.1:{dead.getsockname()[1]}/")
        (daemon.directory / "recipients").write_text("anna@example.test\n")
        daemon.start()
        try:
            began = time.monotonic()
            with daemon.client() as client:
                for _ in range(50):
                    send(client, "anna@example.test")
            daemon.wait_for_mail("anna", 50)
            took = time.monotonic() - began
            daemon.wait_for("webhook.not_taken")
            # The receiver's deadline is 2 s; fifty in a row would be 100 s.
            assert took < 30
            daemon.stop()
            assert daemon.records("daemon.stopped")
        finally:
            daemon.kill()


def test_the_receiver_of_the_page_takes_signed_events_only(tmp_path: Path):
    page = Path(__file__).parents[2] / "docs" / "policies" / "webhooks.md"
    text = page.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    assert len([line for line in text.splitlines() if line]) <= 15
    (tmp_path / "secret").write_text("s3cret\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = text.replace("/etc/elemta/webhook-secret", str(tmp_path / "secret")).replace("8000", str(port))
    running = subprocess.Popen([sys.executable, "-u", "-c", text], stdout=subprocess.PIPE, text=True)
    try:
        body = b'[{"type":"delivered","queue_id":"q","recipient":"a@example.test","text":"OK"}]'
        digest = hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
        assert posted(port, body, "sha256=0") == 403
        assert posted(port, body, f"sha256={digest}") == 204
        assert running.stdout is not None
        assert running.stdout.readline() == "delivered q a@example.test OK\n"
    finally:
        running.kill()
        running.communicate()


def posted(port: int, body: bytes, signature: str) -> int:
    """The status of a request, as soon as the receiver listens."""
    deadline = time.monotonic() + 60
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("POST", "/", body, {"X-Elemta-Signature": signature})
            return connection.getresponse().status
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        finally:
            connection.close()
