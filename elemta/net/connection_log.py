"""What stands of one client's connection in the log and in the metrics."""

from __future__ import annotations

from twisted.python.failure import Failure

from elemta.metrics import NetMetrics
from elemta.net.registry import ConnectionRegistry
from elemta.runtime.fast_logger import FastLogger
from elemta.smtp import replies
from elemta.smtp.events import Forgave, Question, Replied
from elemta.smtp.leniency import Leniency
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import SessionInfo

_log = FastLogger()

_LONGEST_LOGGED = 512
# What answers for a message: the end of its data, in either way.
_ABOUT_A_MESSAGE = frozenset({".", "BDAT"})


def log_refused_connection(
    registry: ConnectionRegistry,
    metrics: NetMetrics,
    listener: str,
    client_ip: str,
    refusal: tuple[Reply, str],
) -> None:
    """Count and log that a client gets no session: the reply that says so, and the reason."""
    reply, reason = refusal
    metrics.connections_refused.labels(listener, reason).inc()
    registry.refusals.no_session(client_ip, listener, reply, reason)
    _log.info(
        "connection refused",
        event="connection.refused",
        listener=listener,
        client_ip=client_ip,
        reason=reason,
    )


_NO_KINDS: frozenset[Leniency] = frozenset()


class ConnectionLog:
    """Counts and logs what happens to one connection.

    Connections of a load balancer that only checks the port are counted apart, and hardly logged: they come
    every second or two.
    """

    __slots__ = ("_facts", "_health_check", "_logged_kinds", "_metrics", "_opened_at", "_registry")

    def __init__(
        self, registry: ConnectionRegistry, metrics: NetMetrics, facts: SessionInfo, *, health_check: bool
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._facts = facts
        self._health_check = health_check
        self._opened_at = 0.0
        # The kinds of leniency that stand in the log already.
        self._logged_kinds = _NO_KINDS

    def opened(self) -> None:
        self._opened_at = self._registry.seconds()
        if self._health_check:
            self._metrics.health_checks.labels(self._facts.listener).inc()
        else:
            self._metrics.connections_opened.labels(self._facts.listener).inc()
            self._metrics.connections_open.labels(self._facts.listener).inc()

    def closing(self, reason: str) -> None:
        if _log.wants_debug:
            _log.debug(
                "closing connection", event="session.closing", session_id=self._facts.id, reason=reason
            )

    def closed(self, reason: Failure) -> None:
        seconds = self.seconds
        if not self._health_check:
            self._metrics.connections_open.labels(self._facts.listener).dec()
            self._metrics.session_duration.labels(self._facts.listener).observe(seconds)
        if _log.wants_debug:
            _log.debug(
                "connection closed",
                event="session.closed",
                session_id=self._facts.id,
                client_ip=str(self._facts.client_ip),
                reason=reason.getErrorMessage(),
                seconds=round(seconds, 3),
            )

    def handshake_failed(self, heard: bytes, reason: Failure) -> None:
        """``heard`` is what the client sent first."""
        self._metrics.tls_connections.labels("failed").inc()
        if not self._health_check:
            self._registry.handshake_log.failed(self._facts, heard, reason)

    def refused_in_handshake(self, reply: Reply, reason: str) -> None:
        """The client gets no session, though its connection was opened."""
        listener, ip = self._facts.listener, str(self._facts.client_ip)
        log_refused_connection(self._registry, self._metrics, listener, ip, (reply, reason))

    @property
    def seconds(self) -> float:
        """How long the connection is open."""
        return self._registry.seconds() - self._opened_at

    def refused(self, event: Replied, queue_id: str, asked: Question | None) -> None:
        """A command was refused; ``queue_id`` is that of the message that the transaction has come to.

        ``asked`` is the last question about the session.
        """
        self._registry.refusals.refused(self._facts, event, asked)
        reply = event.reply
        if reply is replies.ENVELOPE_FULL or reply is replies.ENVELOPES_FULL:
            self._metrics.messages_deferred.labels(event.verb.lower(), "memory").inc()
        # What a policy refused stands in the log already, with the policy's name.
        say = _log.debug if event.reason.startswith("policy ") else _log.info
        say(
            "command refused",
            event="command.refused",
            session_id=self._facts.id,
            queue_id=(queue_id if event.verb in _ABOUT_A_MESSAGE else "") or None,
            client_ip=str(self._facts.client_ip),
            verb=event.verb,
            reply=str(reply),
            reason=event.reason,
        )

    def forgave(self, event: Forgave) -> None:
        """Something outside of the grammar was taken; each kind is logged once."""
        for kind in event.kinds:
            self._metrics.leniency.labels(kind.value).inc()
            if kind in self._logged_kinds:
                continue
            self._logged_kinds |= {kind}
            _log.info(
                "something outside of the grammar was taken for what it can only mean",
                event="command.forgiven",
                session_id=self._facts.id,
                client_ip=str(self._facts.client_ip),
                kind=kind.value,
                verb=event.verb,
                text=event.text[:_LONGEST_LOGGED],
            )

    def timed_out(self, waiting_for: str) -> None:
        _log.info(
            "connection timed out",
            event="session.timeout",
            session_id=self._facts.id,
            client_ip=str(self._facts.client_ip),
            waiting_for=waiting_for,
        )
