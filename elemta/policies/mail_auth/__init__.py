"""The policy ``mail-auth``: SPF, DKIM, ARC and DMARC in one pass.

Its libraries are imported only where the chain names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policies.mail_auth.options import MailAuthOptions
from elemta.policies.option_checks import domain_faults, refuse
from elemta.policy import IPolicyPlugin, Services

if TYPE_CHECKING:
    from elemta.policies.mail_auth.policy import MailAuthPolicy


@implementer(IPlugin, IPolicyPlugin)
class MailAuthPlugin:
    """SPF, DKIM, ARC and DMARC: writes Authentication-Results, and refuses what the configuration says."""

    name = "mail-auth"
    contract = "2"
    options = MailAuthOptions

    def build(self, options: MailAuthOptions, services: Services) -> MailAuthPolicy:
        """Raises ConfigError for a name that can't stand in the field, and for a domain that is none."""
        # They cost what only this policy needs.
        from elemta.policies.mail_auth.dmarc import ascii_domain  # noqa: PLC0415
        from elemta.policies.mail_auth.policy import MailAuthPolicy  # noqa: PLC0415

        faults = domain_faults("authserv_id", options.authserv_id) if options.authserv_id else []
        for number, domain in enumerate(options.trusted_arc, 1):
            if domain_faults("", ascii_domain(domain)):
                faults += domain_faults(f"trusted_arc[{number}]", domain)
        refuse(faults)
        return MailAuthPolicy(options, services)
