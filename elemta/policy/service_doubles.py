"""Services, messages and envelopes for the test of a policy."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from ipaddress import ip_network
from typing import TYPE_CHECKING, cast

from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, Logger

from elemta.config import DomainsConfig
from elemta.domains import Domains
from elemta.envelope import Client, Envelope, Recipient
from elemta.limits import Limiter, LocalStore
from elemta.message.header_reader import HeaderReader
from elemta.policy.doubles import (
    HttpScript,
    ListedQueue,
    MemoryOutbox,
    RecordedMetrics,
    ScriptedConnections,
    ScriptedHttp,
    StreamScript,
    TestReactor,
    ThreadsDouble,
    Zone,
)
from elemta.policy.policy_resolver import Resolver
from elemta.policy.policy_store import MemoryStore, Store
from elemta.policy.policy_threads import InThreads
from elemta.policy.services import Limits, Services
from elemta.policy.views import Message, Transaction
from elemta.smtp.session_info import SessionInfo

if TYPE_CHECKING:
    from twisted.internet.base import ReactorBase


def make_services(
    clock: Clock | None = None,
    *,
    local: Collection[str] = ("example.com",),
    mailboxes: Collection[str] | None = None,
    relay_from: Collection[str] = (),
    limits: Limits | None = None,
    metrics: RecordedMetrics | None = None,
    logged: list[LogEvent] | None = None,
    resolver: Resolver | None = None,
    threads: InThreads | None = None,
    store: Store | None = None,
    connections: ScriptedConnections | Mapping[str, StreamScript] | None = None,
    http: ScriptedHttp | Mapping[str, HttpScript] | None = None,
    hostname: str = "mx.example.com",
    node_id: str = "node-1",
    outbox: MemoryOutbox | None = None,
    queue: ListedQueue | None = None,
) -> Services:
    """Services for a test, with a clock that stands still.

    Local domains, mailboxes (None: every address at a local domain) and networks that may relay are real. No
    limits and an empty DNS unless some are given. Threads do their work at once, the store is in memory, and
    ``connections`` and ``http`` are scripts by endpoint and by URL.
    """
    clock = clock or TestReactor()
    log = logged if logged is not None else []
    return Services(
        reactor=cast("ReactorBase", clock),
        limits=limits or Limiter((), LocalStore(clock)),
        domains=Domains(
            frozenset(local),
            None if mailboxes is None else frozenset(mailboxes),
            tuple(ip_network(network) for network in relay_from),
            DomainsConfig().recipient_delimiter,
        ),
        metrics=metrics or RecordedMetrics(),
        log=Logger(namespace="elemta.policy", observer=cast(ILogObserver, log.append)),
        resolver=resolver or Zone(),
        threads=threads or ThreadsDouble(),
        store=store or MemoryStore(clock.seconds),
        wall=clock.seconds,
        connect=(
            connections
            if isinstance(connections, ScriptedConnections)
            else ScriptedConnections(clock, connections)
        ),
        http=http if isinstance(http, ScriptedHttp) else ScriptedHttp(clock, http),
        hostname=hostname,
        node_id=node_id,
        outbox=outbox or MemoryOutbox(),
        queue=queue or ListedQueue(),
    )


def make_message(content: bytes) -> Message:
    """A message as a policy sees it, from the octets that a client sends (lines ending in CRLF)."""
    header = HeaderReader()
    content = header.feed(content) + header.finish()
    return Message(len(content), content[: 64 * 1024], lambda: io.BytesIO(content))


def make_envelope(transaction: Transaction, facts: SessionInfo, recipient: Recipient | None) -> Envelope:
    """The envelope of a transaction under way, to this recipient too."""
    others = tuple(known for known in transaction.recipients if known != recipient)
    return Envelope(
        queue_id="2CmXq07DRb3",
        sender=transaction.sender,
        recipients=others if recipient is None else (*others, recipient),
        received_at=1_800_000_000.0,
        size=transaction.size or 1000,
        parameters=transaction.parameters,
        client=Client(
            str(facts.client_ip),
            facts.helo,
            facts.listener,
            facts.id,
            facts.user,
            facts.tls.version if facts.tls else None,
        ),
    )
