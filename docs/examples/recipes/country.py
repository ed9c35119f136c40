"""Two policies: one finds out the country of a client, one behind it decides by that."""

from dataclasses import dataclass

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policy import (
    CONTINUE,
    IConnectPolicy,
    IMailPolicy,
    IPolicyPlugin,
    NoOptions,
    NoSuchDomain,
    Quarantine,
    ResolverTrouble,
    Services,
    Session,
    Transaction,
    Verdict,
    setting,
)


@dataclass(frozen=True)
class CountryResult:
    """What ``country`` publishes: the two letters of ISO 3166."""

    code: str


@implementer(IConnectPolicy)
class Country:
    """Asks a DNS zone that has a TXT record with the country of each IPv4 address."""

    def __init__(self, services: Services) -> None:
        self._resolver = services.resolver

    async def connected(self, session: Session) -> Verdict:
        name = ".".join(reversed(str(session.client_ip).split("."))) + ".country.example.net"
        try:
            texts = await self._resolver.text(name, timeout=1.0)
        except (NoSuchDomain, ResolverTrouble):
            texts = ()
        for text in texts[:1]:
            session.results.publish(CountryResult(text))
        return CONTINUE


@implementer(IPlugin, IPolicyPlugin)
class CountryPlugin:
    """Finds out the country of a client."""

    name = "country"
    contract = "2"
    options = NoOptions

    def build(self, options: NoOptions, services: Services) -> Country:
        return Country(services)


@dataclass(frozen=True)
class ByCountryOptions:
    """The keys of [policy.by-country]."""

    hold: tuple[str, ...] = setting((), "The countries whose mail is put on hold.")


@implementer(IMailPolicy)
class ByCountry:
    """Reads what ``country`` found out."""

    def __init__(self, options: ByCountryOptions) -> None:
        self._hold = options.hold

    def mail(self, session: Session, transaction: Transaction) -> Verdict:
        country = session.results.get(CountryResult)
        if country is not None and country.code in self._hold:
            return Quarantine(f"the client is in {country.code}")
        return CONTINUE


@implementer(IPlugin, IPolicyPlugin)
class ByCountryPlugin:
    """Puts mail from some countries on hold."""

    name = "by-country"
    contract = "2"
    requires = ("country",)
    options = ByCountryOptions

    def build(self, options: ByCountryOptions, services: Services) -> ByCountry:
        return ByCountry(options)
