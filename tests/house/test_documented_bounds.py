"""The bounds and times that pages name are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from elemta import certificates, conversation_trace
from elemta.auth import slowdown
from elemta.config import ServerConfig, loader
from elemta.config.setting import settings_of
from elemta.console import attention, limit_views, mail_views, sessions
from elemta.console import events as streams
from elemta.ctl import limits
from elemta.daemon import (
    fleet_calls,
    joined_calls,
    node_questions,
    supposed_client,
    trace_operations,
    worker_orders,
    worker_process,
)
from elemta.daemon.service import EX_TEMPFAIL
from elemta.delivery import shared_outages
from elemta.history import events, history, retention, store
from elemta.limits import failover, nodes, past_nodes, push_registry, pushed_limits, return_times
from elemta.net import overload, recent_refusals
from elemta.policies import webhook_poster, webhooks
from elemta.policies.mail_auth import dmarc, message_reader, signatures, spf
from elemta.policy import outbox_file
from elemta.policy_service import decisions, requests, service
from elemta.spool import history_feed
from elemta.workers import limit_client, outages, places

DOCS = Path(__file__).parents[2] / "docs"
KIB, MIB = 1024, 1024 * 1024

NUMBERS = {2: "two", 3: "three", 5: "five", 8: "eight", 10: "ten", 20: "twenty"}
(MOST_WORKERS,) = (each.about.maximum for each in settings_of(ServerConfig) if each.name == "workers")
HOUR = {3600.0: "an hour"}
MINUTE = {60.0: "a minute"}

SAID = {
    "console.md": [
        f"ends {HOUR[sessions.IDLE_SECONDS]} after its last request",
        f"{sessions.LIFETIME_SECONDS / 3600:g} hours after its login",
        f"keeps {sessions.MOST:,} sessions, {sessions.MOST_OF_ONE} of one user",
        f"waits longer for its answer, up to {slowdown.MOST_SECONDS:g} seconds",
        f"reads nothing for {MINUTE[streams.STALLED_SECONDS]} is disconnected",
        f"at most {streams.MOST_STREAMS} streams",
        f"within {3 * streams.LOOK_SECONDS:g} seconds",
        f"for at most {({1.0: 'a second'})[fleet_calls.DEADLINE_SECONDS]}",
        f"and for {fleet_calls.SILENT_SECONDS} s where a node did not answer the last time",
        f"it takes at most {mail_views.MOST_TOGETHER:,} at once",
        f"looks at the {int(limit_views.MOST_IDENTITIES):,} fullest identities",
        f"fewer than {attention.SOON_DAYS} days left",
    ],
    "elemtactl.md": [
        f"A node writes it every {({3.0: 'three'})[nodes.HEARTBEAT]} seconds",
        f"leaves the list {({10.0: 'ten'})[nodes.TIME_TO_LIVE]} seconds after its last heartbeat",
        f"are gone, for {({7 * 86400.0: 'seven'})[past_nodes.KEPT_SECONDS]} days after their last heartbeat",
        f"shown again every {({2.0: 'two'})[limits.WATCH_SECONDS]} seconds",
        f"`--message` is a file of up to {supposed_client.MAX_MESSAGE // MIB} MiB",
        f"from their last {conversation_trace._RECENT} lines on",
        f"Each keeps up to {conversation_trace.MOST_LINES:,} lines",
        f"keeps the last {recent_refusals.MOST_REFUSALS:,} in memory",
        f"409 where there are {({4: 'four'})[conversation_trace.MOST_WATCHES]}",
        f"not read for {conversation_trace.UNREAD_SECONDS:g} s ends",
        f"after {({10.0: 'ten'})[trace_operations.WAIT_SECONDS]} seconds without one",
    ],
    "spool.md": [
        f"reply of up to {events._LONGEST_TEXT} characters",
        f"do not fit in {events.LONGEST_ENVELOPE // KIB} KiB",
        f"After {events.MOST_ATTEMPTS} attempts of a message",
        f"more than {events._MOST_REPLIES} different replies",
        f"{({1.0: 'about once a second'})[history.INTERVAL]}, or {history.TOGETHER} events at a time",
        f"more than {history.MOST_WAITING:,} events or {history.MOST_OCTETS // MIB} MiB behind",
        f"up to {store.MOST_RECORDS:,} records, or what happened in {({8: 'an eighth'})[retention.PARTS]}",
        f"said for {HOUR[retention.CONFIRMED_SECONDS]} on end",
        f"at most {({10: 'a tenth'})[history_feed._SHARE]} of the spool's disk",
        f"the newest {history_feed._SPARED // MIB} MiB of it stay",
    ],
    "policies/webhooks.md": [
        f"a JSON list of up to {webhook_poster.BATCH_EVENTS} events",
        f"after {webhook_poster.FIRST_PAUSE:g} s, 2 s, 4 s and so on",
        f"and so on up to {webhook_poster.LAST_PAUSE / 60:g} minutes",
        f"An answer over {webhook_poster.MAX_ANSWER // MIB} MiB counts as a failure",
        f"from the last event on disk by {webhooks.MARGIN / 60:g} minutes",
        f"up to {outbox_file.MOST_OCTETS // MIB} MiB",
    ],
    "policies/mail-auth.md": [
        f"A header over {message_reader.MAX_HEADER // MIB} MiB or {message_reader.MAX_LINES:,} lines",
        f"A signature over {signatures.MAX_SIGNATURE // KIB} KiB",
        f"ARC sets over {signatures.MAX_SET_OCTETS // KIB} KiB together",
        f"From fields over {dmarc.MAX_FROM // KIB} KiB",
        f"an SPF record over {spf.MAX_RECORD // KIB} KiB",
    ],
    "rate-limiting.md": [
        f"The last {push_registry.VERSIONS_KEPT} versions are kept",
        f"{loader.MAX_PUSHED:,} tables in {pushed_limits.MAX_TEXT // KIB} KiB",
        f"The first {NUMBERS[return_times.CLIENTS_A_SECOND]} clients that would come in one second",
        f"counts as {MINUTE[return_times.SHORTEST_SPREAD]} at least",
        f"and as {NUMBERS[return_times.LONGEST_SPREAD // 60]} minutes at most",
        f"the times of {return_times.MAX_PROMISES:,} clients",
        f"Without Valkey a worker waits for {worker_orders.WITHOUT_VALKEY_SECONDS:g} s",
        f"After {NUMBERS[failover.FAILURES]} answers that did not come in time",
    ],
    "postfix.md": [
        f"{decisions.MAX_REMEMBERED:,} charges for {HOUR[decisions.REMEMBERED_SECONDS]}",
        f"longer than {requests.MAX_REQUEST // KIB} KiB",
        f"not finished after {service.REQUEST_SECONDS:g} s",
    ],
    "questions.md": [
        f"A node keeps its last {recent_refusals.MOST_REFUSALS:,} refusals",
        f"Below {certificates.SOON_DAYS} days each start and each reload warns",
    ],
    "valkey.md": [
        f"At most {node_questions.MOST_WAITING} wait",
        f"expire within {NUMBERS[node_questions._GOOD_SECONDS]} seconds",
        f"looks {NUMBERS[round(1 / node_questions.IDLE_SECONDS)]} times a second",
        f"{NUMBERS[round(1 / node_questions.BUSY_SECONDS)]} times for",
        f"for {NUMBERS[node_questions._BUSY_FOR]} seconds after it was asked",
        f"expires after {NUMBERS[node_questions._ANSWER_KEPT_SECONDS]} seconds",
        f"at most {node_questions.MOST_OCTETS // MIB} MiB before it is compressed",
        f"A node answers {NUMBERS[node_questions.MOST_AT_ONCE]} questions at a time",
    ],
    "attacks.md": [
        f"looks every {overload.BEAT_SECONDS * 1000:g} ms",
        f"is {overload.LATE_SECONDS * 1000:g} ms late",
        f"more than {overload.SLOW_COMMIT_SECONDS * 1000:g} ms, for {NUMBERS[overload.LOOKS_TO_BEGIN]} looks",
        f"{overload.LOOKS_TO_BEGIN * overload.LATE_SECONDS * 1000:g} ms late together",
        f"{NUMBERS[overload.LOOKS_TO_GROW]} looks in a row are in time",
        f"at least {overload.FEWEST_CONNECTIONS} connections are open",
        f"stays {overload.STILL_LATE_SECONDS * 1000:g} ms late, but {overload.FEWEST_CONNECTIONS} at least",
    ],
    "workers.md": [
        f"any number to {MOST_WORKERS:g}",
        f"does not answer within {NUMBERS[joined_calls.READ_SECONDS]} seconds",
        f"{joined_calls.SILENT_SECONDS} s where it did not the last time",
        f"the supervisor waits {({0.8: 'four fifths'})[limit_client.SUPERVISOR_SHARE]} of that",
        f"Without Valkey it waits {worker_orders.WITHOUT_VALKEY_SECONDS:g} s",
        f"sends a sign of life {({1.0: 'once a second'})[worker_process.FACTS_EVERY]}",
        f"the supervisor does not answer within {places.TAKE_SECONDS:g} s",
        f"until {shared_outages.LATER:g} s after its next attempt",
        f"hears of the newest {outages.MOST_OUTAGES:,}",
        f"that sends none for {worker_process.SILENT_SECONDS:g} s",
        f"or {worker_process.FIRST_WORD_SECONDS:g} s after its start",
        f"After three deaths within {worker_process._QUICK_DEATH:g} s of their starts",
        f"it waits {worker_process.restart_pause(3):g} s, and longer each time",
        f"up to {worker_process.restart_pause(99):g} s",
        f"is killed {MINUTE[worker_process.CLOSING_SECONDS]} after that",
        f"fails with status {EX_TEMPFAIL}",
    ],
}


@pytest.mark.parametrize("page", SAID)
def test_a_page_names_the_bounds_of_the_code(page: str) -> None:
    text = " ".join((DOCS / page).read_text(encoding="utf-8").split())
    assert [each for each in SAID[page] if each not in text] == []
