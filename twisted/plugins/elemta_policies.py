"""The policies that come with Elemta, found like any plugin: only names, like any dropin."""

from elemta.policies.limits import LimitsPlugin
from elemta.policies.relay import RelayPlugin

limits = LimitsPlugin()
relay = RelayPlugin()
