"""The policy ``milter``: any mail filter that speaks Sendmail's milter protocol, version 6."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policies.milter.options import MilterOptions
from elemta.policies.option_checks import endpoint_faults, refuse
from elemta.policy import IPolicyPlugin, Services

if TYPE_CHECKING:
    from elemta.policies.milter.policy import MilterPolicy


@implementer(IPlugin, IPolicyPlugin)
class MilterPlugin:
    """Asks a milter."""

    name = "milter"
    contract = "2"
    options = MilterOptions

    def build(self, options: MilterOptions, services: Services) -> MilterPolicy:
        """Raises ConfigError where the endpoint is none."""
        from elemta.policies.milter.policy import MilterPolicy  # noqa: PLC0415 - costs what only this policy needs

        refuse(endpoint_faults("endpoint", options.endpoint))
        return MilterPolicy(options, services)
