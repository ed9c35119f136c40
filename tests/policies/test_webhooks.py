"""The policy webhooks, with doubles: its events, its outbox, its receiver."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace

import pytest
from twisted.internet.defer import Deferred

from elemta.policies.webhooks import EVENTS, MARGIN, WebhooksPlugin
from elemta.policy import (
    Address,
    BackendError,
    Client,
    ConfigError,
    Envelope,
    Outcome,
    Recipient,
    Reply,
    Stage,
    Status,
)
from elemta.policy.testing import ListedQueue, MemoryOutbox, PolicyTester, http_answer

URL = "https://hooks.example.org/in?token=t0ken"
ANNA = Address("anna", "example.com")


def policy(answer=None, options=None, **how) -> PolicyTester:
    given = http_answer(204) if answer is None else answer
    return PolicyTester(WebhooksPlugin(), {"url": URL, **(options or {})}, http={URL: given}, **how)


def outcome(status=Status.DELIVERED, reason="delivered", **fields) -> Outcome:
    values = {"code": 250, "enhanced": "2.0.0", "text": "ok", **fields}
    return Outcome(
        "2CmXq07DRb3", ANNA, status, values.pop("text"), "mx:", "b.example", 5.5, reason=reason, **values
    )


def envelope(queue_id="2CmXq07DRb3", received_at=1000.0, listener="mx") -> Envelope:
    client = Client("192.0.2.9", "h", listener, "s-1")
    return Envelope(
        queue_id, Address("a", "example.org"), (Recipient(ANNA),), received_at, 100, client=client
    )


def posted(asked: PolicyTester) -> list[dict[str, object]]:
    asked.clock.advance(0)
    return [event for request in asked.http.requests for event in json.loads(request.body)]


def kept(asked: PolicyTester) -> list[dict[str, object]]:
    return [json.loads(record.octets) for record in asked.outbox.records]


def test_an_acceptance_is_one_event_for_each_recipient():
    asked = policy(node_id="mx1")
    asked.start()
    asked.mail("a@example.org")
    asked.rcpt("anna@example.com")
    asked.rcpt("bert@example.com")
    asked.transaction_facts.queue_id = "2CmXq07DRb3"
    asked.committed()
    first, second = posted(asked)
    assert first == {
        "id": first["id"],
        "type": "accepted",
        "time": "1970-01-01T00:00:00.000Z",
        "node_id": "mx1",
        "queue_id": "2CmXq07DRb3",
        "sender": "a@example.org",
        "recipient": "anna@example.com",
        "status": "2.0.0",
        "code": 250,
        "text": "queued as 2CmXq07DRb3",
        "client_ip": "192.0.2.1",
    }
    assert second["recipient"] == "bert@example.com"
    assert first["id"] != second["id"]
    assert not asked.outbox.records


@pytest.mark.parametrize(
    ("said", "event"),
    [
        (outcome(), ("delivered", "2.0.0", 250, "ok")),
        (
            outcome(Status.DEFERRED, "deferred", code=0, enhanced="", text="no route"),
            ("deferred", "4.0.0", 0, "no route"),
        ),
        (
            outcome(Status.FAILED, "failed", code=550, enhanced="5.1.1", text="unknown"),
            ("bounced", "5.1.1", 550, "unknown"),
        ),
        (outcome(Status.FAILED, "bounced", code=0, enhanced=""), ("bounced", "5.0.0", 0, "ok")),
        (
            outcome(Status.FAILED, "expired", code=0, enhanced="4.4.7", text="too old"),
            ("expired", "4.4.7", 0, "too old"),
        ),
    ],
)
def test_what_came_of_a_delivery_is_kept_before_it_is_recorded(said, event):
    asked = policy(Deferred())
    asked.start()
    asked.recording(Recipient(ANNA), said, envelope(received_at=-1.0))
    (found,) = kept(asked)
    assert (found["type"], found["status"], found["code"], found["text"]) == event
    assert (found["sender"], found["recipient"], found["client_ip"]) == (
        "a@example.org",
        "anna@example.com",
        "192.0.2.9",
    )
    assert found["time"] == "1970-01-01T00:00:05.500Z"


def test_a_record_waits_for_the_disk_and_for_no_receiver():
    outbox, disk = MemoryOutbox(), Deferred()
    outbox.append = lambda *_: disk
    asked = policy(outbox=outbox)
    asked.start()
    waiting = asked.policy.recording(envelope(), Recipient(ANNA), outcome())
    assert not waiting.called
    disk.callback(0)
    assert waiting.called


def test_the_same_end_has_the_same_id_and_each_deferral_its_own():
    asked = policy(Deferred())
    asked.start()
    for said in (
        outcome(),
        replace(outcome(), at=9.0),
        outcome(Status.DEFERRED, "deferred"),
        replace(outcome(Status.DEFERRED, "deferred"), at=9.0),
    ):
        asked.recording(Recipient(ANNA), said, envelope(received_at=-1.0))
    ids = [event["id"] for event in kept(asked)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_a_delivery_before_the_session_hears_of_its_commit_comes_behind_the_acceptance():
    asked = policy(Deferred())
    asked.start()
    asked.recording(Recipient(ANNA), outcome(), envelope())
    asked.mail("a@example.org")
    asked.rcpt("anna@example.com")
    asked.transaction_facts.queue_id = "2CmXq07DRb3"
    asked.committed()
    assert [event["type"] for event in kept(asked)] == ["accepted", "delivered"]


def test_a_refusal_has_the_reply_and_the_recipient():
    asked = policy(Deferred())
    asked.start()
    asked.refused_at(Stage.CONNECT, Reply.of(554, "5.7.1", "go", "away"))
    asked.mail("a@example.org")
    asked.refused_at(Stage.RCPT, Reply.of(550, "5.1.1", "no such mailbox"), "x@example.com")
    asked.refused_at(Stage.RCPT, Reply.of(550, "5.1.1", "no such mailbox"), "x@example.com")
    first, second, third = kept(asked)
    assert (first["type"], first["code"], first["text"], first["sender"]) == ("refused", 554, "go away", "")
    assert (second["sender"], second["recipient"]) == ("a@example.org", "x@example.com")
    assert len({first["id"], second["id"], third["id"]}) == 3


def test_notices_have_no_events():
    asked = policy(Deferred())
    asked.start()
    asked.recording(Recipient(ANNA), outcome(), envelope(listener="bounce"))
    assert not asked.outbox.records


def test_only_the_types_that_are_named_are_kept():
    asked = policy(Deferred(), {"events": ["bounced"]})
    asked.start()
    asked.recording(Recipient(ANNA), outcome(), envelope())
    asked.recording(Recipient(ANNA), outcome(Status.FAILED, "failed"), envelope())
    asked.refused_at(Stage.CONNECT, Reply.of(554, "5.7.1", "no"))
    asked.mail()
    asked.committed()
    assert [event["type"] for event in kept(asked)] == ["bounced"]


def test_each_request_is_signed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    asked = policy(options={"secret_file": str(secret)}, outbox=MemoryOutbox(b'{"id":1}', b'{"id":2}'))
    asked.start()
    asked.clock.advance(0)
    (request,) = asked.http.requests
    assert request.body == b'[{"id":1},{"id":2}]'
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["X-Elemta-Signature"] == (
        "sha256=" + hmac.new(b"s3cret", request.body, hashlib.sha256).hexdigest()
    )


@pytest.mark.parametrize("failure", [BackendError("closed"), http_answer(500), http_answer(302)])
def test_what_is_not_taken_is_posted_again_less_and_less_often(failure):
    asked = policy(failure, outbox=MemoryOutbox(b"{}"))
    asked.start()
    asked.clock.advance(0)
    times = []
    for _ in range(2000):
        before = len(asked.http.requests)
        asked.clock.advance(1)
        if len(asked.http.requests) > before:
            times.append(asked.clock.seconds())
    assert times[:5] == [1, 3, 7, 15, 31]
    assert times[-1] - times[-2] == 300
    asked.http.scripts[URL] = http_answer(200)
    asked.clock.advance(300)
    assert not asked.outbox.records
    assert asked.metrics.total("elemta_plugin_webhooks_posted_events_total") == 1
    assert "t0ken" not in str(asked.logged)


def test_a_new_event_does_not_cut_a_pause_short():
    asked = policy(http_answer(503), outbox=MemoryOutbox(b"{}"))
    asked.start()
    asked.clock.advance(0)
    asked.refused_at(Stage.CONNECT, Reply.of(554, "5.7.1", "no"))
    assert len(asked.http.requests) == 1
    asked.clock.advance(1)
    assert len(json.loads(asked.http.requests[1].body)) == 2


def test_a_receiver_that_wants_less_gets_smaller_batches():
    def answer(request):
        return http_answer(413 if len(json.loads(request.body)) > 3 else 200)

    asked = policy(answer, outbox=MemoryOutbox(*[b"{}"] * 20))
    asked.start()
    for _ in range(600):
        asked.clock.advance(1)
    assert not asked.outbox.records


def test_an_outbox_that_drops_or_fails_is_counted_and_logged():
    asked = policy(Deferred())
    asked.start()
    asked.outbox.dropped = 7
    asked.refused_at(Stage.CONNECT, Reply.of(554, "5.7.1", "no"))
    asked.outbox.failure = BackendError("the disk is gone")
    asked.recording(Recipient(ANNA), outcome(), envelope(received_at=-1.0))
    assert asked.metrics.total("elemta_plugin_webhooks_dropped_events_total") == 8
    assert [each["log_format"] for each in asked.logged] == ["events were dropped: {reason}"]


def test_after_a_crash_acceptances_of_what_is_queued_are_posted_again():
    crashed_at = 5000.0
    queue = ListedQueue(
        envelope("A1", crashed_at - MARGIN - 1),
        envelope("A2", crashed_at - 10),
        envelope("N1", crashed_at, listener="bounce"),
        envelope("A3", crashed_at + 1),
        page=2,
    )
    asked = policy(Deferred(), queue=queue, outbox=MemoryOutbox(complete=False, at=crashed_at))
    asked.start()
    assert not asked.outbox.has_caught_up
    asked.clock.advance(0)
    assert [event["queue_id"] for event in kept(asked)] == ["A2", "A3"]
    assert asked.outbox.has_caught_up


def test_after_an_end_in_order_nothing_is_posted_again():
    asked = policy(Deferred(), queue=ListedQueue(envelope("A2", 4990.0)), outbox=MemoryOutbox(at=5000.0))
    asked.start()
    asked.clock.advance(0)
    assert not asked.outbox.records
    asked.stop()
    assert asked.outbox.finished


def test_an_end_before_all_was_found_again_is_no_end_in_order():
    queue = ListedQueue(envelope("A2", 4990.0))
    waiting = Deferred()
    queue.received_since = lambda *_: waiting
    asked = policy(Deferred(), queue=queue, outbox=MemoryOutbox(complete=False, at=5000.0))
    asked.start()
    asked.clock.advance(0)
    asked.stop()
    assert not asked.outbox.finished


def test_a_reload_hands_posting_over_and_ends_nothing():
    old = policy(Deferred())
    old.start()
    old.clock.advance(0)
    new = PolicyTester(WebhooksPlugin(), {"url": URL}, http={URL: http_answer()}, outbox=old.outbox)
    new.start(old.policy)
    new.clock.advance(0)
    old.refused_at(Stage.CONNECT, Reply.of(554, "5.7.1", "no"))
    assert len(new.http.requests) == 1
    assert not old.http.requests
    old.stop()
    assert not old.outbox.finished
    new.stop()
    assert new.outbox.finished


@pytest.mark.parametrize("url", ["", "ftp://example.org/", "example.org", "http://", "http://exämple.org/"])
def test_a_url_that_can_not_be_asked_stops_the_start(url):
    with pytest.raises(ConfigError):
        PolicyTester(WebhooksPlugin(), {"url": url})


def test_a_secret_file_without_a_secret_stops_the_start(tmp_path):
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "missing"):
        with pytest.raises(ConfigError):
            policy(options={"secret_file": str(tmp_path / name)})


def test_all_types_are_there():
    assert EVENTS == ("accepted", "refused", "delivered", "deferred", "bounced", "expired")
