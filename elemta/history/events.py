"""What happens to a message, as one thread hands it on and another writes it down.

An event becomes a JSON object of few octets, and the words by which its message is found. Texts, lists and
the number of attempts are bounded here, so that no message takes more than a few hundred KiB.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quote
from typing import Any, ClassVar

from elemta.address import Address
from elemta.envelope import Client, Recipient
from elemta.history.words import MOST_WORDS, keys_of, normal, words_of_reply
from elemta.mailbox import canonical_domain
from elemta.message.summary import HeaderSummary, subject_text
from elemta.outcome import Outcome, Status

LONGEST_ENVELOPE = 64 * 1024
"""Octets of an envelope that are kept; of a longer one the first recipients."""

MOST_ATTEMPTS = 50
"""Attempts of a message that are kept, beside those that end something for a recipient."""

_LONGEST_TEXT = 500
# Recipients of one reply that are named; positions in the envelope stand for all.
_MOST_NAMED = 10
# Different replies of one attempt.
_MOST_REPLIES = 20

Place = tuple[Outcome, Sequence[int]]
"""An outcome that was recorded, and the positions of its recipient in the envelope."""


@dataclass(frozen=True, slots=True)
class VerdictNote:
    """What a policy said of a message: ``recipient`` where it was asked about one."""

    stage: str
    policy: str
    verdict: str
    reason: str = ""
    recipient: str = ""
    observed: bool = False


@dataclass(slots=True, eq=False)
class HistoryEvent:
    """Something happened to the message with a key. ``ended``: nothing is left of it in the queue."""

    #: Whether it is the first that is known of the message.
    is_new: ClassVar[bool] = False

    key: int
    queue_id: str
    at: float
    ended: bool = field(default=False, kw_only=True)

    @property
    def is_kept(self) -> bool:
        """Whether it is written down."""
        return True

    def text(self) -> str:
        """The event as JSON; "" where there is nothing to say but that the message ended."""
        return ""

    def words(self) -> Sequence[str]:
        """What the message is found by, in the form of `normal`."""
        return ()


@dataclass(slots=True, eq=False)
class Accepted(HistoryEvent):
    """A message is on stable storage. ``envelope`` is JSON, as the queue keeps it."""

    is_new: ClassVar[bool] = True

    size: int
    envelope: str
    sender: Address
    recipients: Sequence[Recipient]
    client: Client
    summary: HeaderSummary
    held: str | None = None
    cause: str = ""
    verdicts: Sequence[VerdictNote] = ()
    discarded: bool = False

    def text(self) -> str:
        message_id, subject = self.summary
        envelope = self.envelope if len(self.envelope) <= LONGEST_ENVELOPE else _cut(self.envelope)
        named = f',"message_id":{quote(message_id)}' if message_id else ""
        titled = f',"subject":{quote(subject_text(subject))}' if subject else ""
        return (
            f'{{"k":"accepted","at":{self.at!r},"id":"{self.queue_id}","size":{self.size}{named}{titled},'
            f'"envelope":{envelope}{self._more()}}}'
        )

    def _more(self) -> str:
        """What few messages have."""
        if self.held is None and not self.verdicts and not self.discarded:
            return ""
        parts = []
        if self.held is not None:
            parts.append(f',"held":{quote(self.held[:_LONGEST_TEXT])},"cause":{quote(self.cause)}')
        if self.verdicts:
            parts.append(f',"verdicts":{json.dumps([_verdict(each) for each in self.verdicts])}')
        if self.discarded:
            parts.append(',"discarded":true')
        return "".join(parts)

    def words(self) -> Sequence[str]:
        client, message_id = self.client, self.summary.message_id
        found = [client.ip, word_of(self.sender)]
        if message_id:
            found.append(message_id[1:-1].strip().lower() if message_id[0] == "<" else normal(message_id))
        if client.user:
            found.append(normal(client.user))
        for recipient in self.recipients[:MOST_WORDS]:
            found.append(word_of(recipient.address))
            if recipient.orcpt:
                found.append(normal(recipient.orcpt.partition(";")[2]))
        return found


@dataclass(slots=True, eq=False)
class Attempted(HistoryEvent):
    """What came of an attempt. ``before`` is how many outcomes the message had.

    With ``held`` the recipients that failed are kept on hold.
    """

    recorded: Sequence[Place]
    before: int
    retry_at: float | None
    held: str | None
    cause: str

    @property
    def is_kept(self) -> bool:
        """The first attempts are written down, and what ends something."""
        if self.ended or self.held is not None or self.before < MOST_ATTEMPTS * max(1, len(self.recorded)):
            return True
        return any(outcome.status is Status.DELIVERED for outcome, _ in self.recorded)

    def text(self) -> str:
        """The event as JSON: an object for each reply, with commas between them."""
        if len(self.recorded) == 1 and self.held is None:
            return self._reply(self.recorded, cut=False)
        groups: dict[tuple[object, ...], list[Place]] = {}
        for place in self.recorded:
            outcome = place[0]
            group: tuple[object, ...] = (
                outcome.status,
                outcome.code,
                outcome.text,
                outcome.reason,
                outcome.next_hop,
            )
            if group not in groups and len(groups) >= _MOST_REPLIES:
                group = (outcome.status, outcome.reason)
            groups.setdefault(group, []).append(place)
        said = [self._reply(group, cut=len(by) == 2) for by, group in groups.items()]
        if self.held is not None:
            said.append(
                f'{{"k":"hold","at":{self.at!r},"by":{quote(self.cause)},'
                f'"reason":{quote(self.held[:_LONGEST_TEXT])}}}'
            )
        return ",".join(said)

    def _reply(self, group: Sequence[Place], *, cut: bool) -> str:
        outcome = group[0][0]
        text = "(other replies are not kept)" if cut else outcome.text[:_LONGEST_TEXT]
        final = outcome.status is Status.DELIVERED or (outcome.status is Status.FAILED and self.held is None)
        to = ",".join([quote(str(each.recipient)) for each, _ in group[:_MOST_NAMED]])
        code, seconds = outcome.code, round(outcome.seconds, 3)
        head = f'{{"k":"attempt","at":{outcome.at!r},"status":"{outcome.status.value}","code":{code}'
        parts = [
            head,
            f',"enhanced":{quote(outcome.enhanced)},"text":{quote(text)},"route":{quote(outcome.route)}',
            f',"hop":{quote(outcome.next_hop)},"seconds":{seconds!r},"to":[{to}],"places":"{ranges(group)}"',
            f',"n":{self.before + len(self.recorded)}',
        ]
        if final:
            parts.append(f',"end":{quote(end_of(outcome))}')
        elif self.retry_at is not None and outcome.status is Status.DEFERRED:
            parts.append(f',"next":{self.retry_at!r}')
        parts.append("}")
        return "".join(parts)

    def words(self) -> Sequence[str]:
        """What the next hops may call the message."""
        found: list[str] = []
        last = None
        for outcome, _ in self.recorded:
            if outcome.status is Status.DELIVERED and outcome.text != last:
                last = outcome.text
                found += words_of_reply(last)
                if len(found) > MOST_WORDS:
                    break
        return found


@dataclass(slots=True, eq=False)
class Changed(HistoryEvent):
    """An operator did something to a message: hold, release, retry or delete. ``by`` is the operator."""

    action: str
    by: str
    reason: str

    def text(self) -> str:
        return (
            f'{{"k":{quote(self.action)},"at":{self.at!r},"by":{quote(self.by[:_LONGEST_TEXT])},'
            f'"reason":{quote(self.reason[:_LONGEST_TEXT])}}}'
        )


HistoryEntry = tuple[int, float, bool, bool, str, tuple[int, ...]]
"""An event as it is handed to the thread that writes: the key of its message, its time, whether that ended,
whether it is new, JSON, and the keys of its words. The garbage collector has nothing to do with it."""


def entry_of(event: HistoryEvent) -> HistoryEntry:
    """What is written of an event."""
    return event.key, event.at, event.ended, event.is_new, event.text(), keys_of(event.words())


def joined(one: HistoryEntry, other: HistoryEntry) -> HistoryEntry:
    """Two events of one message as one entry."""
    key, at, ended, new, data, keys = one
    _, later, ends, began, text, more = other
    data = f"{data},{text}" if data and text else data or text
    return key, max(at, later), ended or ends, new or began, data, tuple(dict.fromkeys((*keys, *more)))


def word_of(address: Address) -> str:
    """The word of an address; the same for all ways to write its domain, and for any case."""
    if not address:
        return ""
    domain = address.domain
    return f"{address.local.lower()}@{domain if domain.isascii() else canonical_domain(domain)}"


def end_of(outcome: Outcome) -> str:
    """What a final outcome is for its recipient: delivered, failed, or the reason of the failure."""
    return "delivered" if outcome.status is Status.DELIVERED else outcome.reason or "failed"


def ranges(group: Sequence[Place]) -> str:
    """Positions as ``0-4,7``."""
    if len(group) == 1 and len(group[0][1]) == 1:
        return str(group[0][1][0])
    return _ranges(sorted({position for _, positions in group for position in positions}))


def _ranges(positions: Collection[int]) -> str:
    parts: list[list[int]] = []
    for position in positions:
        if parts and parts[-1][1] == position - 1:
            parts[-1][1] = position
        else:
            parts.append([position, position])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def positions_of(text: str) -> list[int]:
    """The positions of such ranges; none where they can't be read."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not (first.isdigit() and (last or "0").isdigit()):
            return []
        found.extend(range(int(first), min(int(last or first), int(first) + 100_000) + 1))
    return found


def _verdict(note: VerdictNote) -> dict[str, Any]:
    parts: dict[str, Any] = {"stage": note.stage, "policy": note.policy, "verdict": note.verdict}
    if note.reason:
        parts["reason"] = note.reason[:_LONGEST_TEXT]
    if note.recipient:
        parts["recipient"] = note.recipient[:_LONGEST_TEXT]
    if note.observed:
        parts["observed"] = True
    return parts


def _cut(envelope: str) -> str:
    """An envelope with as many of its recipients as fit, and how many there were."""
    value = json.loads(envelope)
    kept: list[Any] = []
    left = LONGEST_ENVELOPE
    for recipient in value["to"]:
        left -= len(json.dumps(recipient)) + 1
        if left < 0:
            break
        kept.append(recipient)
    value["count"] = len(value["to"])
    value["to"] = kept
    return json.dumps(value, separators=(",", ":"))
