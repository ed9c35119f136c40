"""Delivery: routes, next hops and Maildirs, retries; everything that leaves the queue leaves here."""

from elemta.delivery.delivery import Delivery
from elemta.delivery.routes import Route, routes_from_config
from elemta.delivery.settings import DeliveryObserver, DeliverySettings, Retries

__all__ = ["Delivery", "DeliveryObserver", "DeliverySettings", "Retries", "Route", "routes_from_config"]
