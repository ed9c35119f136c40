"""Refuses mailboxes that do not exist yet: those whose name begins with ``future-``."""

from dataclasses import dataclass

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policy import CONTINUE, IPolicyPlugin, IRcptPolicy, Reject, setting


@dataclass(frozen=True)
class RefuseFutureOptions:
    """The keys of [policy.refuse-future]."""

    prefix: str = setting("future-", "Mailboxes whose name begins with this are refused.")


@implementer(IRcptPolicy)
class RefuseFuture:
    """The policy: asked at each RCPT."""

    def __init__(self, options, services):
        self._prefix = options.prefix
        self._log = services.log
        self._refused = services.metrics.counter("refused_total", "Recipients that do not exist yet.")

    def rcpt(self, session, transaction, recipient):
        if recipient.local.lower().startswith(self._prefix):
            self._refused.inc()
            self._log.info("a mailbox of the future", session_id=session.id, recipient=str(recipient))
            return Reject("no such mailbox yet", enhanced="5.1.1")
        return CONTINUE


@implementer(IPlugin, IPolicyPlugin)
class RefuseFuturePlugin:
    """Refuses mailboxes that do not exist yet."""

    name = "refuse-future"
    options = RefuseFutureOptions

    def build(self, options, services):
        return RefuseFuture(options, services)
