"""The policies that come with Elemta, where anyone's may be: only names, like any dropin."""

from elemta.policies.limits import LimitsPlugin
from elemta.policies.relay import RelayPlugin

limits = LimitsPlugin()
relay = RelayPlugin()
