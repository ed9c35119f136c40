"""Mail of some users leaves by a relay of theirs, with their login and from an address of theirs."""

from dataclasses import dataclass
from pathlib import Path

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policy import (
    CONTINUE,
    REQUIRED,
    ConfigError,
    Envelope,
    Fault,
    IDeliveryPolicy,
    IPolicyPlugin,
    Recipient,
    RouteTo,
    Services,
    Verdict,
    setting,
)


@dataclass(frozen=True)
class Customer:
    """One [[policy.customer-route.customer]]."""

    user: str = setting(REQUIRED, "The user whose mail it is.")
    relay: str = setting(REQUIRED, "The next hop, as in to of [[route]].")
    login_file: str = setting(REQUIRED, "A file with one line user:password.")
    source: str = setting("", "The address to connect from; empty: any.")


@dataclass(frozen=True)
class CustomerRouteOptions:
    """The keys of [policy.customer-route]."""

    customer: tuple[Customer, ...] = setting((), "The customers.")


@implementer(IDeliveryPolicy)
class CustomerRoute:
    """The policy: asked for each recipient before each attempt."""

    def __init__(self, routes: dict[str, RouteTo]) -> None:
        self._routes = routes

    def route(self, envelope: Envelope, recipient: Recipient) -> Verdict:
        return self._routes.get(envelope.client.user or "", CONTINUE)


@implementer(IPlugin, IPolicyPlugin)
class CustomerRoutePlugin:
    """Sends mail of some users by a relay of theirs."""

    name = "customer-route"
    contract = "2"
    options = CustomerRouteOptions

    def build(self, options: CustomerRouteOptions, services: Services) -> CustomerRoute:
        return CustomerRoute({each.user: self._route(each) for each in options.customer})

    def _route(self, customer: Customer) -> RouteTo:
        try:
            login = Path(customer.login_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError([Fault("", "customer", f"{customer.login_file}: {error.strerror}")]) from error
        user, _, password = login.partition(":")
        source = customer.source or None
        return RouteTo(customer.relay, tls="require", source=source, credentials=(user, password))
