"""``find``: what became of messages, by what a person knows of them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from elemta.ctl.client import nodes_of
from elemta.ctl.context import CommandContext
from elemta.ctl.exit_codes import EX_FAILED, EX_OK
from elemta.ctl.text import age, client_in_words, moment, safe, size

PAGE = 100
WIDTH = 80
_TITLE = 12
_DOMAIN = re.compile(r"@?[\w-]+(\.[\w-]+)*\.[^\W\d_]{2,}")
_QUEUED = ("active", "deferred", "hold", "quarantine", "undeliverable")
# Recipients of one message that are listed.
_MOST_RECIPIENTS = 50
_ACTIONS = {"hold": "put on hold", "release": "released", "retry": "to be retried", "delete": "deleted"}


def find(invocation: CommandContext) -> int:
    args, client = invocation.args, invocation.client()
    found: list[Mapping[str, Any]] = []
    pages: list[Mapping[str, Any]] = []
    after: str | None = None
    while True:
        most = min(PAGE, args.limit - len(found)) if args.limit else PAGE
        page = client.get("find", text=args.text, limit=str(most), **({"after": after} if after else {}))
        pages.append(page)
        found += page["messages"]
        after = page["next"]
        if after is None or (args.limit and len(found) >= args.limit):
            break
    if invocation.json:
        document = {"node_id": page["node_id"], "history": page["history"], "messages": found}
        document["nodes"] = nodes_of(pages)
        invocation.give({**document, "complete": after is None})
        return EX_OK if found else EX_FAILED
    now, width = invocation.runtime.wall(), max(40, invocation.width or WIDTH)
    for place, message in enumerate(found):
        if place:
            invocation.say("")
        invocation.say(*_lines(message, now, width))
    if not page["history"]:
        invocation.note("[spool] history is 0: only queued messages were looked through, by id and address")
    invocation.note_silent(nodes_of(pages))
    if not found:
        invocation.say("no message")
        if _DOMAIN.fullmatch(invocation.args.text):
            invocation.note(
                "a domain is not looked for, an address is; what waits for one: "
                f"elemtactl queue list --to @{invocation.args.text.lstrip('@')}"
            )
    elif after is not None:
        invocation.note(f"only the newest {len(found)}; --limit 0 shows all")
    return EX_OK if found else EX_FAILED


def _lines(message: Mapping[str, Any], now: float, width: int) -> Iterator[str]:
    yield from _wrapped(f"{message['queue_id'] or '(id unknown)'}  {_state(message, now)}", "", width, 4)
    client = message["client"]
    said = {
        "subject": message["subject"],
        "message-id": message["message_id"],
        "from": f"<{message['sender']}>",
        "client": client_in_words(client),
        "session": client["session_id"],
        "size": size(message["size"]),
        "node": message["node_id"],
    }
    for title, value in said.items():
        if value:
            yield from _wrapped(value, f"  {title}", width, _TITLE + 2)
    for recipient in message["recipients"][:_MOST_RECIPIENTS]:
        yield from _wrapped(_recipient(recipient), "  to", width, _TITLE + 2)
    more = message["recipient_count"] - min(len(message["recipients"]), _MOST_RECIPIENTS)
    if more > 0:
        yield from _wrapped(f"and {more} more recipients (--json has those that are kept)", "  to", width, 14)
    for at, words in _events(message):
        yield from _wrapped(words, f"  {moment(at)[:19]}", width, 23)
    for cut in message["cut"]:
        yield from _wrapped(cut, "  not here", width, _TITLE + 2)


def _state(message: Mapping[str, Any], now: float) -> str:
    state = message["state"]
    if state in _QUEUED:
        next_at = message["next_attempt_at"]
        wait = "" if next_at is None or next_at <= now else f", next try in {age(next_at - now)}"
        # What each attempt came to stands below; here is what else the message waits for.
        said = [attempt["text"] for attempt in message["attempts"]]
        reason = message["hold_reason"] or message.get("reason", "")
        why = f": {reason}" if reason and not any(text and reason.endswith(text) for text in said) else ""
        return f"queued, {state}{wait}{why}"
    if state == "ended":
        ended = sorted({each["status"] for each in message["recipients"]})
        return f"{', '.join(ended) or 'ended'} {age(now - message['ended_at'])} ago"
    return "not queued; its end is not recorded"


def _recipient(recipient: Mapping[str, Any]) -> str:
    remote = f", there {recipient['remote_id']}" if recipient["remote_id"] else ""
    return f"<{recipient['address']}> {recipient['status']}{remote}"


def _events(message: Mapping[str, Any]) -> Sequence[tuple[float, str]]:
    """What happened, each with its time, in the order of time."""
    events: list[tuple[float, str]] = []
    received = message["received_at"]
    if received is not None:
        events.append((received, "accepted"))
    events += [(received or 0.0, _verdict(verdict)) for verdict in message["verdicts"]]
    events += [(attempt["at"], _attempt(attempt)) for attempt in message["attempts"]]
    events += [(change["at"], _change(change)) for change in message["changes"]]
    if message["ended_at"] is not None:
        events.append((message["ended_at"], "left the queue"))
    return sorted(events, key=lambda event: event[0])


def _verdict(verdict: Mapping[str, Any]) -> str:
    about = f" for <{verdict['recipient']}>" if verdict["recipient"] else ""
    reason = f": {verdict['reason']}" if verdict["reason"] else ""
    observed = " (observed only)" if verdict["observed"] else ""
    return f"{verdict['policy']} at {verdict['stage']}{about}: {verdict['verdict']}{observed}{reason}"


def _attempt(attempt: Mapping[str, Any]) -> str:
    named = ", ".join(f"<{address}>" for address in attempt["recipients"])
    more = attempt["count"] - len(attempt["recipients"])
    to = f"{named} and {more} more" if more > 0 else named
    status = attempt["end"] or attempt["status"]
    hop = f" by {attempt['next_hop']}" if attempt["next_hop"] else ""
    took = f" in {attempt['seconds']:.1f} s" if attempt["next_hop"] else ""
    reply = " ".join(str(part) for part in (attempt["code"], attempt["enhanced"], attempt["text"]) if part)
    return f"{to} {status}{hop}{took}" + (f": {reply}" if reply else "")


def _change(change: Mapping[str, Any]) -> str:
    by = f" by {change['by']}" if change["by"] else ""
    reason = f": {change['reason']}" if change["reason"] else ""
    return f"{_ACTIONS.get(change['action'], change['action'])}{by}{reason}"


def _wrapped(text: str, title: str, width: int, indent: int) -> list[str]:
    """A title, and behind it the text in lines of the width; a word that is longer stays whole."""
    first = title.ljust(indent) if title else ""
    return textwrap.wrap(
        safe(text),
        width,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]
