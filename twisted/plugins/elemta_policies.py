"""The policies that come with Elemta, found like any plugin: only names, like any dropin."""

from elemta.policies.clamav import ClamAVPlugin
from elemta.policies.dnsbl import DnsblPlugin
from elemta.policies.greylist import GreylistPlugin
from elemta.policies.limits import LimitsPlugin
from elemta.policies.relay import RelayPlugin
from elemta.policies.reverse_dns import ReverseDnsPlugin

clamav = ClamAVPlugin()
dnsbl = DnsblPlugin()
greylist = GreylistPlugin()
limits = LimitsPlugin()
relay = RelayPlugin()
reverse_dns = ReverseDnsPlugin()
