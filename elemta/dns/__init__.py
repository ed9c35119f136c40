"""DNS: the mail exchangers, addresses and texts of names, asked for in threads within a deadline, cached."""

from elemta.dns.answers import NULL_MX, MailExchanger
from elemta.dns.resolver import Resolver
from elemta.dns.servers import Nameserver
from elemta.dns.settings import ResolverObserver, ResolverSettings

__all__ = ["NULL_MX", "MailExchanger", "Nameserver", "Resolver", "ResolverObserver", "ResolverSettings"]
