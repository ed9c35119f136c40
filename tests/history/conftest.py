"""Spools with a history."""

from tests.spool.conftest import counted, open_spool

__all__ = ["counted", "open_spool"]
