"""Elemta: an ESMTP daemon on Twisted with policies at every stage and limits that hold across the fleet."""

__version__ = "0.1.0"
