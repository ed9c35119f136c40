"""What an attempt says about its destination: that it answers, or is down, and when it is tried again."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from twisted.logger import Logger

from elemta.delivery.destinations import Destinations
from elemta.delivery.early_probes import EarlyProbes
from elemta.delivery.local_faults import broke_off, lacking, working
from elemta.delivery.routes import LOCAL
from elemta.delivery.settings import DeliverySettings
from elemta.delivery.shared_outages import SharedOutages
from elemta.outcome import LocalFault, Outcome, ReachedStage, Status, all_delivered, furthest
from elemta.runtime import SteadyWall

_log = Logger()


class DestinationJudge:
    """Blocks the destinations that can't be reached, and opens those that answer."""

    def __init__(
        self,
        clock: SteadyWall,
        destinations: Destinations,
        early_probes: EarlyProbes,
        settings: DeliverySettings,
        outages: SharedOutages | None,
    ) -> None:
        self._retries = settings.retries
        self._clock = clock
        self._destinations = destinations
        self._early_probes = early_probes
        # None where this process has no other workers beside it.
        self._outages = outages

    def start(self) -> None:
        """Hear of what the host's other workers find, from now on."""
        if self._outages is not None:
            self._outages.start()

    def stop(self) -> None:
        """Forget what is down, and hear of nothing more."""
        self._early_probes.clear()
        if self._outages is not None:
            self._outages.stop()

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Use these from now on; all destinations are tried again."""
        self._retries = settings.retries
        self._early_probes.clear()
        if self._outages is not None:
            self._outages.clear()

    def judged(
        self, destination: str, outcomes: Sequence[Outcome], epoch: int, started: float
    ) -> float | None:
        """Note how the destination did; when it is to be tried again, if it decides that. Never fails."""
        try:
            return self._judge(destination, outcomes, epoch, started)
        except Exception:
            # What is thought of a destination costs no record.
            _log.failure(
                "a destination could not be judged",
                event="delivery.judgement_failed",
                destination=destination,
            )
            return None

    def _judge(
        self, destination: str, outcomes: Sequence[Outcome], epoch: int, started: float
    ) -> float | None:
        if destination == LOCAL:
            return None
        now = self._clock.seconds()
        if all_delivered(outcomes):
            self._note_answer(destination, outcomes, now, delivered=True)
            return None
        if furthest(outcomes) is ReachedStage.NOWHERE:
            down = self._destinations.failed(destination, epoch, started)
        elif broke_off(outcomes):
            down = self._destinations.broke_off(destination) and self._destinations.failed(
                destination, epoch, started
            )
        else:
            delivered = any(outcome.status is Status.DELIVERED for outcome in outcomes)
            self._note_answer(destination, outcomes, now, delivered=delivered)
            return None
        if down:
            answered_before = self._destinations.answered_before(destination)
            self._block(destination, outcomes[0], now, started)
            self._early_probes.failed(
                destination, lacking(outcomes), started, answered_before=answered_before
            )
        found = self._destinations.find(destination)
        if found is None or not found.failures:
            return None
        # While an operator has paused the destination, its back-off goes on.
        return found.shut_until if found.shut_until < inf else found.regular_probe

    def _note_answer(
        self, destination: str, outcomes: Sequence[Outcome], now: float, *, delivered: bool
    ) -> None:
        works = working(outcomes)
        if works is not LocalFault.NONE:
            names_known = self._destinations.is_answering(destination)
            self._early_probes.answered(works, now, names_known=names_known)
        if self._destinations.answered(destination, now, delivered=delivered):
            self._early_probes.forget(destination)
            if self._outages is not None:
                self._outages.found_up(destination)
            _log.info("a destination is back", event="delivery.destination_reopened", destination=destination)

    def _block(self, destination: str, reason: Outcome, now: float, started: float) -> None:
        # A probe before its time, of an operator, does not move its back-off.
        regular = self._destinations.regular_probe(destination, now)
        failures = self._destinations.failures(destination) + (regular is None)
        until = self._retries.next_probe(failures, now) if regular is None else regular
        self._destinations.block(destination, until, reason, early=regular is not None)
        if self._outages is not None:
            self._outages.found_down(destination, until, failures, reason, started)
        _log.info(
            "a destination is down; its mail waits",
            event="delivery.destination_blocked",
            destination=destination,
            next_hop=reason.next_hop,
            failures=failures,
            seconds=round(until - now, 1),
            reason=reason.text,
        )
