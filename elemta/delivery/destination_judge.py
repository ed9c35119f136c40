"""What an attempt says about its destination: that it answers, or is down, and when it is tried again."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from twisted.logger import Logger

from elemta.delivery.destinations import Destinations
from elemta.delivery.early_probes import EarlyProbes
from elemta.delivery.local_faults import broke_off, lacking, working
from elemta.delivery.routes import LOCAL
from elemta.delivery.settings import Retries
from elemta.outcome import Outcome, ReachedStage, Status, furthest
from elemta.runtime import SteadyWall

_log = Logger()


class DestinationJudge:
    """Blocks the destinations that can't be reached, and opens those that answer."""

    def __init__(
        self,
        clock: SteadyWall,
        destinations: Destinations,
        early_probes: EarlyProbes,
        retries: Retries,
    ) -> None:
        self.retries = retries
        self._clock = clock
        self._destinations = destinations
        self._early_probes = early_probes

    def judged(
        self, destination: str, carried: Sequence[Outcome], epoch: int, started: float
    ) -> float | None:
        """Note how the destination did; when it is to be tried again, if it decides that. Never fails."""
        try:
            return self._judge(destination, carried, epoch, started)
        except Exception:
            # What is thought of a destination costs no record.
            _log.failure(
                "a destination could not be judged",
                event="delivery.judgement_failed",
                destination=destination,
            )
            return None

    def _judge(
        self, destination: str, carried: Sequence[Outcome], epoch: int, started: float
    ) -> float | None:
        if destination == LOCAL:
            return None
        now = self._clock.seconds()
        if furthest(carried) is ReachedStage.NOWHERE:
            down = self._destinations.failed(destination, epoch, started)
        elif broke_off(carried):
            down = self._destinations.broke_off(destination) and self._destinations.failed(
                destination, epoch, started
            )
        else:
            self._note_answer(destination, carried, now)
            return None
        if down:
            answered_before = self._destinations.answered_before(destination)
            self._block(destination, carried[0], now)
            self._early_probes.failed(destination, lacking(carried), started, answered_before=answered_before)
        found = self._destinations.find(destination)
        if found is None or not found.failures:
            return None
        # While an operator has paused the destination, its back-off goes on.
        return found.shut_until if found.shut_until < inf else found.regular_probe

    def _note_answer(self, destination: str, carried: Sequence[Outcome], now: float) -> None:
        works = working(carried)
        if works:
            names_known = self._destinations.is_answering(destination)
            self._early_probes.answered(works, now, names_known=names_known)
        delivered = any(outcome.status is Status.DELIVERED for outcome in carried)
        if self._destinations.answered(destination, now, delivered=delivered):
            self._early_probes.forget(destination)
            _log.info("a destination is back", event="delivery.destination_reopened", destination=destination)

    def _block(self, destination: str, reason: Outcome, now: float) -> None:
        # A probe before its time, of an operator, does not move its back-off.
        regular = self._destinations.regular_probe(destination, now)
        failures = self._destinations.failures(destination) + (regular is None)
        until = self.retries.next_probe(failures, now) if regular is None else regular
        self._destinations.block(destination, until, reason, early=regular is not None)
        _log.info(
            "a destination is down; its mail waits",
            event="delivery.destination_blocked",
            destination=destination,
            next_hop=reason.next_hop,
            failures=failures,
            seconds=round(until - now, 1),
            reason=reason.text,
        )
