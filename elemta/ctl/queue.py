"""``queue``: shows and changes the messages in the spool."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from elemta.ctl.client import AdminClient, DaemonRefused
from elemta.ctl.context import CommandContext
from elemta.ctl.daemon import spool_lines
from elemta.ctl.exit_codes import EX_FAILED, EX_OK, EX_USAGE, CommandFailed
from elemta.ctl.text import Column, age, client_in_words, due, moment, safe, size

PAGE = 500
# Messages that one call changes; the daemon takes no more.
TOGETHER = 200

_MESSAGES = (
    Column("ID"),
    Column("STATE"),
    Column("SIZE", right=True, spare=5),
    Column("AGE", right=True, spare=1),
    Column("RCPT", right=True, spare=4),
    Column("NEXT", right=True),
    Column("FROM", spare=2, folds=True),
    Column("TO", spare=3, folds=True),
    Column("DESTINATION", spare=6, folds=True),
    Column("REASON", spare=7, folds=True),
)
STATES = ("active", "deferred", "hold", "quarantine", "undeliverable")
# What an action is for where no --state says otherwise: the messages that it makes a difference to.
STATES_OF_ALL: Mapping[str, Sequence[str]] = {
    "retry": ("deferred",),
    "release": ("hold", "quarantine", "undeliverable"),
    "hold": ("active", "deferred"),
    "bounce": ("",),
    "delete": ("",),
}
_FILTERS = {
    "state": "--state",
    "sender": "--from",
    "recipient": "--to",
    "destination": "--destination",
    "why": "--reason",
    "older_than": "--older-than",
}
_DONE = {"retry": "retried", "release": "released", "hold": "held", "delete": "deleted", "bounce": "returned"}
# What is asked before, and what is said where the answer is no.
_QUESTIONS = {
    "delete": ("Delete {} for good, without telling the sender?", "deleted"),
    "bounce": ("Return {} to the sender, as mail that could not be delivered?", "returned"),
    "retry": ("Attempt {} now?", "retried"),
    "release": ("Deliver {} now?", "released"),
    "hold": ("Keep {} from being delivered?", "held"),
}
# Those that can't be undone: these ask about messages that are named, too.
_FINAL = ("delete", "bounce")


def show_list(invocation: CommandContext) -> int:
    args = invocation.args
    client = invocation.client()
    _refuse_empty_filters(args)
    found: list[Mapping[str, Any]] = []
    complete = True
    for message in _matching(client, args, (args.state or "",)):
        if args.limit and len(found) >= args.limit:
            complete = False
            break
        found.append(message)
    if invocation.json:
        invocation.give({"messages": found, "complete": complete})
        return EX_OK
    now = invocation.runtime.wall()
    if found:
        invocation.give_table(_MESSAGES, [_row(message, now) for message in found])
    else:
        invocation.say("no message")
    if not complete:
        invocation.note(f"only the first {args.limit}; --limit 0 shows all")
    return EX_OK


def _row(message: Mapping[str, Any], now: float) -> Sequence[str]:
    return (
        message["queue_id"],
        message["state"],
        size(message["size"]),
        age(now - message["received_at"]),
        f"{message['pending']}/{message['recipients']}",
        due(message["next_attempt_at"], now),
        f"<{message['sender']}>",
        _recipients(message),
        message["destination"],
        message["reason"],
    )


def _recipients(message: Mapping[str, Any]) -> str:
    if message["recipient"] is None:
        return ""
    others = message["pending"] - 1
    return f"<{message['recipient']}>" + (f" and {others} more" if others > 0 else "")


def cat(invocation: CommandContext) -> int:
    """``queue cat``: the octets of a message, as it is sent on."""
    pages = _content(invocation.client(), invocation.args.id, headers=invocation.args.headers)
    if invocation.json:
        invocation.give(_as_one_document(list(pages)))
        return EX_OK
    for page in pages:
        invocation.give_octets(page["content"].encode(page["charset"]))
    return EX_OK


def _content(client: AdminClient, queue_id: str, *, headers: bool) -> Iterator[Mapping[str, Any]]:
    """A message or its header, page by page."""
    offset: int | None = 0
    while offset is not None:
        page = client.get(
            "queue", queue_id, "content", offset=str(offset), headers="true" if headers else "false"
        )
        yield page
        offset = page["next"]


def _as_one_document(pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The pages as the daemon would give them in one."""
    octets = b"".join(page["content"].encode(page["charset"]) for page in pages)
    try:
        charset, text = "utf-8", octets.decode("utf-8")
    except UnicodeDecodeError:
        charset, text = "latin-1", octets.decode("latin-1")
    return {"queue_id": pages[0]["queue_id"], "size": pages[0]["size"], "content": text, "charset": charset}


def show(invocation: CommandContext) -> int:
    client = invocation.client()
    records, failures = [], []
    for queue_id in invocation.args.ids:
        try:
            # In capitals, as ids are: "stats" is no id, and it is the name of another call.
            records.append(client.get("queue", queue_id.upper()))
        except DaemonRefused as refused:
            _only_about_a_message(refused)
            failures.append({"queue_id": queue_id, "error": refused.problem, "hint": refused.hint})
            invocation.note(_failure(failures[-1]))
    if invocation.json:
        invocation.give({"messages": records, "failed": failures})
    else:
        for place, record in enumerate(records):
            if place:
                invocation.say("")
            _describe(invocation, record)
    return EX_FAILED if failures else EX_OK


def _describe(invocation: CommandContext, record: Mapping[str, Any]) -> None:
    client, now = record["client"], invocation.runtime.wall()
    said = {
        "id": record["queue_id"],
        "state": record["state"] + (f": {record['hold_reason']}" if record["hold_reason"] else ""),
        "received": f"{moment(record['received_at'])} ({age(now - record['received_at'])} ago)",
        "size": _exact_size(record["size"]),
        "from": f"<{record['sender']}>",
        "client": client_in_words({**client, "user": None, "tls": None}),
        "session": client["session_id"],
        "user": client["user"] or "",
        "tls": client["tls"] or "",
        "attempts": str(record["attempts"]),
        "next": "" if record["next_attempt_at"] is None else due(record["next_attempt_at"], now),
    }
    invocation.say(*(f"{name:<10}{value}" for name, value in said.items() if value))
    for recipient in record["recipients"]:
        status = recipient["status"] or ("no result yet" if record["attempts"] else "not tried yet")
        done = "" if recipient["pending"] else ", done"
        invocation.say(f"to        <{recipient['address']}> {status}{done}{_words(recipient)}")
        if recipient["pending"]:
            invocation.say(f"          {_standing(recipient, now)}")
    for attempt in record["history"]:
        invocation.say(
            f"tried     {moment(attempt['at'])} #{attempt['number']} <{attempt['recipient']}> "
            f"{attempt['status']}{_by(attempt)}{_words(attempt)}"
        )


def _standing(recipient: Mapping[str, Any], now: float) -> str:
    """How a recipient that is left stands: its state, where its mail goes, when it is tried, and why then."""
    at = recipient["next_attempt_at"]
    when = "" if at is None else f", next {due(at, now)}"
    destination = f", by {recipient['destination']}" if recipient["destination"] else ""
    why = f": {recipient['reason']}" if recipient["reason"] else ""
    return f"{recipient['state']}{destination}{when}{why}"


def _by(attempt: Mapping[str, Any]) -> str:
    """The route and how long it took, where an attempt was made."""
    took = f" in {attempt['seconds']:.1f} s" if attempt["next_hop"] else ""
    return f"{took} by {attempt['route']}" if attempt["route"] else took


def _exact_size(octets: int) -> str:
    about, exact = size(octets), f"{octets} B"
    return exact if about == exact else f"{about} ({exact})"


def _words(said: Mapping[str, Any]) -> str:
    reply = " ".join(str(part) for part in (said["code"], said["enhanced"], said["text"]) if part)
    hop = f" at {said['next_hop']}" if said["next_hop"] else ""
    return f"{hop}: {reply}" if reply else hop


def stats(invocation: CommandContext) -> int:
    answer = invocation.client().get("queue", "stats")
    return invocation.give_answer(answer, *(f"{name:<10}{value}" for name, value in spool_lines(answer)))


def change(invocation: CommandContext) -> int:
    """``queue retry|hold|release|bounce|delete``: on the ids that were given, or on all that match."""
    args = invocation.args
    many = _chooses_many(args)
    client = invocation.client()
    if many:
        _check_confirmable(invocation)
        states = (args.state,) if args.state else STATES_OF_ALL[args.action]
        found = list(_matching(client, args, states))
        ids = [message["queue_id"] for message in found]
        if ids and not args.yes:
            # The daemon ends a connection that is idle for a minute; the next call opens another.
            client.close()
            _confirm(invocation, _counted(found))
    else:
        ids = args.ids
        if args.action in _FINAL and not args.yes and invocation.stdin.isatty():
            _confirm(invocation, safe(ids[0]) if len(ids) == 1 else f"{len(ids)} messages")
    results = [
        result
        for start in range(0, len(ids), TOGETHER)
        for result in _change_together(client, args, ids[start : start + TOGETHER])
    ]
    return _report(invocation, results)


def _chooses_many(args: argparse.Namespace) -> bool:
    """Whether filters choose the messages; for ``hold`` of named ones ``--reason`` is what to note."""
    if args.action == "hold" and args.ids and args.why is not None:
        args.note, args.why = args.note or args.why, None
    _refuse_empty_filters(args)
    filters = any(getattr(args, name) is not None for name in _FILTERS)
    if args.ids and (args.all or filters):
        raise CommandFailed(EX_USAGE, "filters and --all choose messages; they do not go with given ids")
    if not args.ids and not args.all and not filters:
        raise CommandFailed(EX_USAGE, "give queue ids, filters, or --all")
    return not args.ids


def _refuse_empty_filters(args: argparse.Namespace) -> None:
    """A text without a letter is in every text: a script whose variable is empty does not mean all."""
    for name, option in _FILTERS.items():
        if getattr(args, name) == "":
            hint = "'<>' is the null sender" if name == "sender" else "leave it out for all"
            raise CommandFailed(EX_USAGE, f"{option} is empty", hint)


def _check_confirmable(invocation: CommandContext) -> None:
    if not invocation.args.yes and not invocation.stdin.isatty():
        raise CommandFailed(
            EX_USAGE,
            f"{invocation.args.action} of many messages without a terminal needs --yes",
            "queue list with the same filters shows which they are",
        )


def _counted(messages: Sequence[Mapping[str, Any]]) -> str:
    """How many, and in which states."""
    states = Counter(message["state"] for message in messages)
    by_state = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    what = "1 message" if len(messages) == 1 else f"{len(messages)} messages"
    return f"{what} ({by_state})"


def _change_together(
    client: AdminClient, args: argparse.Namespace, ids: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """One call for many messages."""
    more = {"reason": args.note} if args.action == "hold" and args.note else {}
    for result in client.post("queue", args.action, ids=",".join(ids), **more)["results"]:
        if "error" in result:
            yield _refused(args, result["queue_id"], result["status"], result["error"], result["hint"])
        else:
            notices = {"notices": result["notices"]} if "notices" in result else {}
            yield {"queue_id": result["queue_id"], "ok": True, "done": _DONE[args.action], **notices}


def _refused(args: argparse.Namespace, queue_id: str, status: int, problem: str, hint: str) -> dict[str, Any]:
    # What was delivered or held between the listing and now is not a failure of "all".
    gone = not args.ids and status in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
    return {"queue_id": queue_id, "ok": gone, "error": problem, "hint": hint}


def _only_about_a_message(refused: DaemonRefused) -> None:
    if refused.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
        raise refused


def _report(invocation: CommandContext, results: Sequence[Mapping[str, Any]]) -> int:
    failed = [result for result in results if not result["ok"]]
    if invocation.json:
        invocation.give({"results": results})
    else:
        for result in results:
            if "done" in result:
                untold = ", but the sender wanted no notice" if result.get("notices") == 0 else ""
                invocation.say(f"{result['queue_id']} {result['done']}{untold}")
            else:
                invocation.note(_failure(result))
        if not results:
            invocation.say("no message")
    return EX_FAILED if failed else EX_OK


def _failure(result: Mapping[str, Any]) -> str:
    hint = f" ({result['hint']})" if result["hint"] else ""
    return f"{result['queue_id']}: {result['error']}{hint}"


def _confirm(invocation: CommandContext, what: str) -> None:
    question, done = _QUESTIONS[invocation.args.action]
    if not invocation.agreed(question.format(what)):
        raise CommandFailed(EX_FAILED, f"nothing was {done}")


def _matching(
    client: AdminClient, args: argparse.Namespace, states: Sequence[str]
) -> Iterator[Mapping[str, Any]]:
    """The messages in one of ``states`` ("" for any) that the filters let through."""
    filters = {
        "from": args.sender,
        "to": args.recipient,
        "destination": args.destination,
        "reason": args.why,
        "older_than": args.older_than,
    }
    chosen = {name: value for name, value in filters.items() if value is not None}
    for state in states:
        query = {**chosen, **({"state": state} if state else {})}
        yield from client.entries("queue", "messages", **query, limit=str(PAGE))
