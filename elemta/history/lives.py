"""The life of a message, put together from its records, whatever they are: nothing here raises."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elemta.address import Address
from elemta.envelope import Client
from elemta.history.events import positions_of, word_of
from elemta.history.words import normal, remote_id, words_of_reply

MOST_SHOWN = 100
"""Attempts and changes of one message that are shown: the first half and the last half of more."""


@dataclass(frozen=True, slots=True)
class LifeRecipient:
    """A recipient, and what is known to have become of it.

    ``status`` is ``pending`` while the message is queued, ``delivered``, ``failed``, ``expired``,
    ``bounced``, ``deleted``, ``discarded``, or ``unknown`` where the end is not recorded.
    """

    address: str
    status: str
    at: float | None = None
    code: int = 0
    enhanced: str = ""
    text: str = ""
    remote_id: str = ""
    next_hop: str = ""


@dataclass(frozen=True, slots=True)
class LifeAttempt:
    """What one attempt came to for ``count`` recipients; the first are named.

    ``end`` says what it was for them where it was the last: as the status of a recipient.
    """

    at: float
    recipients: tuple[str, ...]
    count: int
    status: str
    code: int
    enhanced: str
    text: str
    remote_id: str
    route: str
    next_hop: str
    seconds: float
    end: str | None
    next_attempt_at: float | None


@dataclass(frozen=True, slots=True)
class LifeChange:
    """A hold, release, retry or delete, and what or which operator did it."""

    at: float
    action: str
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class LifeVerdict:
    """What a policy said: about one ``recipient``, or the message. An ``observed`` one changed nothing."""

    stage: str
    policy: str
    verdict: str
    reason: str
    recipient: str
    observed: bool


@dataclass(frozen=True, slots=True)
class MessageLife:
    """All that is recorded of one message.

    ``state`` is that of the queue while it is queued, and ``reason`` why it waits then; later it is
    ``ended``, and ``unknown`` where it is not queued and its end is not recorded. Times are seconds since the
    epoch. ``attempt_count`` counts outcomes, one for each recipient of an attempt. ``cut`` says in words what
    is not shown.
    """

    node_id: str
    queue_id: str
    message_id: str
    subject: str
    sender: str
    recipients: tuple[LifeRecipient, ...]
    recipient_count: int
    client: Client
    size: int
    received_at: float | None
    ended_at: float | None
    state: str
    hold_reason: str | None
    next_attempt_at: float | None
    verdicts: tuple[LifeVerdict, ...]
    attempts: tuple[LifeAttempt, ...]
    attempt_count: int
    changes: tuple[LifeChange, ...]
    cut: tuple[str, ...]
    reason: str = ""


@dataclass(slots=True)
class RecordedLife:
    """The records of one message, the oldest first: the text of each, and whether it was the end."""

    message: int
    node: str
    texts: list[str] = field(default_factory=list)
    ended_at: float | None = None
    last_at: float = 0.0

    def is_over(self, oldest: float) -> bool:
        """Whether it is a remainder of a message whose end is gone: one that is queued is none."""
        return self.ended_at is None and self.last_at < oldest

    def add(self, node: str, at: float, ended: bool, data: str) -> None:
        """Take the next record; one that is there twice counts once."""
        self.node = self.node or node
        self.last_at = max(self.last_at, at)
        if data and data not in self.texts:
            self.texts.append(data)
        if ended:
            self.ended_at = at

    def events(self) -> list[Mapping[str, Any]]:
        """The events in their order."""
        found: list[Mapping[str, Any]] = []
        for text in self.texts:
            for event in events_of(text):
                if event not in found[-_LOOKED_BACK:]:
                    found.append(event)
        return found


_LOOKED_BACK = 200


def events_of(data: str) -> list[Mapping[str, Any]]:
    """The events of a record; none where it can't be read."""
    try:
        events = json.loads(f"[{data}]")
    except (ValueError, RecursionError):
        return []
    return [event for event in events if isinstance(event, dict)]


def words_of_data(data: str) -> list[str]:
    """The words by which a record is found."""
    found: list[str] = []
    for event in events_of(data):
        if event.get("k") == "accepted":
            found += _words_of_accepted(event)
        elif event.get("k") == "attempt" and event.get("status") == "delivered":
            found += words_of_reply(_text(event.get("text")))
    return list(dict.fromkeys(word for word in found if word))


def _words_of_accepted(event: Mapping[str, Any]) -> list[str]:
    envelope = _mapping(event.get("envelope"))
    client = _client(envelope)
    words = [client.ip, word_of(_address(envelope.get("from"))), normal(_text(event.get("message_id")))]
    words.append(normal(client.user or ""))
    for parts in _list(envelope.get("to")):
        words.append(word_of(_address(parts)))
        if isinstance(parts, list) and len(parts) > 3:
            words.append(normal(_text(parts[3]).partition(";")[2]))
    return words


def life_of(recorded: RecordedLife) -> MessageLife:
    """What is recorded, as it is shown. The queue may know more of a message that is still in it."""
    events = recorded.events()
    accepted = next((event for event in events if event.get("k") == "accepted"), {})
    envelope = _mapping(accepted.get("envelope"))
    addresses = [str(_address(parts)) for parts in _list(envelope.get("to"))]
    count = max(_int(envelope.get("count")), len(addresses))
    attempts = [event for event in events if event.get("k") == "attempt"]
    changes = [_change(event) for event in events if event.get("k") not in ("accepted", "attempt")]
    if "held" in accepted:
        at, cause = _float(accepted.get("at")), _text(accepted.get("cause"))
        changes.insert(0, LifeChange(at, "hold", cause, _text(accepted.get("held"))))
    ended_at = recorded.ended_at
    discarded = accepted.get("discarded") is True
    recipients = _recipients(
        addresses, attempts, ended="discarded" if discarded else _rest(changes, ended_at)
    )
    made = max((_int(event.get("n")) for event in attempts), default=0)
    kept = sum(_count(event) for event in attempts)
    return MessageLife(
        node_id=recorded.node,
        queue_id=_text(accepted.get("id")),
        message_id=_text(accepted.get("message_id")),
        subject=_text(accepted.get("subject")),
        sender=str(_address(envelope.get("from"))),
        recipients=tuple(recipients),
        recipient_count=count,
        client=_client(envelope),
        size=_int(accepted.get("size")),
        received_at=_float(accepted.get("at")) if accepted else None,
        ended_at=ended_at,
        state="unknown" if ended_at is None else "ended",
        hold_reason=None,
        next_attempt_at=None,
        verdicts=tuple(_verdict(each) for each in _list(accepted.get("verdicts"))),
        attempts=tuple(_shown([_attempt(event) for event in attempts])),
        attempt_count=max(made, kept),
        changes=tuple(_shown(changes)),
        cut=tuple(_cut(accepted, count - len(addresses), max(0, made - kept), len(attempts), len(changes))),
    )


def _cut(
    accepted: Mapping[str, Any], recipients: int, outcomes: int, attempts: int, changes: int
) -> Iterable[str]:
    if not accepted:
        yield "its acceptance is not recorded"
    if recipients > 0:
        yield f"{recipients} more recipients are not recorded"
    if outcomes > 0:
        yield f"{outcomes} outcomes of attempts are not recorded"
    for what, number in (("attempts", attempts), ("changes", changes)):
        if number > MOST_SHOWN:
            yield f"{number - MOST_SHOWN} {what} in the middle are not shown"


def _shown(all_of_them: Sequence[Any]) -> Sequence[Any]:
    if len(all_of_them) <= MOST_SHOWN:
        return all_of_them
    half = MOST_SHOWN // 2
    return [*all_of_them[:half], *all_of_them[-half:]]


def _rest(changes: Sequence[LifeChange], ended_at: float | None) -> str:
    """What became of recipients whose end no attempt says."""
    if any(change.action == "delete" for change in changes):
        return "deleted"
    return "pending" if ended_at is None else "unknown"


def _recipients(
    addresses: Sequence[str], attempts: Sequence[Mapping[str, Any]], *, ended: str
) -> list[LifeRecipient]:
    found: dict[int, Mapping[str, Any]] = {}
    for event in attempts:
        for position in positions_of(_text(event.get("places"))):
            if "end" not in found.get(position, {}):
                found[position] = event
    recipients = []
    for position, address in enumerate(addresses):
        if position not in found:
            recipients.append(LifeRecipient(address, ended))
            continue
        event = found[position]
        text = _text(event.get("text"))
        recipients.append(
            LifeRecipient(
                address,
                _text(event["end"]) if "end" in event else ended,
                _float(event.get("at")),
                _int(event.get("code")),
                _text(event.get("enhanced")),
                text,
                remote_id(text) if event.get("status") == "delivered" else "",
                _text(event.get("hop")),
            )
        )
    return recipients


def _count(event: Mapping[str, Any]) -> int:
    return len(positions_of(_text(event.get("places"))))


def _attempt(event: Mapping[str, Any]) -> LifeAttempt:
    text, status = _text(event.get("text")), _text(event.get("status"))
    return LifeAttempt(
        at=_float(event.get("at")),
        recipients=tuple(_text(each) for each in _list(event.get("to"))),
        count=_count(event),
        status=status,
        code=_int(event.get("code")),
        enhanced=_text(event.get("enhanced")),
        text=text,
        remote_id=remote_id(text) if status == "delivered" else "",
        route=_text(event.get("route")),
        next_hop=_text(event.get("hop")),
        seconds=_float(event.get("seconds")),
        end=_text(event["end"]) if "end" in event else None,
        next_attempt_at=_float(event["next"]) if "next" in event else None,
    )


def _change(event: Mapping[str, Any]) -> LifeChange:
    return LifeChange(
        _float(event.get("at")), _text(event.get("k")), _text(event.get("by")), _text(event.get("reason"))
    )


def _verdict(parts: Any) -> LifeVerdict:
    each = _mapping(parts)
    stage, policy, verdict = (_text(each.get(name)) for name in ("stage", "policy", "verdict"))
    reason, recipient = _text(each.get("reason")), _text(each.get("recipient"))
    return LifeVerdict(stage, policy, verdict, reason, recipient, each.get("observed") is True)


def _client(envelope: Mapping[str, Any]) -> Client:
    parts = [each if isinstance(each, str) else None for each in _list(envelope.get("client"))]
    ip, helo, listener, session_id, user, tls = (parts + [None] * 6)[:6]
    return Client(ip or "", helo or "", listener or "", session_id or "", user, tls)


def _address(parts: Any) -> Address:
    if isinstance(parts, list) and len(parts) >= 2:
        return Address(_text(parts[0]), _text(parts[1]), len(parts) in (3, 5))
    return Address("", "")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _int(value: Any) -> int:
    return value if type(value) is int else 0


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
