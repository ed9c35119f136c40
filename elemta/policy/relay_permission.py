"""Whether a client may relay to a recipient. It is decided here, once for each recipient."""

from __future__ import annotations

from dataclasses import dataclass, field

from elemta.address import Address
from elemta.domains import Domains
from elemta.policy.verdicts import Defer, Reject
from elemta.smtp.session_info import SessionInfo

RELAY_DENIED = Reject("Relay access denied", code=554, enhanced="5.7.1")

# RFC 5321 §4.2.2: 451 is a local error in processing
RELAY_UNKNOWN = Defer("Local trouble, please try again later", code=451, enhanced="4.3.0")
"""The answer where a policy that may grant relaying failed: whether it would have is not known."""

MAY_RELAY = "may_relay"
"""The name of this decision in place of a policy's name: the setting. No policy can have this name."""


@dataclass(frozen=True, slots=True)
class RelayPermission:
    """Which clients may relay to which recipients.

    ``domains`` are those of this host, with the networks whose clients may relay. ``granted_by`` are the
    names of the policies whose ``Accept`` at RCPT lets any client relay. The default lets no client relay.
    """

    domains: Domains = field(default_factory=lambda: Domains(frozenset()))
    granted_by: frozenset[str] = frozenset()

    def concerns(self, client: SessionInfo, recipient: Address) -> bool:
        """Whether it is relaying to take mail for ``recipient`` from this client."""
        if not self.domains.is_local(recipient.domain):
            return True
        return not self._trusts(client) and not self.domains.ends_here(recipient)

    def allows(self, client: SessionInfo, recipient: Address) -> bool:
        """Whether this client may send to ``recipient`` without a policy that grants it."""
        return self.domains.ends_here(recipient) or self._trusts(client)

    def _trusts(self, client: SessionInfo) -> bool:
        return client.user is not None or self.domains.may_relay(client.client_ip)
