"""The policy ``relay``: who may send where. Closed by default.

A recipient in a local domain is taken from anybody when there is such a mailbox. Any other is taken only
from an authenticated user, or from a client in ``[domains] relay_from``.
"""

from __future__ import annotations

import unicodedata

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.domains import Domains, canonical_domain
from elemta.policy import (
    CONTINUE,
    Address,
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

DENIED = Reject("Relay access denied", code=554, enhanced="5.7.1")
NO_MAILBOX = Reject("No such mailbox", code=550, enhanced="5.1.1")

# Ways to write the next hop into a local-part: user%host, host!user, a quoted user@host, DECnet's host::user.
_ROUTING = frozenset("%!@:")


@implementer(IRcptPolicy)
class Relay:
    """Asks of each recipient whether it is ours, and if not, whether the client may send anywhere."""

    def __init__(self, domains: Domains) -> None:
        self._domains = domains

    def rcpt(self, session: Session, transaction: Transaction, recipient: Recipient) -> Verdict:  # noqa: ARG002
        address = recipient.address
        trusted = session.user is not None or self._domains.may_relay(session.client_ip)
        if not self._domains.is_local(address.domain):
            return CONTINUE if trusted else DENIED
        if not trusted and _routes_on(address.local) and not self._is_listed(address):
            # A next hop that still reads such a local-part would relay what we took for local.
            return DENIED
        return CONTINUE if self._domains.has_mailbox(address) else NO_MAILBOX

    def _is_listed(self, address: Address) -> bool:
        listed = self._domains.recipients
        return listed is not None and f"{address.local.lower()}@{canonical_domain(address.domain)}" in listed


@implementer(IPlugin, IPolicyPlugin)
class RelayPlugin:
    """Who may send where: local mailboxes for everybody, anywhere for users and trusted networks."""

    name = "relay"
    options = NoOptions

    def build(self, options: NoOptions, services: Services) -> Relay:  # noqa: ARG002
        return Relay(services.domains)


def _routes_on(local: str) -> bool:
    if not local.isascii():
        # A full-width sign is an ordinary one to whoever normalises before looking.
        local = unicodedata.normalize("NFKC", local)
    return not _ROUTING.isdisjoint(local)
