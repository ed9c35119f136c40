"""The bounds and times that pages name are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from elemta import conversation_trace
from elemta.auth import slowdown
from elemta.console import attention, limit_views, mail_views, sessions
from elemta.console import events as streams
from elemta.ctl import limits
from elemta.daemon import explainer, trace_operations
from elemta.history import events, history, retention, store
from elemta.limits import nodes, past_nodes, push_registry
from elemta.net import recent_refusals
from elemta.policies import webhook_poster, webhooks
from elemta.policies.mail_auth import dmarc, message_reader, signatures, spf
from elemta.policy import outbox_file
from elemta.policy_service import decisions
from elemta.spool import history_feed

DOCS = Path(__file__).parents[2] / "docs"
KIB, MIB = 1024, 1024 * 1024

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
        f"it takes at most {mail_views.MOST_TOGETHER:,} at once",
        f"looks at the {int(limit_views.MOST_IDENTITIES):,} fullest identities",
        f"fewer than {attention.SOON_DAYS} days left",
    ],
    "elemtactl.md": [
        f"A node writes it every {({3.0: 'three'})[nodes.HEARTBEAT]} seconds",
        f"leaves the list {({10.0: 'ten'})[nodes.TIME_TO_LIVE]} seconds after its last heartbeat",
        f"are gone, for {({7 * 86400.0: 'seven'})[past_nodes.KEPT_SECONDS]} days after their last heartbeat",
        f"shown again every {({2.0: 'two'})[limits.WATCH_SECONDS]} seconds",
        f"`--message` is a file of up to {explainer.MAX_MESSAGE // MIB} MiB",
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
        f"said for {HOUR[retention.PATIENCE]} on end",
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
    "rate-limiting.md": [f"The last {push_registry.VERSIONS_KEPT} versions are kept"],
    "postfix.md": [f"{decisions.MAX_REMEMBERED:,} charges for {HOUR[decisions.REMEMBERED_SECONDS]}"],
}


@pytest.mark.parametrize("page", SAID)
def test_a_page_names_the_bounds_of_the_code(page: str) -> None:
    text = " ".join((DOCS / page).read_text(encoding="utf-8").split())
    assert [each for each in SAID[page] if each not in text] == []
