"""Spools with a history."""

from tests.spool.conftest import counted, events, open_spool

__all__ = ["counted", "events", "open_spool"]
