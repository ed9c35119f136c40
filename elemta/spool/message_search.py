"""Finding messages by what a person knows of them, in the history and in the queue of this node's spools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from elemta.address import unquoted_local
from elemta.errors import SpoolError, UnknownMessage, UnknownPlace
from elemta.history.finder import Sought
from elemta.history.lives import (
    LifeAttempt,
    LifeRecipient,
    MessageLife,
    RecordedLife,
    life_of,
)
from elemta.history.words import normal, remote_id
from elemta.mailbox import canonical_domain
from elemta.outcome import Outcome, Status
from elemta.spool.filters import QueueFilter
from elemta.spool.queue_id import row_key
from elemta.spool.records import MessageRecord
from elemta.spool.spool import Spool
from elemta.spool.waits import leading, next_attempt_of, shown_hold_reason

MOST_FOUND = 100
"""Messages of one page."""


@dataclass(frozen=True, slots=True)
class FoundMessages:
    """A page of lives, the newest record first; ``next`` is the ``after`` of the next page, None at the end.

    Without ``history`` only the queue was looked through.
    """

    messages: tuple[MessageLife, ...]
    next: str | None
    history: bool


class MessageSearch:
    """Searches the spool ``own`` and what ``others()`` gives at the moment, one after the other."""

    def __init__(self, own: Spool, others: Callable[[], Sequence[Spool]]) -> None:
        self._own = own
        self._others = others

    async def find(self, text: str, limit: int, after: str | None) -> FoundMessages:
        """A page of the messages that a text names. HistoryError, SpoolError."""
        spools = [self._own, *self._others()]
        number, place = _place(after)
        found: list[MessageLife] = []
        history = False
        while number < len(spools):
            page = await _SpoolSearch(spools[number]).find(text, limit - len(found), place)
            found += page.messages
            history |= page.history
            if page.next is not None:
                return FoundMessages(tuple(found), f"{number}:{page.next}", history)
            number, place = number + 1, None
            if len(found) >= limit and number < len(spools):
                return FoundMessages(tuple(found), f"{number}:", history)
        return FoundMessages(tuple(found), None, history)


def sought_by(text: str) -> Sought:
    """What a text may name: an address, an id or an IP address, whatever its case and its brackets."""
    word = normal(text)
    words = {word: None}
    local, at, domain = word.rpartition("@")
    if at:
        # An address is kept as it is meant, and shown in quotes where it needs them; a Message-ID has them.
        for spelling in (local, unquoted_local(local)):
            words[f"{spelling}@{canonical_domain(domain)}"] = None
    return Sought(tuple(each for each in words if each), row_key(word.upper()))


class _SpoolSearch:
    """One question to one spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    async def find(self, text: str, limit: int, after: str | None) -> FoundMessages:
        sought, history = sought_by(text), self._spool.history
        if history is None or history.keep <= 0:
            return await self._in_queue(sought, limit)
        page = await history.find(sought, limit, after)
        found = [await self._with_queue(each, history.oldest_end) for each in page.lives]
        lives = [life for life in found if life is not None]
        if not lives and after is None and sought.message is not None:
            # What the history could not keep may be in the queue all the same.
            lives = await self._by_id(sought)
        return FoundMessages(tuple(lives), page.after, True)

    async def _in_queue(self, sought: Sought, limit: int) -> FoundMessages:
        """What the queue alone knows: ids and addresses."""
        lives = await self._by_id(sought)
        for word in sought.words if not lives else ():
            for chosen in (QueueFilter(sender=word), QueueFilter(recipient=word)):
                listing = await self._spool.find(chosen, limit)
                for summary in listing.messages:
                    known = any(each.queue_id == summary.queue_id for each in lives)
                    record = None if known else await self._record(summary.queue_id)
                    if record is not None and len(lives) < limit:
                        lives.append(self._life(record))
        return FoundMessages(tuple(lives), None, False)

    async def _by_id(self, sought: Sought) -> list[MessageLife]:
        if sought.message is None:
            return []
        record = await self._record(sought.words[0].upper())
        return [] if record is None else [self._life(record)]

    async def _record(self, queue_id: str) -> MessageRecord | None:
        try:
            return await self._spool.show(queue_id)
        except UnknownMessage:
            return None
        except SpoolError:
            # It can't be read; the history still says what it knows.
            return None

    async def _with_queue(self, recorded: RecordedLife, oldest_end: float) -> MessageLife | None:
        """What the queue says of a message that is in it outweighs what was recorded."""
        life = life_of(recorded)
        if life.state == "ended":
            return life
        record = await self._record(life.queue_id) if life.queue_id else None
        if record is None:
            if recorded.is_over(oldest_end):
                return None
            ended = tuple(
                replace(each, status="unknown") if each.status == "pending" else each
                for each in life.recipients
            )
            return replace(life, recipients=ended)
        return replace(
            life,
            state=record.state.value,
            hold_reason=shown_hold_reason(record.state, record.message.hold_reason),
            next_attempt_at=next_attempt_of(record),
            reason=_reason(record),
        )

    def _life(self, record: MessageRecord) -> MessageLife:
        """The life of a message that only the queue knows."""
        envelope = record.envelope
        return MessageLife(
            node_id=self._spool.settings.node,
            queue_id=record.queue_id,
            message_id="",
            subject="",
            sender=str(envelope.sender),
            recipients=tuple(
                _recipient(str(each.recipient.address), each.outcome, pending=each.pending)
                for each in record.recipients
            ),
            recipient_count=len(record.recipients),
            client=envelope.client,
            size=envelope.size,
            received_at=envelope.received_at,
            ended_at=None,
            state=record.state.value,
            hold_reason=shown_hold_reason(record.state, record.message.hold_reason),
            next_attempt_at=next_attempt_of(record),
            reason=_reason(record),
            verdicts=(),
            attempts=tuple(_attempt(outcome) for _, outcome in record.history),
            attempt_count=max((number for number, _ in record.history), default=0),
            changes=(),
            cut=("the history does not have it; the queue does",),
        )


def _reason(record: MessageRecord) -> str:
    """Why the part that moves first waits."""
    first = leading(record.parts)
    return "" if first is None else first.reason


def _recipient(address: str, outcome: Outcome | None, *, pending: bool) -> LifeRecipient:
    if outcome is None:
        return LifeRecipient(address, "pending")
    delivered = outcome.status is Status.DELIVERED
    return LifeRecipient(
        address,
        "pending" if pending else outcome.status.value,
        outcome.at,
        outcome.code,
        outcome.enhanced,
        outcome.text,
        remote_id(outcome.text) if delivered else "",
        outcome.next_hop,
    )


def _attempt(outcome: Outcome) -> LifeAttempt:
    delivered = outcome.status is Status.DELIVERED
    return LifeAttempt(
        outcome.at,
        (str(outcome.recipient),),
        1,
        outcome.status.value,
        outcome.code,
        outcome.enhanced,
        outcome.text,
        remote_id(outcome.text) if delivered else "",
        outcome.route,
        outcome.next_hop,
        outcome.seconds,
        None,
        None,
    )


def _place(after: str | None) -> tuple[int, str | None]:
    number, colon, place = (after or "0:").partition(":")
    if not colon or not number.isdigit() or len(number) > 4:
        raise UnknownPlace(f"{after!r} is no place in the history")
    return int(number), place or None
