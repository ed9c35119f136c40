"""DNS: the mail exchangers, addresses and texts of names, asked for within a deadline, and cached.

The values of answers are here. What asks, :mod:`elemta.dns.resolver`, loads dnspython.
"""

from elemta.dns.answers import NULL_MX, MailExchanger

__all__ = ["NULL_MX", "MailExchanger"]
