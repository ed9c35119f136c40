"""The service that empties the queue: takes what is due, has it delivered, and records what became of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import inf

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.delivery.attempt import AttemptRunner
from elemta.delivery.destination import Key
from elemta.delivery.destination_commands import DestinationCommands
from elemta.delivery.destination_judge import DestinationJudge
from elemta.delivery.destination_waits import DestinationWaits
from elemta.delivery.destinations import Destinations
from elemta.delivery.early_probes import EarlyProbes
from elemta.delivery.expiry import ExpiryScanner
from elemta.delivery.hop_memory import HopMemory
from elemta.delivery.mx import MailResolver
from elemta.delivery.outbound_limits import OutboundLimiter
from elemta.delivery.pool import HostSlots
from elemta.delivery.queue import DeliveryQueue
from elemta.delivery.queue_scans import AgeScan, DestinationScan, log_not_read
from elemta.delivery.router import router_of
from elemta.delivery.routes import Route
from elemta.delivery.settings import DeliverySettings
from elemta.delivery.shared_outages import shared_outages
from elemta.delivery.success_notices import SuccessNotices
from elemta.delivery.transports import Transports
from elemta.delivery.unsettled_parts import PartsSetAside, PartsUnderWay, SpoolStop, log_not_recorded
from elemta.errors import SpoolError
from elemta.metrics import DeliveryMetrics
from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.runtime import Runtime, SteadyWall
from elemta.spool.records import MessageState, PlannedPart, QueuedMessage, Submission

_log = Logger()

_LAST_WAIT = 5.0
# Attempts that are started in one turn of the reactor, and at the end of another attempt: many may end in
# one turn.
_STARTED_AT_ONCE = 20
_STARTED_AT_AN_END = 2
# How long after a fault of ours the queue is looked into anew.
_AFTER_A_FAULT = 1.0


class DeliveryScheduler(Service):
    """Delivers what is in the queue, at least once and never one message twice at the same time.

    A message that was just accepted is started without reading the disk; everything else is found by
    asking the queue what is due in the destinations that may go on. ``routes`` and ``settings`` can be
    replaced while it runs, by :meth:`reconfigure`; what is under way keeps what it began with.
    """

    name = "delivery"

    def __init__(
        self,
        runtime: Runtime,
        queue: DeliveryQueue,
        routes: Sequence[Route],
        settings: DeliverySettings,
        metrics: DeliveryMetrics | None = None,
        *,
        resolver: MailResolver | None = None,
        limiter: OutboundLimiter | None = None,
        hooks: DeliveryHooks | None = None,
        memory: HopMemory | None = None,
        host: HostSlots | None = None,
    ) -> None:
        self._runtime = runtime
        self._host = host
        self._reactor = runtime.reactor
        self._time = SteadyWall(runtime)
        self._queue = queue
        self._settings = settings
        self._metrics = metrics or DeliveryMetrics()
        self._resolver, self._limits, self._hooks = resolver, limiter, hooks
        self._memory = memory or HopMemory(runtime.reactor.seconds)
        self._router = router_of(routes, settings, hooks)
        self._destinations = Destinations(self._limit, settings.max_messages)
        self._expiry = ExpiryScanner(queue, self._destinations, settings)
        #: What operators do about destinations.
        self.commands = DestinationCommands(
            runtime.reactor, self._time, self._destinations, lambda: bool(self.running), self._look_soon
        )
        self._notices = SuccessNotices(self._time, queue, settings)
        #: What mail waits for, for operators.
        self.waits = DestinationWaits(
            self._time,
            self._destinations,
            router=lambda: self._router,
            attempts=lambda: self._attempts,
            under_way=lambda: self._under_way,
            transports=lambda: self._transports,
            limiter=limiter,
        )
        self._early_probes = EarlyProbes(
            runtime.reactor, self._time.seconds, self._probe_early, self._free_for_unknown
        )
        outages = shared_outages(self._time, self._destinations, host, self._look_soon)
        self._judge = DestinationJudge(self._time, self._destinations, self._early_probes, settings, outages)
        self._listing = DestinationScan(
            queue,
            self._destinations,
            lambda: bool(self.running),
            self._listed,
            longest_wait=settings.retries.longest_wait,
        )
        self._age_scan = AgeScan(
            runtime.reactor,
            self._time,
            self._notices,
            self._expiry,
            runs=self._may_scan,
            poll=settings.poll,
        )
        self._begin_anew()
        self._under_way = PartsUnderWay(runtime.reactor)
        self._set_aside = PartsSetAside()
        #: Whether a fault of ours may have spoiled what is known here of the queue.
        self._doubtful = False
        self._rests_until = 0.0
        self._spool_stop = SpoolStop(self._under_way)
        self._timer: IDelayedCall | None = None
        self._looking = False
        self._filling = False
        self._fill_call: IDelayedCall | None = None
        self._watch_call: IDelayedCall | None = None
        self._subscribed = False

    def _begin_anew(self) -> None:
        """What is used up by a stop: threads, connections and what waits for them."""
        # A file system that does not answer must not keep the process from ending.
        self._pool = self._runtime.threads.pool("delivery", self._settings.threads, daemon=True)
        self._transports = Transports(
            self._runtime,
            self._queue,
            self._pool,
            self._settings,
            self._metrics,
            resolver=self._resolver,
            hooks=self._hooks,
            limiter=self._limits,
            memory=self._memory,
            host=self._host,
        )
        self._attempts = AttemptRunner(
            self._time,
            self._queue,
            self._destinations,
            self._transports,
            expiry=self._expiry,
            judge=self._judge,
            router=self._router,
            settings=self._settings,
            limiter=self._limits,
            notices=self._notices,
        )
        self._used_up = False

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes in force."""
        return self._router.routes.routes

    @property
    def under_way(self) -> int:
        """How many messages, or parts of them, are being delivered now."""
        return len(self._under_way)

    def reconfigure(
        self, routes: Sequence[Route], settings: DeliverySettings, hooks: DeliveryHooks | None = None
    ) -> None:
        """Use these for every attempt from now on; destinations that were down are tried again."""
        self._settings, self._hooks = settings, hooks
        self._router = router_of(routes, settings, hooks)
        self._attempts.reconfigure(self._router, settings)
        self._judge.reconfigure(settings)
        self._expiry.settings = self._notices.settings = settings
        self._age_scan.poll = settings.poll
        self._transports.reconfigure(settings, hooks)
        self._pool.resize(settings.threads)
        self._destinations.places = settings.max_messages
        self.commands.probe_all()

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        if self._used_up:
            self._begin_anew()
        self._used_up = True
        self._pool.start()
        self._judge.start()
        self._queue.use_plan(self._plan)
        if not self._subscribed:
            self._subscribed = True
            self._queue.on_committed(self._committed)
            self._queue.on_due(self.commands.probe_due)
            self._queue.on_settled(self._look_soon)
        self._listing.start_anew()
        self._expiry.started(self._time.seconds())
        self._watch()
        self._arm(0.0)

    async def _stop(self, grace: float) -> None:
        for timer in (self._timer, self._fill_call, self._watch_call):
            if timer is not None and timer.active():
                timer.cancel()
        self._fill_call = None
        await self._age_scan.stop()
        ended = await self._under_way.wait_until_empty(grace)
        if not ended:
            _log.warn(
                "deliveries were cut off; their messages stay in the queue",
                event="delivery.abandoned",
                messages=len(self._under_way),
            )
            self._attempts.abandoned = True
            self._transports.abandon()
            ended = await self._under_way.wait_until_empty(_LAST_WAIT)
        await self._transports.stop()
        self._judge.stop()
        self._destinations.drop_all()
        self._set_aside.clear()
        if ended and not self._transports.has_stuck_thread:
            await self._pool.join()
        else:
            # A thread hangs in the file system of a Maildir, or in that of the spool.
            self._pool.leave()

    def stopService(self) -> Deferred[None]:
        """Start nothing more, wait for what is under way up to the grace, then cut it off."""
        return self.stop_within(self._settings.grace)

    def stop_within(self, grace: float) -> Deferred[None]:
        """Stop with another grace than the settings'; seconds."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop(grace))

    # What comes in

    def _limit(self, destination: str) -> int | None:
        return self._router.limit(destination)

    def _plan(self, submission: Submission) -> Sequence[PlannedPart]:
        sender, now = submission.sender, submission.received_at
        return self._router.plan(
            submission, lambda destination: self._destinations.turn(destination, sender, now)
        )

    def _committed(self, message: QueuedMessage) -> None:
        if self.running and message.state is MessageState.ACTIVE:
            try:
                self._destinations.enter(message, self._time.seconds())
            except Exception:
                self._broke(Failure())
            self._fill()

    def _probe_early(self, destinations: Collection[str]) -> None:
        if self.running:
            self._destinations.probe_early(destinations)
            self._look_soon()

    def _free_for_unknown(self) -> int:
        """How many parts for destinations that never answered could start now."""
        return self._destinations.free_for_unknown(self._settings.max_messages - len(self._under_way))

    # What is due

    def _arm(self, when: float | None = None) -> None:
        """Look into the queue when the next destination has something, and now and then in any case."""
        if not self.running or self._looking:
            return
        wake = self._destinations.next_due() if when is None else when
        if wake == inf and self._timer is not None and self._timer.active():
            return  # it is not later than the longest time between two looks
        if not self._queue.settled:
            return
        now = self._time.seconds()
        wake = min(max(wake, now, self._rests_until), now + self._settings.poll)
        if self._timer is not None and self._timer.active():
            if self._timer.getTime() <= self._runtime.monotonic() + wake - now:
                return
            self._timer.cancel()
        self._timer = self._reactor.callLater(wake - now, self._look)

    def _look_soon(self) -> None:
        self._arm(0.0)

    def _look(self) -> None:
        self._looking = True
        Deferred.fromCoroutine(self._take_due()).addBoth(self._looked).addErrback(self._look_broke)

    def _looked(self, result: Failure | None) -> None:
        self._looking = False
        if isinstance(result, Failure):
            log_not_read(result)
            if result.check(SpoolError) is None:
                self._doubt()
        if self.running:
            if self._doubtful:
                self._begin_from_spool()
                self._look_soon()
            self._fill()
        if self._watch_call is None or not self._watch_call.active():
            self._watch()

    # After a fault of ours

    def _watch(self) -> None:
        """Make sure that there always is a next look at the queue, whatever failed.

        It and the looks revive each other, and a look begins from what the spool says where there is doubt.
        """
        if not self.running:
            return
        self._watch_call = self._reactor.callLater(self._settings.poll, self._watch)
        if self._doubtful or self._timer is None or not self._timer.active():
            self._look_soon()
        self._age_scan.go_on()

    def _broke(self, failure: Failure) -> None:
        """The bookkeeping failed: the next look begins from what the spool says."""
        self._doubt()
        _log.failure("the scheduler's bookkeeping failed", failure, event="delivery.bookkeeping_failed")
        self._look_soon()

    def _doubt(self) -> None:
        """Let the next look begin from the spool; not at once, for a fault may stay."""
        self._doubtful = True
        self._rests_until = self._time.seconds() + _AFTER_A_FAULT

    def _look_broke(self, failure: Failure) -> None:
        self._looking = False
        self._broke(failure)

    def _begin_from_spool(self) -> None:
        """Forget what waits in memory and find it again: the spool has it, but for what is under way.

        Not while a look is under way: its answer may name what ended meanwhile.
        """
        self._destinations.start_over(self._under_way.values(), self._set_aside.messages)
        self._doubtful = False
        self._listing.start_anew()

    async def _take_due(self) -> None:
        """Get what is due in the destinations that may go on."""
        if not self._queue.settled:
            return
        now = self._time.seconds()
        self._set_aside.release(self._destinations, now)
        self._listing.list_if_due(now)
        wanted = self._destinations.wanted(now)
        if not wanted:
            return
        try:
            found = await self._queue.due(
                now, wanted, self._destinations.known(wanted), self._destinations.brought_forward(wanted)
            )
        except BaseException:
            self._destinations.not_loaded(wanted, now + self._settings.poll)
            raise
        for destination in found if self.running else ():
            self._destinations.loaded(destination, self._time.seconds())

    def _listed(self) -> None:
        # Not before it is known what may leave now: senders need not hear of a delay that is over.
        self._age_scan.start()
        self._look_soon()

    def _may_scan(self) -> bool:
        return bool(self.running) and self._queue.settled

    # One message

    def _fill(self, most: int = _STARTED_AT_ONCE) -> None:
        """Start what may be started, at most so much in one turn of the reactor.

        An attempt that ends at once makes way for the next one here, in this loop, not by a call from
        within its own end: any number of parts may end at once.
        """
        if self._filling or (self._fill_call is not None and self._fill_call.active()):
            return
        self._filling = True
        try:
            self._start_some(most)
        except Exception:
            self._broke(Failure())
        finally:
            self._filling = False
            self._arm()

    def _start_some(self, most: int) -> None:
        if not self._spool_stop.may_begin(self._queue.settled):
            return
        now = self._time.seconds()
        for _ in range(most):
            free = self._settings.max_messages - len(self._under_way)
            message = self._destinations.take(now, free) if free > 0 and self.running else None
            if message is None:
                return
            key = message.key
            self._under_way[key] = message
            Deferred.fromCoroutine(self._attempt(message, key)).addErrback(self._attempt_broke, key)
        self._fill_call = self._reactor.callLater(0, self._fill_on)

    def _fill_on(self) -> None:
        self._fill_call = None
        self._fill()

    async def _attempt(self, message: QueuedMessage, key: Key) -> None:
        try:
            await self._attempts.make(message)
        except Exception:
            self._set_aside.put(message, inf)
            # After a fault of ours it waits a while.
            delay = self._settings.retries.delays[0] if self._queue.settled else 0.0
            self._set_aside.put(message, self._time.seconds() + delay)
            log_not_recorded(Failure(), message.queue_id)
        finally:
            # Whatever happened: nothing counts as under way without an attempt.
            self._under_way.pop(key, None)
            self._ended(message, key)

    def _attempt_broke(self, failure: Failure, key: Key) -> None:
        """Something failed beside the attempt itself: the part is found again in the spool."""
        self._under_way.pop(key, None)
        self._set_aside.pop(key, None)
        self._broke(failure)
        self._under_way.notify_empty()

    def _ended(self, message: QueuedMessage, key: Key) -> None:
        self._expiry.attempted(message)
        self._destinations.finished(message, known=key in self._set_aside)
        self._under_way.notify_empty()
        if self.running:
            self._fill(_STARTED_AT_AN_END)
