"""The listeners for new and due messages, and the plan of a new one's parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from twisted.logger import Logger

from elemta.envelope import Envelope
from elemta.spool.operations import NewMessage
from elemta.spool.records import MessageState, Plan, PlannedPart, QueuedMessage, Submission

_log = Logger()


def one_part(submission: Submission) -> Sequence[PlannedPart]:
    """All recipients in the destination without a name: delivery finds out where they go."""
    return (PlannedPart("", submission.received_at),)


class QueueListeners:
    """Tells without fail: a listener's own trouble stays its own."""

    def __init__(self) -> None:
        self.committed: list[Callable[[QueuedMessage], None]] = []
        self.due: list[Callable[[Collection[str]], None]] = []
        self.settled: list[Callable[[], None]] = []
        self.plan: Plan = one_part

    def planned(self, submission: Submission) -> Sequence[PlannedPart]:
        """The parts of a new message; whatever the plan does, each recipient is in one."""
        try:
            parts = self.plan(submission)
            if len(parts) == 1 and parts[0].positions is None:
                return parts
            _check(parts, len(submission.recipients))
        except Exception:
            _log.failure("a new message's parts could not be planned", event="spool.plan_failed")
            return one_part(submission)
        return parts

    def notify_committed(self, operation: NewMessage, envelope: Envelope) -> None:
        """A new active message is on stable storage."""
        if not self.committed:
            return
        everyone = envelope.recipients
        for number, part in enumerate(operation.parts):
            places = part.positions
            pending = everyone if places is None else tuple(everyone[place] for place in places)
            message = QueuedMessage(
                envelope,
                MessageState.ACTIVE,
                0,
                pending,
                part.turn,
                part=number,
                destination=part.destination,
            )
            for listener in self.committed:
                try:
                    listener(message)
                except Exception:
                    _log.failure("a listener of the spool failed", event="spool.listener_failed")

    def notify_due(self, destinations: Collection[str]) -> None:
        """Something in these destinations became due otherwise than by time."""
        for listener in self.due:
            try:
                listener(destinations)
            except Exception:
                _log.failure("a listener of the spool failed", event="spool.listener_failed")

    def notify_settled(self) -> None:
        """What could not be written for a while is written."""
        for listener in self.settled:
            try:
                listener()
            except Exception:
                _log.failure("a listener of the spool failed", event="spool.listener_failed")


def _check(parts: Sequence[PlannedPart], recipients: int) -> None:
    places = sorted(place for part in parts for place in part.positions or ())
    if places != list(range(recipients)):
        raise ValueError(f"the parts {parts!r} are not of {recipients} recipients each once")
