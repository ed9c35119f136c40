"""The policy ``relay``: which recipients are accepted. It relays for no client by default.

A recipient in a local domain is taken from any client when there is such a mailbox. Any other is taken only
from an authenticated user, or from a client in ``[domains] relay_from``.
"""

from __future__ import annotations

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policies.own_clients import is_exempt
from elemta.policy import (
    CONTINUE,
    RELAY_DENIED,
    Domains,
    IPolicyPlugin,
    IRcptPolicy,
    NoOptions,
    Recipient,
    Reject,
    Services,
    Session,
    Transaction,
    Verdict,
)

NO_MAILBOX = Reject("No such mailbox", code=550, enhanced="5.1.1")


@implementer(IRcptPolicy)
class RelayPolicy:
    """Asks of each recipient whether it is ours, and if not, whether the client may send anywhere."""

    def __init__(self, domains: Domains) -> None:
        self._domains = domains

    def rcpt(self, session: Session, transaction: Transaction, recipient: Recipient) -> Verdict:  # noqa: ARG002
        address, domains = recipient.address, self._domains
        if not is_exempt(session, domains):
            if not domains.ends_here(address):
                return RELAY_DENIED
        elif not domains.is_local(address.domain):
            return CONTINUE
        return CONTINUE if domains.has_mailbox(address) else NO_MAILBOX


@implementer(IPlugin, IPolicyPlugin)
class RelayPlugin:
    """Local mailboxes for every client; any domain for users and trusted networks."""

    name = "relay"
    options = NoOptions

    def build(self, options: NoOptions, services: Services) -> RelayPolicy:  # noqa: ARG002
        return RelayPolicy(services.domains)
