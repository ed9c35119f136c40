"""The policies that come with Elemta, found like any plugin: only names, like any dropin."""

from elemta.policies.clamav import ClamAVPlugin
from elemta.policies.dkim_sign import DkimSignPlugin
from elemta.policies.dnsbl import DnsblPlugin
from elemta.policies.greylist import GreylistPlugin
from elemta.policies.limits import LimitsPlugin
from elemta.policies.mail_auth import MailAuthPlugin
from elemta.policies.milter import MilterPlugin
from elemta.policies.policy_client import PolicyClientPlugin
from elemta.policies.relay import RelayPlugin
from elemta.policies.reverse_dns import ReverseDnsPlugin
from elemta.policies.rspamd import RspamdPlugin
from elemta.policies.srs import SrsPlugin
from elemta.policies.webhooks import WebhooksPlugin

clamav = ClamAVPlugin()
dkim_sign = DkimSignPlugin()
dnsbl = DnsblPlugin()
greylist = GreylistPlugin()
limits = LimitsPlugin()
mail_auth = MailAuthPlugin()
milter = MilterPlugin()
policy_client = PolicyClientPlugin()
relay = RelayPlugin()
reverse_dns = ReverseDnsPlugin()
rspamd = RspamdPlugin()
srs = SrsPlugin()
webhooks = WebhooksPlugin()
