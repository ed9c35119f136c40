"""Random conversations, for tests that explain each and then hold it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.support.limit_tables import limit_table

MESSAGE = "From: a@one.example\r\nSubject: x\r\n\r\n.body\r\n"
LOOP = "".join(f"Received: from h{n}.example by h{n + 1}.example\r\n" for n in range(101)) + MESSAGE
BARE = "Subject: x\r\n\r\nbare\rreturn\r\n"
FEED = "Subject: x\r\n\r\n.bare\n.feed\r\n"
SMUGGLED = "Subject: x\r\n\r\nbare\n.\nMAIL FROM:<c@two.example>\r\n"

LIMITS = (
    limit_table("per-ip", "ip", "connections", "5/2m", "300/1h")
    + limit_table("per-helo", "helo", "messages", "4/1m", on_exceed="reject")
    + limit_table("senders", "sender_domain", "messages", "9/5m", "200/1d")
    + limit_table("rcpt", "ip recipient_domain", "recipients", "6/3m", on_exceed="disconnect")
    + limit_table("octets", "network", "bytes", "6KiB/10m")
    + limit_table("watched", "recipient", "recipients", "1/1h", mode="observe")
    + limit_table("node-only", "sender", "messages", "7/4m", scope="node")
    + limit_table("no", "ip", "refusals", "9/5m")
    + """\
[policy.greylist]
delay = "40s"
within = "1h"
pass_with = []
"""
)

_IPS = ("192.0.2.7", "192.0.2.8", "198.51.100.1", "2001:db8::1", "2001:db8::2", "203.0.113.99", "10.1.1.1")
_SENDERS = (
    "a@one.example",
    "b@one.example",
    "c7@two.example",
    "c8@two.example",
    "",
    "no at sign",
    "u@example.test",
)
_RECIPIENTS = (
    "anna@example.test",
    "Anna+tag@example.test",
    "team@example.test",
    "away@example.test",
    "nobody@example.test",
    "x@held.example",
    "y@else.example",
    "postmaster@example.test",
    "bad@@example.test",
)


@dataclass(frozen=True)
class Conversation:
    """What one client does, ``after`` so many seconds."""

    ip: str
    helo: str
    sender: str
    recipients: tuple[str, ...]
    message: str | None
    listener: str = "mx"
    user: str | None = None
    after: float = 0.0

    @property
    def wanted(self) -> dict[str, Any]:
        """The body of ``POST /v1/explain``."""
        found: dict[str, Any] = {
            "ip": self.ip,
            "listener": self.listener,
            "helo": self.helo,
            "from": self.sender or "<>",
            "to": list(self.recipients),
        }
        if self.user is not None:
            found["user"] = self.user
        if self.message is not None:
            found["message"] = self.message
        return found


def conversations(seed: int, count: int, *, user: str | None = None) -> Iterator[Conversation]:
    """So many conversations, the same for the same seed."""
    chance = Random(seed)
    for _ in range(count):
        messages = (MESSAGE, MESSAGE, MESSAGE + "x" * 1500 + "\r\n", LOOP, BARE, FEED, SMUGGLED, None)
        submits = user is not None and chance.random() < 0.25
        yield Conversation(
            chance.choice(_IPS),
            chance.choice(("mail.one.example", "two", "[192.0.2.7]", "two")),
            chance.choice(_SENDERS),
            tuple(chance.choice(_RECIPIENTS) for _ in range(chance.choice((1, 1, 2, 3)))),
            chance.choice(messages),
            "submission" if submits else "mx",
            user if submits and chance.random() < 0.8 else None,
            chance.choice((0.0, 0.0, 1.0, 15.0, 45.0)),
        )


Say = Callable[[str], list[str]]
"""Sends octets, "" for none, and gives the lines of the reply."""


def hold(conversation: Conversation, say: Say) -> list[list[str]]:
    """Hold it as a client would; the replies to its commands, in order."""
    replies = [say("")]
    if _refused(replies) or not _said(replies, say, f"EHLO {conversation.helo}\r\n"):
        return replies
    if conversation.user is not None:
        secret = base64.b64encode(f"\0{conversation.user}\0pass word".encode()).decode()
        if not _said(replies, say, f"AUTH PLAIN {secret}\r\n"):
            return replies
    message = conversation.message
    size = "" if message is None else f" SIZE={len(message)}"
    if not _said(replies, say, f"MAIL FROM:<{conversation.sender}>{size}\r\n"):
        return replies
    accepted = 0
    for recipient in conversation.recipients:
        accepted += _said(replies, say, f"RCPT TO:<{recipient}>\r\n")
        if not replies[-1] or replies[-1][-1].startswith("421"):
            return replies
    if accepted and _said(replies, say, "DATA\r\n") and message is not None:
        _said(replies, say, re.sub(r"(?:\A|(?<=\r\n))\.", "..", message) + ".\r\n")
    return replies


def _said(replies: list[list[str]], say: Say, octets: str) -> bool:
    replies.append(say(octets))
    return not _refused(replies)


def _refused(replies: list[list[str]]) -> bool:
    return not replies[-1] or replies[-1][-1][:1] in "45"


def same(explained: Sequence[Sequence[str]], held: Sequence[Sequence[str]], slack: float = 0.0) -> bool:
    """Whether the replies are the same, but for the queue id, and for ``slack`` seconds that went by."""
    if [len(each) for each in explained] != [len(each) for each in held]:
        return False
    ours = [line for reply in explained for line in reply]
    theirs = [line for reply in held for line in reply]
    return all(_same_line(one, other, slack) for one, other in zip(ours, theirs, strict=True))


def _same_line(one: str, other: str, slack: float) -> bool:
    return _plain(one) == _plain(other) and abs(_seconds(one) - _seconds(other)) <= slack


_WAIT = re.compile(r"try again in (.*)")
_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


def _plain(line: str) -> str:
    return _WAIT.sub("try again", re.sub(r"queued as \S+", "queued", line))


def _seconds(line: str) -> float:
    found = _WAIT.search(line)
    parts = re.findall(r"(\d+) (second|minute|hour|day)s?", found[1]) if found else []
    return sum(int(number) * _UNITS[unit] for number, unit in parts)
