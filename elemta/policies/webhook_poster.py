"""Posts what is in an outbox to a web hook, a batch at a time, until it is taken."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from elemta.policy import BackendError, Counter, OutboxRecord, Services

BATCH_EVENTS = 100
BATCH_OCTETS = 256 * 1024
FIRST_PAUSE = 1.0
LAST_PAUSE = 300.0
"""Seconds until a batch that was not taken is posted again: the pause doubles up to this."""

MAX_ANSWER = 1024 * 1024  # octets of an answer, which nothing reads

_TOO_LARGE = 413


@dataclass(slots=True)
class Hook:
    """Where to post, and the secret that signs (None: nothing does)."""

    url: str
    secret: bytes | None = None
    place: str = field(init=False)

    def __post_init__(self) -> None:
        # What may stand in the log: a path may hold a token.
        parts = urlsplit(self.url)
        self.place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class WebhookPoster:
    """One batch is under way at a time, so events arrive in order. Nothing waits for this but its outbox."""

    def __init__(self, hook: Hook, services: Services) -> None:
        self._hook = hook
        self._services = services
        self._outbox = services.outbox
        self._posted = services.metrics.counter("posted_events_total", "Events that the receiver took.")
        self._posts: Counter = services.metrics.counter("posts_total", "Requests by result.", ("result",))
        self._batch = BATCH_EVENTS
        self._pause = 0.0
        self._running: Deferred[None] | None = None
        self._waiting: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._begin: IDelayedCall | None = None
        self._has_more = True

    def start(self) -> None:
        """Begin to post, beside whatever call of the policy this is made in."""
        self._begin = self._services.reactor.callLater(0, self._begin_now)

    def _begin_now(self) -> None:
        self._begin = None
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._ended)

    def _ended(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._services.log.failure(
                "posting events failed with an internal error", failure, event="webhook.internal_error"
            )
            self._begin = self._services.reactor.callLater(LAST_PAUSE, self._begin_now)

    def stop(self) -> None:
        """Post no more. A request under way is given up, and its events stay in the outbox."""
        if self._begin is not None:
            self._begin.cancel()
            self._begin = None
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
        self._waiting = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def wake(self) -> None:
        """There are new events. A pause after a failure goes on."""
        self._has_more = True
        if self._waiting is not None and self._timer is None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    async def _run(self) -> None:
        while True:
            if not self._has_more:
                await self._wait(None)
            self._has_more = False
            try:
                records = await self._outbox.read(self._batch, BATCH_OCTETS)
                if records:
                    # There may be more behind them.
                    self._has_more = True
                    await self._post(records)
                    await self._outbox.remove(records[-1].number)
                    self._taken(len(records))
            except BackendError as error:
                self._has_more = True
                self._failed(error)
                await self._wait(self._pause)

    async def _wait(self, seconds: float | None) -> None:
        """Wait for a new event, or so many seconds whatever comes."""
        self._waiting = Deferred()
        if seconds is not None:
            self._timer = self._services.reactor.callLater(seconds, self._time_is_up)
        await self._waiting

    def _time_is_up(self) -> None:
        self._timer = None
        self.wake()

    async def _post(self, records: Sequence[OutboxRecord]) -> None:
        """BackendError: the receiver did not take them."""
        body = b"[" + b",".join(record.octets for record in records) + b"]"
        headers = {"Content-Type": "application/json"}
        if self._hook.secret is not None:
            digest = hmac.new(self._hook.secret, body, hashlib.sha256).hexdigest()
            headers["X-Elemta-Signature"] = f"sha256={digest}"
        answer = await self._services.http.request(
            "POST", self._hook.url, headers=headers, body=body, limit=MAX_ANSWER
        )
        if answer.status == _TOO_LARGE:
            self._batch = max(1, min(self._batch, len(records)) // 2)
        if not 200 <= answer.status < 300:
            raise BackendError(f"{self._hook.place} answered with status {answer.status}")

    def _taken(self, number: int) -> None:
        self._posted.inc(number)
        self._posts.labels("taken").inc()
        self._batch = min(BATCH_EVENTS, self._batch * 2)
        if self._pause:
            self._pause = 0.0
            self._services.log.info(
                "the receiver takes events again", event="webhook.recovered", receiver=self._hook.place
            )

    def _failed(self, error: BackendError) -> None:
        self._posts.labels("failed").inc()
        self._pause = min(max(self._pause * 2, FIRST_PAUSE), LAST_PAUSE)
        self._services.log.warn(
            "events were not taken; they are posted again in {seconds} s: {error}",
            event="webhook.not_taken",
            receiver=self._hook.place,
            seconds=self._pause,
            error=str(error),
        )
