"""Messages that are not attempted: their senders get notices of the delay and of the end."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.delivery.delivery_record import let_observers_keep, tell_ended
from elemta.delivery.destination import Key
from elemta.delivery.destinations import Destinations
from elemta.delivery.faulty_parts import RecentFaults, hold_faulty
from elemta.delivery.notices import FollowUp, dated, follow_up, notice_settings, notices_of, tell
from elemta.delivery.queue import DeliveryQueue, why_unreadable
from elemta.delivery.settings import DeliverySettings
from elemta.envelope import Recipient
from elemta.errors import SpoolFull, UnknownMessage
from elemta.outcome import Outcome, Status
from elemta.spool.records import ArrivalPage, HeldPart, QueuedMessage

_log = Logger()

# Messages that one look at the oldest ones takes in.
_PAGE = 500
# Messages for which something is done at the same time, so that they share the commits of the spool.
_TOGETHER = 50
_WAITS = "it waits for its turn"
_BEHIND_OTHERS = "it waits behind other messages, which the next hop does not confirm"
_HELD_TOO_LONG = "it was kept here, and could not be delivered for as long as mail is kept"
# After a start what is due in open destinations is expected to leave; seconds.
_CATCHING_UP = 60.0
# A destination is as good as down where those under way keep others from an attempt for so long; seconds.
_STALLED = 300.0


class ExpiryScanner:
    """Walks the queue from its old end.

    A message in a destination that is shut is not attempted, so here it expires when its time has come;
    one in an open destination has a last attempt instead, unless those before it do not come to an end.
    Delays are reported here, whatever the destination does, but for messages whose attempt is near or under
    way: the attempt reports the delay, if it has to.
    """

    def __init__(self, queue: DeliveryQueue, destinations: Destinations, settings: DeliverySettings) -> None:
        self.settings = settings
        # As they are by the clock of the walk that goes on.
        self._in_force = settings
        self._queue = queue
        self._destinations = destinations
        self._notified_up_to = -1
        self._caught_up_at = 0.0
        # Where pages begin that had messages for which an attempt was near.
        self._again: set[int] = set()
        self._walking = False
        self._attempted: set[str] = set()
        self._notifying: set[Key] = set()
        self._giving_up: set[Key] = set()
        # The parts of both that something is being done about at this moment.
        self._at_work: set[Key] = set()
        # By queue id.
        self._faults: RecentFaults[str] = RecentFaults()

    def started(self, now: float) -> None:
        """Delivery begins at ``now``: what is late only because nothing ran leaves without a word."""
        self._caught_up_at = now + _CATCHING_UP

    def attempted(self, message: QueuedMessage) -> None:
        """An attempt for the message is over, so that what was read of it before is no longer so."""
        if (self._notifying or self._giving_up) and message.key not in self._at_work:
            self._notifying.discard(message.key)
            self._giving_up.discard(message.key)
        if self._walking:
            self._attempted.add(message.queue_id)

    def tells(self, message: QueuedMessage) -> bool:
        """Whether a notice of the delay is under way, or was sent since the message was read."""
        return message.key in self._notifying

    def gives_up(self, message: QueuedMessage) -> bool:
        """Whether this part is being given up, or was since it was read: no attempt is to be made."""
        return message.key in self._giving_up

    async def walk(self, now: float, goes_on: Callable[[], bool], *, ahead: float = 0.0) -> None:
        """Expire and tell what is due by age. ``goes_on`` is asked between two messages. SpoolError.

        ``now`` is by a clock that is so many seconds ``ahead`` of the one by which mail was received.
        """
        self._walking = True
        self._in_force = self.settings.for_a_clock_ahead(ahead)
        try:
            try:
                await self._expire(now, goes_on)
            finally:
                # On a full disk no notice can be queued: what ends without one makes space for it.
                await self._end_holds(now, goes_on)
            if self._in_force.warn_after > 0:
                await self._send_delay_notices(now, goes_on)
        finally:
            self._walking = False
            self._attempted.clear()

    async def _expire(self, now: float, goes_on: Callable[[], bool]) -> None:
        place, more = -1, True
        while more:
            self._attempted.clear()
            page = await self._queue.older(now - self._in_force.retries.expire, place, _PAGE)
            place, more = page.after, page.more
            for some in _some_together(page.messages):
                if not goes_on():
                    return
                await self._each(some, now, lambda parts: self._expire_message(parts, now))

    async def _expire_message(self, parts: Sequence[QueuedMessage], now: float) -> None:
        shut = [part for part in parts if self._is_not_attempted(part, now)]
        if shut:
            with self._marked(shut, self._giving_up):
                try:
                    await self._give_up(shut, now)
                except Exception as error:
                    if not self._is_second_fault(shut[0].queue_id, error):
                        raise
                    await self._hold_faulty(shut, error)

    async def _hold_faulty(self, parts: Sequence[QueuedMessage], error: Exception) -> None:
        """Put on hold what can't be given up: so it ends all the same, with a notice if possible."""
        _log.failure(
            "a message could not be given up; it is put on hold",
            event="delivery.message_held",
            queue_id=parts[0].queue_id,
        )
        for part in parts:
            await hold_faulty(self._queue, part, (), "it could not be given up", error)

    def _is_second_fault(self, queue_id: str, error: Exception) -> bool:
        """Whether something goes wrong with this one message, and not for the first time."""
        return not self._concerns_all(error) and queue_id in self._faults

    def _concerns_all(self, error: Exception) -> bool:
        return isinstance(error, SpoolFull | UnknownMessage) or not self._queue.healthy

    async def _end_holds(self, now: float, goes_on: Callable[[], bool]) -> None:
        """Let go what others put on hold, once it was there for as long as mail is kept."""
        seen: frozenset[Key] = frozenset()
        while goes_on():
            page = await self._queue.held(now - self._in_force.retries.expire, _PAGE)
            found = sorted(page, key=lambda held: held.hold.tells_sender)
            holds = {held.message.key: held for held in found}
            end = partial(self._end_hold_of, holds, now)
            for start in range(0, len(found), _TOGETHER):
                if not goes_on():
                    return
                some = found[start : start + _TOGETHER]
                await self._each([[held.message] for held in some], now, end)
            if len(found) < _PAGE or holds.keys() == seen:
                return
            seen = frozenset(holds)

    async def _end_hold_of(
        self, holds: Mapping[Key, HeldPart], now: float, parts: Sequence[QueuedMessage]
    ) -> None:
        await self._end_hold(holds[parts[0].key], now)

    async def _end_hold(self, held: HeldPart, now: float) -> None:
        message, date = held.message, self._date(now)
        outcomes = [
            Outcome(
                message.queue_id, each.address, Status.FAILED, _HELD_TOO_LONG, "", "", date, enhanced="5.4.7"
            )
            for each in message.pending
        ]
        returned = False
        if held.hold.tells_sender:
            try:
                returned = await self._tell(message, outcomes, now)
            except Exception as error:
                if not self._is_second_fault(message.queue_id, error):
                    raise
                _log.failure(
                    "no notice about a message that was kept too long could be made",
                    event="delivery.sender_not_notified",
                    queue_id=message.queue_id,
                    sender=str(message.envelope.sender),
                )
        await let_observers_keep(self._queue, message, outcomes, "expired")
        await self._queue.end_hold(held, outcomes, "returned" if returned else "removed")
        tell_ended(self._queue, message, outcomes, "expired")

    def _is_not_attempted(self, part: QueuedMessage, now: float) -> bool:
        """Whether no attempt for the part is under way or may begin now: its destination is down, it waits
        for a limit, in the spool or in memory, or the attempts before it do not end."""
        if part.queue_id in self._attempted:
            return False
        if not self._destinations.is_shut(part.destination, now) and not self._is_stalled(part, now):
            return False
        return not self._destinations.is_known(part) or self._destinations.waits_in_memory(part)

    def _is_stalled(self, part: QueuedMessage, now: float) -> bool:
        longest = min(_STALLED, self._in_force.retries.expire)
        return self._destinations.is_stalled(part.destination, now, longest)

    def _is_attempted(self, part: QueuedMessage) -> bool:
        """Whether an attempt is under way or is the next, or was made since the part was read."""
        return part.queue_id in self._attempted or self._destinations.is_known(part)

    def _is_near(self, part: QueuedMessage, now: float) -> bool:
        """Whether an attempt is near or under way, or was made since the part was read."""
        destination = part.destination
        if self._is_stalled(part, now) and self._is_not_attempted(part, now):
            return False
        soon = self._destinations.is_due(destination, now) if now < self._caught_up_at else False
        return soon or self._destinations.is_about_to_load(destination, now) or self._is_attempted(part)

    async def _send_delay_notices(self, now: float, goes_on: Callable[[], bool]) -> None:
        for place in sorted(self._again):
            await self._notify_page(place, now, goes_on)
        page = await self._notify_page(self._notified_up_to, now, goes_on)
        while page.more and goes_on():
            self._notified_up_to = page.after
            page = await self._notify_page(self._notified_up_to, now, goes_on)
        if goes_on():
            self._notified_up_to = page.after

    async def _notify_page(self, place: int, now: float, goes_on: Callable[[], bool]) -> ArrivalPage:
        self._again.discard(place)
        self._attempted.clear()
        page = await self._queue.older(now - self._in_force.warn_after, place, _PAGE, unwarned=True)
        for some in _some_together(page.messages):
            if not goes_on():
                break
            await self._each(some, now, lambda parts: self._notify_of_message(parts, place, now))
            if any(parts[0].queue_id in self._faults for parts in some):
                self._again.add(place)
        return page

    async def _each(
        self,
        messages: Sequence[Sequence[QueuedMessage]],
        now: float,
        work: Callable[[Sequence[QueuedMessage]], Coroutine[Deferred[Any], Any, None]],
    ) -> None:
        """Do this for each message at the same time; what goes wrong with one is no trouble of the others.

        SpoolError: the spool's disk fails or is full, so that nothing can be done for any of them.
        """
        await _all(self._one(parts, now, work) for parts in messages)

    async def _one(
        self,
        parts: Sequence[QueuedMessage],
        now: float,
        work: Callable[[Sequence[QueuedMessage]], Coroutine[Deferred[Any], Any, None]],
    ) -> None:
        queue_id = parts[0].queue_id
        if self._faults.is_left_alone(queue_id, now):
            return
        try:
            await work(parts)
        except UnknownMessage:
            return  # it left meanwhile
        except Exception as error:
            if self._concerns_all(error):
                raise
            self._note_failure(parts, now)
        else:
            self._faults.forget(queue_id)

    def _note_failure(self, parts: Sequence[QueuedMessage], now: float) -> None:
        """Leave a message alone for a while that something goes wrong with."""
        queue_id, again = parts[0].queue_id, now + self._in_force.retries.delays[0]
        _log.failure(
            "a message could not be given up, or no notice of its delay sent",
            event="queue.expiry_failed",
            queue_id=queue_id,
        )
        self._faults.note(queue_id, again)
        for part in parts:
            # An attempt that came meanwhile was put off in favour of this.
            self._destinations.due_at(part.destination, again)

    async def _notify_of_message(self, parts: Sequence[QueuedMessage], place: int, now: float) -> None:
        if any(self._is_near(part, now) for part in parts):
            self._again.add(place)
        elif now < parts[0].envelope.received_at + self._in_force.retries.expire:
            with self._marked(parts, self._notifying):
                await self._send_delay_notice(parts, now)

    @contextmanager
    def _marked(self, parts: Sequence[QueuedMessage], marked: set[Key]) -> Iterator[None]:
        """Keep parts marked while something is done about them, and until what was read meanwhile is gone."""
        keys = [part.key for part in parts]
        marked.update(keys)
        self._at_work.update(keys)
        done = False
        try:
            yield
            done = True
        finally:
            self._at_work.difference_update(keys)
            # What was not done must not keep them from an attempt.
            marked.difference_update(
                part.key for part in parts if not done or not self._destinations.may_know(part)
            )

    async def _send_delay_notice(self, parts: Sequence[QueuedMessage], now: float) -> None:
        message, outcomes = await self._together(parts, now)
        await self._tell(message, outcomes, now)
        await self._queue.settle(message.queue_id, (), retry_at=None, hold_reason=None, warned=True)

    async def _give_up(self, parts: Sequence[QueuedMessage], now: float) -> None:
        """Tell the sender once, whatever the number of destinations, then record each part."""
        message, outcomes = await self._together(parts, now)
        unreadable = await why_unreadable(self._queue, message)
        following = follow_up(message, outcomes, self._in_force, now=now, unreadable=unreadable)
        await self._tell(message, outcomes, now)
        await _all(self._settle(part, outcomes, following) for part in parts)
        _log.info(
            "message given up",
            event="delivery.expired",
            queue_id=message.queue_id,
            recipients=len(outcomes),
            reason=outcomes[0].text if outcomes else "",
            hold_reason=following.hold_reason,
        )

    async def _tell(self, message: QueuedMessage, outcomes: Sequence[Outcome], now: float) -> bool:
        """Queue the notices that follow; whether there are any."""
        settings, ahead = notice_settings(self._in_force), self._in_force.ahead
        notices = notices_of(message, outcomes, settings, now, ahead=ahead)
        await tell(self._queue, notices, dated(settings, ahead))
        return bool(notices)

    async def _settle(self, part: QueuedMessage, outcomes: Sequence[Outcome], following: FollowUp) -> None:
        mine = [outcome for outcome in following.recorded(outcomes) if _is_for(part, outcome)]
        if following.hold_reason is None:
            await let_observers_keep(self._queue, part, mine)
        await self._queue.settle(
            part.queue_id,
            mine,
            part=part.part,
            retry_at=None,
            hold_reason=following.hold_reason,
            hold=following.hold,
        )
        if following.hold_reason is None:
            tell_ended(self._queue, part, mine)

    async def _together(
        self, parts: Sequence[QueuedMessage], now: float
    ) -> tuple[QueuedMessage, list[Outcome]]:
        """Parts of one message as one, and why its recipients still wait."""
        outcomes = [await self._last_outcome(part, who, now) for part in parts for who in part.pending]
        pending = tuple(who for part in parts for who in part.pending)
        return replace(parts[0], pending=pending, warned=False), outcomes

    def _date(self, now: float) -> float:
        """What people read as the time ``now``."""
        return now - self._in_force.ahead

    async def _last_outcome(self, message: QueuedMessage, recipient: Recipient, now: float) -> Outcome:
        """Why the recipient still waits: what its destination said last, or else the last reply about it."""
        reason, date = self._destinations.reason(message.destination), self._date(now)
        if reason is not None:
            return replace(
                reason, queue_id=message.queue_id, recipient=recipient.address, at=date, seconds=0.0
            )
        text = _BEHIND_OTHERS if self._is_stalled(message, now) else _WAITS
        # RFC 3463 §3.5 X.4.5
        waiting = Outcome(
            message.queue_id, recipient.address, Status.DEFERRED, text, "", "", date, enhanced="4.4.5"
        )
        return await self._recorded(message, recipient, waiting)

    async def _recorded(self, message: QueuedMessage, recipient: Recipient, waiting: Outcome) -> Outcome:
        try:
            record = await self._queue.show(message.queue_id)
        except UnknownMessage:
            return waiting
        for said in record.recipients:
            last = said.outcome
            if said.recipient == recipient and last is not None and last.status is Status.DEFERRED:
                return last
        return waiting


def _some_together(parts: Sequence[QueuedMessage]) -> Iterator[list[list[QueuedMessage]]]:
    """The parts by message, so many messages at a time."""
    messages = [list(group) for _, group in groupby(parts, key=lambda part: part.queue_id)]
    for start in range(0, len(messages), _TOGETHER):
        yield messages[start : start + _TOGETHER]


async def _all(works: Iterable[Coroutine[Deferred[Any], Any, None]]) -> None:
    """Do all of it at the same time. When everything is over, the first failure is raised."""
    doing = [Deferred.fromCoroutine(work) for work in works]
    for _, result in await DeferredList(doing, consumeErrors=True):
        if isinstance(result, Failure):
            result.raiseException()


def _is_for(part: QueuedMessage, outcome: Outcome) -> bool:
    return any(recipient.address == outcome.recipient for recipient in part.pending)
