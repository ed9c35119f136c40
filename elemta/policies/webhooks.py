"""The policy ``webhooks``: posts what becomes of mail as JSON, each event at least once.

Events go to the policy's outbox on disk, and from there to the receiver. What came of a delivery is in the
outbox before it is recorded in the queue, so no event of it is lost in a crash. An acceptance whose event a
crash lost is found again: its message is in the queue, because no message leaves it before its events are in
the outbox.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred
from twisted.plugin import IPlugin
from twisted.python.failure import Failure
from zope.interface import implementer

from elemta.policies.option_checks import refuse, url_faults
from elemta.policies.secret_file import read_secrets
from elemta.policies.webhook_poster import Hook, WebhookPoster
from elemta.policy import (
    REQUIRED,
    BackendError,
    Envelope,
    IDeliveryObserver,
    ILifecycle,
    IOutcomeObserver,
    IPolicyPlugin,
    Outcome,
    Recipient,
    Reply,
    Services,
    Session,
    Stage,
    Transaction,
    detached,
    setting,
)

EVENTS = ("accepted", "refused", "delivered", "deferred", "bounced", "expired")

MARGIN = 600.0
"""Seconds from the receipt of a message to its event, at most: how far back a start after a crash looks."""

MAX_TEXT = 1000
KNOWN = 50_000  # messages whose acceptance is known to be in the outbox
_LOG_EVERY = 10.0

# By the reason of an outcome. To the sender, a return by an operator is the same as one by a next hop.
_TYPES = {
    "delivered": "delivered",
    "deferred": "deferred",
    "failed": "bounced",
    "bounced": "bounced",
    "expired": "expired",
}
# RFC 3463 §2: the class, where nothing more is known.
_STATUS = {"delivered": "2.0.0", "deferred": "4.0.0", "bounced": "5.0.0", "expired": "4.4.7"}

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


@dataclass(frozen=True, slots=True)
class WebhooksOptions:
    """The keys of [policy.webhooks]."""

    url: str = setting(REQUIRED, "Where events are posted, http:// or https://.", not_empty=True)
    events: tuple[str, ...] = setting(EVENTS, "The types of events that are posted.", choices=EVENTS)
    secret_file: str = setting(
        "", "File whose first line is the secret that signs each request; empty = no signature."
    )


@dataclass(frozen=True, slots=True)
class _Facts:
    """What an event says, beside its type, its id, its time and the node."""

    queue_id: str
    sender: str
    recipient: str
    status: str
    code: int
    text: str
    client_ip: str


@implementer(IOutcomeObserver, IDeliveryObserver, ILifecycle)
class WebhooksPolicy:
    """Keeps events in the outbox, and has them posted."""

    def __init__(self, options: WebhooksOptions, services: Services) -> None:
        self._wanted = frozenset(options.events)
        self._services = services
        secret = None
        if options.secret_file:
            secret = read_secrets("secret_file", Path(options.secret_file))[0]
        self._poster = WebhookPoster(Hook(options.url, secret), services)
        self._events = services.metrics.counter("events_total", "Events by type.", ("type",))
        self._dropped = services.metrics.counter(
            "dropped_events_total", "Events that were not kept: the outbox is full, or its disk fails."
        )
        self._accepted: dict[str, None] = {}
        self._started_at = 0.0
        self._refusals = 0
        self._successor: WebhooksPolicy | None = None
        self._next_log = 0.0
        # Messages received since then may have no event of a run that did not end in order; None: they have.
        self._derive_since: float | None = None
        self._deriving: Deferred[None] | None = None

    # Its life

    async def start(self, predecessor: object | None) -> None:
        if isinstance(predecessor, WebhooksPolicy):
            self._accepted, self._started_at = predecessor._accepted, predecessor._started_at
            self._derive_since = predecessor.hand_over(self)
        else:
            self._started_at = self._services.wall()
            found = await self._services.outbox.start()
            self._derive_since = None if found.complete else found.at - MARGIN
        self._poster.start()
        if self._derive_since is not None:
            # It takes as long as the queue is long; neither mail nor the start waits for it.
            self._services.reactor.callLater(0, self._begin_to_derive)

    def hand_over(self, successor: WebhooksPolicy) -> float | None:
        """Let a policy that a reload made do what is left, and post what sessions of before bring, too.

        Returns since when acceptances may have no event; None where all have.
        """
        self._successor = successor
        since = self._derive_since
        self._give_up()
        return since

    async def stop(self) -> None:
        complete = self._derive_since is None
        self._give_up()
        if complete and self._successor is None:
            await self._services.outbox.finish()

    def _give_up(self) -> None:
        self._poster.stop()
        deriving, self._deriving, self._derive_since = self._deriving, None, None
        if deriving is not None:
            deriving.cancel()

    # After a crash

    def _begin_to_derive(self) -> None:
        if self._derive_since is not None:
            self._deriving = Deferred.fromCoroutine(self._derive(self._derive_since))
            self._deriving.addErrback(self._not_derived)

    async def _derive(self, since: float) -> None:
        """Make the events anew of messages whose acceptance the last run may not have kept."""
        after, number, more = None, 0, "accepted" in self._wanted
        while more:
            page = await self._services.queue.received_since(since, after)
            for envelope in page.envelopes:
                records = self._acceptance_of(envelope)
                number += len(records)
                if records:
                    await self._keep(records)
            after = page.after
            more = after is not None
        await self._services.outbox.caught_up()
        self._derive_since = None
        self._services.log.info(
            "the last run did not end in order; {events} acceptances are posted again",
            event="webhook.events_derived",
            events=number,
        )

    def _not_derived(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._services.log.error(
                "some acceptances before the last crash may have no event until the next start: {error}",
                event="webhook.events_not_derived",
                error=failure.getErrorMessage(),
            )

    # Facts

    def committed(self, session: Session, transaction: Transaction, queue_id: str) -> None:
        if "accepted" not in self._wanted or queue_id in self._accepted:
            return
        recipients = [str(one.address) for one in transaction.recipients]
        self._keep(
            self._acceptance(queue_id, str(transaction.sender), recipients, str(session.client_ip), None)
        )

    def refused(self, session: Session, transaction: Transaction) -> None:
        """What was refused has had its event: a client that resets or leaves was refused nothing."""

    def disconnected(self, session: Session) -> None:
        """No event."""

    def refused_at(
        self,
        session: Session,
        stage: Stage,
        reply: Reply,
        transaction: Transaction | None,
        recipient: Recipient | None,
    ) -> None:
        if "refused" not in self._wanted:
            return
        self._refusals += 1
        facts = _Facts(
            "" if transaction is None else transaction.queue_id,
            "" if transaction is None else str(transaction.sender),
            "" if recipient is None else str(recipient.address),
            reply.enhanced,
            reply.code,
            reply.text,
            str(session.client_ip),
        )
        key = (session.id, stage.value, str(self._refusals), repr(self._services.wall()))
        self._keep([self._event("refused", facts, self._services.wall(), key)])

    def attempted(self, outcome: Outcome) -> None:
        """See :meth:`recording`, which is called in time."""

    def recording(self, envelope: Envelope, recipient: Recipient, outcome: Outcome) -> Deferred[None] | None:
        if envelope.client.listener == _NOTICE:
            return None
        records = []
        if envelope.received_at >= self._started_at:
            # It may be delivered before its session hears that it is committed.
            records += self._acceptance_of(envelope)
        kind = _TYPES.get(outcome.reason, "")
        if kind in self._wanted:
            facts = _Facts(
                envelope.queue_id,
                str(envelope.sender),
                str(recipient.address),
                outcome.enhanced or _STATUS[kind],
                outcome.code,
                outcome.text,
                envelope.client.ip,
            )
            # The same end has the same id, also where a crash lets it come twice.
            key = (repr(outcome.at),) if kind == "deferred" else ()
            records.append(self._event(kind, facts, outcome.at, key))
        return self._keep(records) if records else None

    # Events

    def _acceptance_of(self, envelope: Envelope) -> list[bytes]:
        """The events of a message that was accepted; none where they are in the outbox already."""
        client, known = envelope.client, envelope.queue_id in self._accepted
        if known or "accepted" not in self._wanted or client.listener == _NOTICE:
            return []
        recipients = [str(one.address) for one in envelope.recipients]
        at = envelope.received_at
        return self._acceptance(envelope.queue_id, str(envelope.sender), recipients, client.ip, at)

    def _acceptance(
        self, queue_id: str, sender: str, recipients: Iterable[str], client_ip: str, at: float | None
    ) -> list[bytes]:
        self._accepted[queue_id] = None
        if len(self._accepted) > KNOWN:
            del self._accepted[next(iter(self._accepted))]
        when = self._services.wall() if at is None else at
        text = f"queued as {queue_id}"
        return [
            self._event("accepted", _Facts(queue_id, sender, each, "2.0.0", 250, text, client_ip), when)
            for each in recipients
        ]

    def _event(self, kind: str, facts: _Facts, at: float, key: Sequence[str] = ()) -> bytes:
        self._events.labels(kind).inc()
        known = "\0".join((facts.queue_id, kind, facts.recipient, *key)).encode("utf-8", "surrogatepass")
        event = {
            "id": hashlib.blake2b(known, digest_size=16).hexdigest(),
            "type": kind,
            "time": _rfc3339(at),
            "node_id": self._services.node_id,
            "queue_id": facts.queue_id,
            "sender": facts.sender,
            "recipient": facts.recipient,
            "status": facts.status,
            "code": facts.code,
            "text": facts.text[:MAX_TEXT],
            "client_ip": facts.client_ip,
        }
        return _encode(event).encode("ascii")

    def _keep(self, records: Sequence[bytes]) -> Deferred[None]:
        """Append to the outbox. To cancel the wait loses nothing."""
        kept: Deferred[None] = self._services.outbox.append(*records).addCallbacks(
            self._kept, self._not_kept, errbackArgs=(len(records),)
        )
        return detached(kept, _ignore, _ignore)

    def _kept(self, dropped: int) -> None:
        (self._successor or self)._poster.wake()
        if dropped:
            self._count_dropped(dropped, "its outbox is full")

    def _not_kept(self, failure: Failure, number: int) -> None:
        failure.trap(BackendError)
        self._count_dropped(number, failure.getErrorMessage())

    def _count_dropped(self, number: int, reason: str) -> None:
        self._dropped.inc(number)
        now = self._services.reactor.seconds()
        if now >= self._next_log:
            self._next_log = now + _LOG_EVERY
            self._services.log.error(
                "events were dropped: {reason}", event="webhook.events_dropped", reason=reason, events=number
            )


_NOTICE = "bounce"


def _ignore(_: object) -> None:
    """Nothing waits for it any more."""


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@implementer(IPlugin, IPolicyPlugin)
class WebhooksPlugin:
    """Posts events to a web hook."""

    name = "webhooks"
    contract = "2.1"
    options = WebhooksOptions

    def build(self, options: WebhooksOptions, services: Services) -> WebhooksPolicy:
        """Raises ConfigError where the URL is none."""
        refuse(url_faults("url", options.url))
        return WebhooksPolicy(options, services)
