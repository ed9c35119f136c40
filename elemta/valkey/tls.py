"""TLS to Valkey as the URL has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from elemta.config.valkey_url import ValkeyURL

if TYPE_CHECKING:
    from elemta.valkey.tls_handshake import ValkeyHandshake


class ValkeyTLSRefused(Exception):
    """TLS can't be had with these files, or not with this server. The text says why."""


@dataclass(frozen=True, slots=True)
class TLS:
    """How servers are verified, and our own certificate; see ``ValkeyURL``."""

    server_name: str = ""
    ca: str = ""
    certificate: str = ""
    private_key: str = ""

    @classmethod
    def of(cls, url: ValkeyURL) -> TLS | None:
        return cls(url.tls_server_name, url.ca, url.certificate, url.private_key) if url.tls else None

    def handshake(self, host: str) -> ValkeyHandshake:
        """A handshake with a host. Files are read again when they have changed.

        Raises :class:`ValkeyTLSRefused` where that fails.
        """
        from elemta.valkey.tls_handshake import ValkeyHandshake  # noqa: PLC0415 - only here is OpenSSL needed

        return ValkeyHandshake.of(self, host)
