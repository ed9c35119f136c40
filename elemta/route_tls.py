"""Whether a connection to a next hop uses TLS."""

from __future__ import annotations

import enum


class RouteTLS(enum.StrEnum):
    """Whether TLS is spoken to a next hop.

    REQUIRE: verified, by STARTTLS. IMPLICIT: verified, from the first byte (RFC 8314 §3.3).
    """

    NONE = "none"
    MAY = "may"
    REQUIRE = "require"
    IMPLICIT = "implicit"

    @property
    def is_verified(self) -> bool:
        """Whether nothing is sent but to the holder of a certificate of the host."""
        return self in (RouteTLS.REQUIRE, RouteTLS.IMPLICIT)
