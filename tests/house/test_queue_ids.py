"""Each record about one message has its queue id, so that a search for the id finds all that was logged."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ELEMTA = Path(__file__).parents[2] / "elemta"

# What these are about is no message: a session before it has one, a connection, a disk, the daemon.
OTHER_SUBJECTS = (
    "admin.",
    "audit.",
    "auth.",
    "channel.",
    "command.forgiven",
    "config.",
    "connection.",
    "console.",
    "daemon.",
    "descriptors.",
    "destination.",
    "dns.",
    "limit.",
    "limits.",
    # The history as such.
    "history.",
    "http.",
    "listener.",
    "log.",
    # A thread has several messages.
    "maildir.answered",
    "maildir.stuck",
    "metrics.",
    "nodes.",
    "notify.",
    "overload.",
    "policy_service.",
    "proxy.",
    "queue.expiry_failed",
    "relay.denied",
    "session.",
    "thread.",
    "valkey.",
    "worker.",
    # A recipient is asked for before there is a message.
    "recipient.not_checked",
    "recipient.smtputf8_refused",
    "recipient.unknown",
    # A destination, a connection to it, or all deliveries.
    "delivery.abandoned",
    "delivery.bookkeeping_failed",
    "delivery.connection_lost",
    "delivery.destination_",
    "delivery.judgement_failed",
    "delivery.limit_not_released",
    "delivery.login_refused",
    "delivery.offer_refused",
    "delivery.resumed",
    "delivery.scan_failed",
    "delivery.stopped_by_spool",
    "delivery.throttled",
    "delivery.tls_",
    # Many messages at a time.
    "hold.not_ended",
    # A policy as such.
    "policy.answered_late",
    "policy.breaker_",
    "policy.build_failed",
    "policy.busy",
    "policy.cancel_failed",
    "policy.chain_not_stopped",
    "policy.not_started",
    "policy.outbox_",
    "policy.slow",
    "policy.start_failed",
    "policy.stop_failed",
    # The spool as such, and files that belong to no known message.
    "spool.adopt",
    "spool.answer_failed",
    "spool.batch_",
    "spool.bodies_removed",
    "spool.cleanup_failed",
    "spool.close_failed",
    "spool.data_lost",
    "spool.disk_",
    "spool.given_back",
    "spool.internal_error",
    "spool.lease_",
    "spool.listener_failed",
    "spool.log_busy",
    "spool.maintenance_failed",
    "spool.not_observed",
    "spool.opened",
    "spool.orphan_body",
    "spool.outcomes_",
    "spool.ownership_lost",
    "spool.plan_failed",
    "spool.read_failed",
    "spool.record_failed",
    "spool.reserve_",
    "spool.space_",
    "spool.thread_failed",
    "spool.upgraded",
    # Many events at a time.
    "webhook.",
)


def logged_without_queue_id() -> Iterator[tuple[str, str]]:
    for path in sorted(ELEMTA.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            event = given.get("event")
            named = isinstance(event, ast.Constant) and isinstance(event.value, str) and "." in event.value
            if named and "queue_id" not in given and None not in given:
                yield event.value, f"{path.relative_to(ELEMTA)}:{node.lineno}"


def test_every_record_about_one_message_has_its_queue_id() -> None:
    missing = [each for each in logged_without_queue_id() if not each[0].startswith(OTHER_SUBJECTS)]
    assert missing == []


def test_the_list_of_other_subjects_has_no_event_that_is_gone() -> None:
    events = {event for event, _ in logged_without_queue_id()}
    stale = [other for other in OTHER_SUBJECTS if not any(event.startswith(other) for event in events)]
    assert stale == []
