"""The policy ``dkim-sign``: DKIM signatures and ARC seals on what leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policies.dkim_sign.options import DkimSignOptions
from elemta.policy import IPolicyPlugin, Services

if TYPE_CHECKING:
    from elemta.policies.dkim_sign.policy import DkimSignPolicy


@implementer(IPlugin, IPolicyPlugin)
class DkimSignPlugin:
    """Signs mail of our users and our notices with DKIM; seals forwarded mail with ARC."""

    name = "dkim-sign"
    contract = "2"
    options = DkimSignOptions

    def build(self, options: DkimSignOptions, services: Services) -> DkimSignPolicy:
        from elemta.policies.dkim_sign.policy import DkimSignPolicy  # noqa: PLC0415 - costs what only it needs

        return DkimSignPolicy(options, services)
