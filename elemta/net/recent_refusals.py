"""What clients were refused lately, for people who ask why: the newest of this node, in memory."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from elemta.smtp.events import DataQuestion, MailQuestion, MessageQuestion, Question, RcptQuestion, Replied
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import SessionInfo

MOST_REFUSALS = 1000
"""So many refusals are kept; an older one goes for a newer one."""

_LONGEST = 512
_POLICY = "policy "
_LIMIT = "limit "
# A limit's reply names it.
_NAMED_LIMIT = re.compile(r"\(limit ([^,)]+)[,)]|[Rr]ate limit (\S+) ")
_OF_TRANSACTION = (MailQuestion, RcptQuestion, DataQuestion, MessageQuestion)


@dataclass(frozen=True, slots=True)
class ClientRefusal:
    """One reply with 4xx or 5xx, ``at`` seconds since the epoch.

    ``verb`` is the command that it answers; empty for the connection, ``.`` for the end of a message.
    ``policy`` and ``limit`` decided, where one did; ``reason`` is as in the log. ``recipient`` is there for
    RCPT.
    """

    at: float
    session_id: str
    client_ip: str
    listener: str
    helo: str
    user: str | None
    verb: str
    sender: str | None
    recipient: str | None
    reply: str
    policy: str
    limit: str
    reason: str


class RecentRefusals:
    """The newest refusals. ``wall`` gives seconds since the epoch."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._kept: deque[ClientRefusal] = deque(maxlen=MOST_REFUSALS)
        #: How many there were since the start, those that are not kept any more too.
        self.total = 0

    def refused(self, facts: SessionInfo, event: Replied, question: Question | None) -> None:
        """A command was refused. ``question`` is the last one that was asked about this session."""
        sender = recipient = None
        if isinstance(question, _OF_TRANSACTION) and event.verb in ("MAIL", "RCPT", "DATA", "BDAT", "."):
            sender = str(question.transaction.sender)
            if isinstance(question, RcptQuestion) and event.verb == "RCPT":
                recipient = str(question.recipient)
        self._keep(facts, event.verb, event.reply, event.reason, (sender, recipient))

    def no_session(self, client_ip: str, listener: str, reply: Reply, reason: str) -> None:
        """A client got no session at all."""
        self._note(
            ClientRefusal(
                self._wall(),
                "",
                client_ip,
                listener,
                "",
                None,
                "",
                None,
                None,
                _cut(str(reply)),
                "",
                "",
                reason,
            )
        )

    def _keep(
        self,
        facts: SessionInfo,
        verb: str,
        reply: Reply,
        reason: str,
        envelope: tuple[str | None, str | None],
    ) -> None:
        text = str(reply)
        policy = reason.removeprefix(_POLICY) if reason.startswith(_POLICY) else ""
        limit = reason.removeprefix(_LIMIT) if reason.startswith(_LIMIT) else ""
        named = _NAMED_LIMIT.search(reply.text) if policy and not limit else None
        self._note(
            ClientRefusal(
                self._wall(),
                facts.id,
                str(facts.client_ip),
                facts.listener,
                _cut(facts.helo),
                facts.user,
                verb,
                envelope[0] and _cut(envelope[0]),
                envelope[1] and _cut(envelope[1]),
                _cut(text),
                policy,
                (named[1] or named[2]) if named else limit,
                _cut(reason),
            )
        )

    def _note(self, refusal: ClientRefusal) -> None:
        self.total += 1
        self._kept.append(refusal)

    def latest(
        self,
        *,
        policy: str | None = None,
        limit: str | None = None,
        client: IPv4Network | IPv6Network | None = None,
    ) -> Iterator[ClientRefusal]:
        """The refusals that are kept, the newest first: by this policy, this limit, of these clients."""
        for each in reversed(self._kept):
            if policy is not None and each.policy != policy:
                continue
            if limit is not None and each.limit != limit:
                continue
            if client is None or _is_in(each.client_ip, client):
                yield each


def _cut(text: str) -> str:
    return text[:_LONGEST]


def _is_in(text: str, network: IPv4Network | IPv6Network) -> bool:
    return ip_address(text) in network
