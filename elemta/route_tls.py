"""Whether a connection to a next hop uses TLS."""

from __future__ import annotations

import enum


class RouteTLS(enum.StrEnum):
    """Whether TLS is spoken to a next hop."""

    NONE = "none"
    MAY = "may"
    REQUIRE = "require"
