"""``[tls] ciphers``: a list for TLS 1.2 and older, in OpenSSL's own language."""

from __future__ import annotations

import re

from elemta.config.values import Unacceptable

DEFAULT_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20"
"""What an empty setting means: forward secrecy and AEAD only (RFC 9325 §4.2)."""

_SEPARATORS = re.compile(r"[:, ]+")


def check_cipher_list(text: str) -> None:
    """Accept "" and a list whose parts OpenSSL knows; otherwise raise Unacceptable with the part.

    OpenSSL ignores a part that it does not know, so a misspelt list would be a shorter one. A part that
    removes ciphers may name one that this OpenSSL no longer has.
    """
    if not text:
        return
    if not text.isascii() or not text.isprintable():
        raise Unacceptable("must be an OpenSSL cipher list in ASCII")
    for part in _SEPARATORS.split(text.strip(":, ")):
        if part.startswith("TLS_"):
            hint = "the list is for TLS 1.2; all ciphers of TLS 1.3 are good, and always on"
            raise Unacceptable(f'must not have "{part}", a cipher of TLS 1.3', hint)
        if not part.startswith(("!", "-", "+", "@")) and not _is_usable(part):
            raise Unacceptable(f'has no cipher in its part "{part}"', 'see "openssl ciphers -v LIST"')
    if not _is_usable(text):
        raise Unacceptable("leaves no cipher, or has a word that OpenSSL does not know")


def _is_usable(text: str) -> bool:
    # Imported here: elemtactl has no other use for it, and starts faster without it.
    from OpenSSL import SSL  # noqa: PLC0415

    try:
        SSL.Context(SSL.TLS_METHOD).set_cipher_list(text.encode("ascii"))
    except SSL.Error:
        return False
    return True
