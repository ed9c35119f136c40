"""DNS: the mail exchangers, addresses and texts of names, asked for within a deadline, and cached."""

from elemta.dns.answers import NULL_MX, MailExchanger
from elemta.dns.questions import Questions
from elemta.dns.resolver import DnsResolver
from elemta.dns.servers import Nameserver
from elemta.dns.settings import ResolverSettings
from elemta.dns.system_names import AddressResolver, SystemNames

__all__ = [
    "NULL_MX",
    "AddressResolver",
    "DnsResolver",
    "MailExchanger",
    "Nameserver",
    "Questions",
    "ResolverSettings",
    "SystemNames",
]
