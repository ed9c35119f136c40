"""What all that use OpenSSL share: its errors in words, and whether a certificate is a peer's."""

from __future__ import annotations

from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address

from elemta.ip import is_ip_address


def openssl_words(error: BaseException | None) -> str:
    """What OpenSSL says of an error of its own; "" where the error is not OpenSSL's."""
    if not isinstance(error, (SSL.Error, crypto.Error)):
        return ""
    found = error.args[0] if error.args else ()
    # An error of the connection below, such as its end, is a number and words.
    entries = found if isinstance(found, list) else (error.args,)
    return "; ".join(str(entry[-1]) for entry in entries if entry) or "OpenSSL gives no reason"


def has_certificate_of(connection: SSL.Connection, host: str) -> bool:
    """Whether the peer's certificate, whose chain holds, is one of this name or address."""
    try:
        if is_ip_address(host):
            verify_ip_address(connection, host)
        else:
            # RFC 6125 §6
            verify_hostname(connection, host)
    except (VerificationError, CertificateError):
        # It has other names, or none: that is the answer.
        return False
    return True
