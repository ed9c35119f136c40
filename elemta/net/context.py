"""What the sessions of a listener work with: one immutable value, which a reload replaces as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from elemta.auth.authenticator import Authenticator
from elemta.config import ListenerConfig, ListenerTLS, ServerConfig
from elemta.delivery.bounces import BounceSpool
from elemta.delivery.hop_memory import HopMemory
from elemta.delivery.maildir import Mailboxes
from elemta.delivery.routes import RouteTable
from elemta.domains import Domains
from elemta.limits import Limiter
from elemta.metrics import NetMetrics
from elemta.net.submission import SubmissionRules
from elemta.net.tls import ServerCertificate
from elemta.policy.chain import PolicyChain
from elemta.smtp.session import SessionSettings
from elemta.spool import MessageWriter, Submission


class MessageStore(BounceSpool, Protocol):
    """Where sessions put messages: the part of :class:`elemta.spool.Spool` that they use."""

    @property
    def healthy(self) -> bool:
        """Whether the disk is trusted."""

    def has_space(self, size: int = 0) -> bool:
        """Whether a message of this size leaves enough space."""

    async def rewrite(self, writer: MessageWriter, header: bytes, body: BinaryIO) -> MessageWriter:
        """A writer with another content under the same queue id."""

    def keep_discarded(self, queue_id: str, size: int, submission: Submission) -> None:
        """Note a message that was accepted and is stored nowhere."""


@dataclass(frozen=True, slots=True)
class ListenerContext:
    """What a new session of one listener works with: settings, policies, limits, the queue.

    A session keeps what it began with. ``now`` gives seconds since the epoch, for the
    Received field; deadlines use the reactor's clock. ``routes`` are those of the configuration, None where
    a policy chooses routes: then it is unknown before that what is held. ``mailboxes`` knows which
    Maildirs exist; without it every recipient has one. ``domains`` has the aliases. ``hop_memory`` knows
    what next hops do not take. Without ``submission`` no mail is submitted.
    """

    listener: ListenerConfig
    server: ServerConfig
    session: SessionSettings
    chain: PolicyChain
    limiter: Limiter
    authenticator: Authenticator
    certificate: ServerCertificate | None
    spool: MessageStore
    routes: RouteTable | None
    metrics: NetMetrics
    now: Callable[[], float]
    mailboxes: Mailboxes | None = None
    submission: SubmissionRules | None = None
    domains: Domains = field(default_factory=lambda: Domains(frozenset()))
    hop_memory: HopMemory | None = None

    @property
    def implicit_tls(self) -> bool:
        """Whether the handshake comes before the greeting (RFC 8314 §3)."""
        return self.listener.tls is ListenerTLS.IMPLICIT
