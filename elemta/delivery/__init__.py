"""Delivery: routes, next hops and Maildirs, retries; everything that leaves the queue leaves here."""

from elemta.delivery.routes import Route, routes_from_config
from elemta.delivery.scheduler import DeliveryScheduler
from elemta.delivery.settings import DeliverySettings, Retries

__all__ = [
    "DeliveryScheduler",
    "DeliverySettings",
    "Retries",
    "Route",
    "routes_from_config",
]
