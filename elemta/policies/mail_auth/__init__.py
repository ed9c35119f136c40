"""The policy ``mail-auth``: SPF, DKIM, ARC and DMARC in one pass.

Its libraries are imported only where the chain names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policies.mail_auth.options import MailAuthOptions
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
        from elemta.policies.mail_auth.policy import MailAuthPolicy  # noqa: PLC0415 - costs what only this policy needs

        return MailAuthPolicy(options, services)
